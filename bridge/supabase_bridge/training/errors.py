"""Errors of the training package."""

from __future__ import annotations

from supabase_bridge.core.errors import BridgeError


class IncompleteRunError(BridgeError):
    """A run of MLflow lacks something that its release needs, or something that was logged cannot be in a release."""

    template = "run {run_id} of {model} cannot become a release: {problem}"
    model: str
    run_id: str
    problem: str
