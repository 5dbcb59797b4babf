"""Errors of announcements."""

from __future__ import annotations

from datetime import timedelta

from supabase_bridge.core.errors import BridgeError


class DeliveryError(BridgeError):
    """A destination did not take a message. No message names the destination's address, which may be a secret.

    Attributes:
        retry_after: The pause that the destination asks for, if any.
        gone: True if it answered that it takes no message ever again.
    """

    template = "{reason}"
    retryable = True
    reason: str
    retry_after: timedelta | None = None
    gone: bool = False


class AddressRefusedError(BridgeError):
    """An address leads to a network to which no announcement may go."""

    template = "the address of the destination is refused: {reason}"
    reason: str


class DeliveryNotFoundError(BridgeError):
    """No announcement or destination has this name, or it is in another state."""

    template = "there is no announcement {subject!r:.80} that is {wanted}; see `supabase-bridge announcements list`"
    subject: str
    wanted: str
