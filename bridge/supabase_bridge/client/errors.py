"""Errors of the client library: an unsigned release, corrupted state."""

from __future__ import annotations

from pathlib import Path

from supabase_bridge.core.errors import BridgeError


class ReleaseUnsignedError(BridgeError):
    """A signature is required, but neither a signed log entry nor a model.sig covers the release."""

    template = (
        "{model_key} {run_id} is refused: no signed entry of {model_key}/{channel}/history/ names it, and its "
        "model.sig does not cover it: {problem}. Ask for it by a channel that it was promoted to, or set "
        "require_signature = false"
    )
    model_key: str
    run_id: str
    channel: str
    problem: str


class StateCorruptedError(BridgeError):
    """The stored state of a channel cannot be read, so that an older manifest would not be noticed."""

    template = (
        "{path}: the last accepted manifest of the channel cannot be read ({reason}), so an older manifest would not "
        "be noticed. Delete the file to start again"
    )
    path: Path
    reason: str
