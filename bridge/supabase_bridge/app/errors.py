"""Errors of commands."""

from __future__ import annotations

from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.layout import ChannelPaths


class CommandError(BridgeError):
    """A command did not reach its goal. The message states the reason and what the operator can do."""

    template = "{message}"
    message: str

    @classmethod
    def no_earlier_release(cls, channel: ChannelPaths) -> CommandError:
        """A channel has no earlier release to return to."""
        return cls(f"{channel.model_key}/{channel.channel} has no earlier release to roll back to")
