"""Wait until a worker has mirrored or activated a model version."""

from __future__ import annotations

import time
from datetime import timedelta

from supabase_bridge.app.errors import CommandError
from supabase_bridge.core.tags import ERROR_TAG, RUN_ID_TAG, STATUS_TAG
from supabase_bridge.outbox.errors import RegistryUnavailableError
from supabase_bridge.registry.client import Registry

_PAUSE_SECONDS = 1.0
_MIRRORED = {"mirrored", "active", "superseded"}
_FAILED = {"failed", "rejected"}


def wait_for(registry: Registry, model: str, version: int, *, active: bool, timeout: timedelta) -> str | None:
    """Poll the tags of a version until it is a complete release, or the current one of a channel.

    While MLflow does not answer, the function goes on polling until the time is over.

    Args:
        active: Wait until it is current; otherwise until it is mirrored.

    Returns:
        The run_id of the release; None if the time was over.

    Raises:
        VersionNotFoundError: MLflow has no such version.
        CommandError: the worker gave the version up, or rejected it.
        RegistryUnavailableError: MLflow did not answer until the time was over.
    """
    goal = {"active"} if active else _MIRRORED
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            tags = registry.version(model, version).tags
            status = tags.get(STATUS_TAG)
            if status in goal:
                return tags.get(RUN_ID_TAG, "")
            if status in _FAILED:
                raise CommandError(
                    f"{model} version {version} {status}: {tags.get(ERROR_TAG, 'no reason is recorded')}"
                )
        except RegistryUnavailableError:
            if time.monotonic() >= deadline:
                raise
        if time.monotonic() >= deadline:
            return None
        time.sleep(min(_PAUSE_SECONDS, max(0.0, deadline - time.monotonic())))
