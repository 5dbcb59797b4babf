"""Errors of a look: a malformed file of a release, and releases without lists."""

from __future__ import annotations

from supabase_bridge.core.errors import BridgeError


class LookFileError(BridgeError):
    """A file of a release that a look reads has another form."""

    template = "{model}/{run_id}: {name}: {reason}; docs/look.md has the form"
    model: str
    run_id: str
    name: str
    reason: str


class NoListsError(BridgeError):
    """Two releases have neither embedding sets nor samples from which their lists can be compared."""

    template = "no lists can be compared: {reason}"
    reason: str
