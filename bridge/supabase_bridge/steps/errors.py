"""Errors of steps: failed, or stopped because the activation is no longer wanted."""

from __future__ import annotations

from supabase_bridge.core.errors import BridgeError


class StepFailedError(BridgeError):
    """A step before an activation did not succeed; it is tried again until the event is given up."""

    template = "step {step} of {release} failed: {reason}"
    retryable = True
    step: str
    release: str
    reason: str


class StepStoppedError(BridgeError):
    """A step was told to stop, because another release or an operator superseded the activation."""

    template = "step {step} of {release} was stopped: {reason}"
    step: str
    release: str
    reason: str
