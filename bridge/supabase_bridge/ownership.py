"""Whose a release is: what its own model_meta.json records, compared with the versions of a registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

from supabase_bridge.completion import RUN_ID_TAG
from supabase_bridge.documents import LIMIT_BYTES, ModelMeta, Origin
from supabase_bridge.errors import InvalidDocumentError, InvalidRunIdError, ObjectNotFoundError, ObjectTooLargeError
from supabase_bridge.layout import ReleaseKeys, RunId
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE
from supabase_bridge.registry import RegisteredVersion

_CLOCKS = timedelta(minutes=5)
"""How far MLflow's clock may be ahead of the store's."""
_LOOKED_AT = 100
"""Of how many versions of a model releases are looked for, the newest first."""


def origin_of(version: RegisteredVersion) -> Origin:
    """What a version's release records of where it comes from."""
    return Origin(
        registered_model=version.model,
        version=version.version,
        run_id=version.run_id,
        workspace=None if version.workspace == DEFAULT_WORKSPACE else version.workspace,
    )


def may_be_of(meta: ModelMeta, version: RegisteredVersion) -> bool:
    """Whether a release's record speaks of a version, whatever its model was called then, or of none."""
    found, own = meta.mlflow, origin_of(version)
    return found is None or (found.version, found.run_id, found.workspace) == (own.version, own.run_id, own.workspace)


def is_anothers(
    store: ObjectStore, keys: ReleaseKeys, version: RegisteredVersion, content: Mapping[str, str | None]
) -> bool:
    """Whether a complete release lies there that is not this version's: MLflow hides the versions that were deleted.

    A registered model that was deleted and made again counts from 1, so that number and run may be the same while the
    files are not.

    Args:
        content: From a file's name to the SHA-256 that the version's has; None where it has no such file.
    """
    meta = _recorded(store, keys)
    if meta is None or meta.mlflow is None:
        return False
    if not may_be_of(meta, version) or meta.mlflow.registered_model != version.model:
        return True
    found = {name: None if (record := meta.files.get(name)) is None else record.sha256 for name in content}
    return found != content


def has_release(store: ObjectStore, model_key: str, versions: Sequence[RegisteredVersion]) -> bool:
    """Whether any of a model's versions has a release in a folder that was made of it.

    Tags are written by anybody, so the release itself is asked, and it must be younger than the version: a version
    that somebody registers of another model's run has the same run, and perhaps the same number.

    Args:
        versions: The oldest first; the last hundred that have a run_id are looked at.
    """
    tagged = [version for version in reversed(versions) if RUN_ID_TAG in version.tags]
    for version in tagged[:_LOOKED_AT]:
        with suppress(InvalidRunIdError, ObjectNotFoundError):
            keys = ReleaseKeys(model_key=model_key, run_id=RunId.parse(version.tags[RUN_ID_TAG]))
            if store.stat(keys.meta).modified_at < version.created_at - _CLOCKS:
                continue
            meta = _recorded(store, keys)
            if meta is not None and meta.mlflow is not None and may_be_of(meta, version):
                return True
    return False


def _recorded(store: ObjectStore, keys: ReleaseKeys) -> ModelMeta | None:
    """The commit record that lies there; None where there is none that can be read."""
    try:
        return ModelMeta.parse(store.read(keys.meta, limit_bytes=LIMIT_BYTES))
    except (ObjectNotFoundError, ObjectTooLargeError, InvalidDocumentError):
        return None
