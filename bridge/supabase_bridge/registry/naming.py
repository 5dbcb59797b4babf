"""Choose the model key and the run_id of a version, and check which version a release belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

from supabase_bridge.core.documents import ModelMeta, Origin
from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError
from supabase_bridge.core.events import DEFAULT_WORKSPACE
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import ReleasePaths, RunId, check_model_key, referenced_version
from supabase_bridge.core.tags import MODEL_KEY_TAG, RUN_ID_TAG
from supabase_bridge.registry.client import RegisteredModel, RegisteredVersion, Registry
from supabase_bridge.registry.errors import NoReleasePlaceError, RegistryRefusedError
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.errors import ObjectNotFoundError, ObjectTooLargeError

_CLOCKS = timedelta(minutes=5)
"""Maximum time by which MLflow's clock may be ahead of the store's."""

_CHECKED_VERSIONS = 100
"""Maximum number of a model's versions whose releases are checked, the newest first."""


def origin_of(version: RegisteredVersion) -> Origin:
    """Return the origin that a version's release records; of a version that MLflow copied, also the original."""
    workspace = None if version.workspace == DEFAULT_WORKSPACE else version.workspace
    origin = Origin(registered_model=version.model, version=version.version, run_id=version.run_id, workspace=workspace)
    if (copied := referenced_version(version.source)) is None:
        return origin
    original = Origin(registered_model=copied[0], version=copied[1], run_id=version.run_id, workspace=workspace)
    return origin.model_copy(update={"copied_from": original})


def may_be_of(meta: ModelMeta, version: RegisteredVersion) -> bool:
    """Return whether a release records this version, under any name of its model, or no version at all."""
    found, own = meta.mlflow, origin_of(version)
    return found is None or (found.version, found.run_id, found.workspace) == (own.version, own.run_id, own.workspace)


def has_release(store: ObjectStore, model_key: str, versions: Sequence[RegisteredVersion]) -> bool:
    """Return whether a folder holds a release that was made from one of a model's versions.

    Any trainer can write tags, so this reads the release itself. The release must be younger than the version: a
    version that a trainer registers from another model's run has the same run, and perhaps the same number.

    Args:
        versions: The oldest first; the last hundred that have a run_id are checked.
    """
    tagged = [version for version in reversed(versions) if RUN_ID_TAG in version.tags]
    for version in tagged[:_CHECKED_VERSIONS]:
        with suppress(InvalidNameError, ObjectNotFoundError):
            paths = ReleasePaths(model_key=model_key, run_id=RunId.parse(version.tags[RUN_ID_TAG]))
            if store.stat(paths.meta).modified_at < version.created_at - _CLOCKS:
                continue
            meta = _recorded(store, paths)
            if meta is not None and meta.mlflow is not None and may_be_of(meta, version):
                return True
    return False


def _recorded(store: ObjectStore, paths: ReleasePaths) -> ModelMeta | None:
    """Return the commit record at these paths; None if it is missing or unreadable."""
    try:
        return ModelMeta.parse(store.read(paths.meta, limit_bytes=LIMIT_BYTES))
    except (ObjectNotFoundError, ObjectTooLargeError, InvalidDocumentError):
        return None


def claimed_key(model: RegisteredModel) -> str:
    """Return the folder that a registered model claims; see `model_key`, which checks that it may have it.

    Raises:
        InvalidNameError: the name, or the tag, cannot be a folder.
    """
    return check_model_key(model.tags.get(MODEL_KEY_TAG) or model.name)


def model_key(registry: Registry, store: ObjectStore, model: RegisteredModel) -> str:
    """Return the folder of a registered model: its tag `supabase.key`, or its name, which is then written to the tag.

    A rename in MLflow therefore does not move releases, and a new model under the old name gets the folder only if the
    folder is free. If several models claim one folder, it belongs to the model whose releases are in it; if none or
    several have releases there, to the model with that name. The tag alone is no proof: any trainer can write it.

    One or two searches of the registry.

    Args:
        store: The bucket of the model's workspace.

    Raises:
        InvalidNameError: the name, or the tag, cannot be a folder.
        NoReleasePlaceError: another registered model of the workspace owns the folder.
    """
    key = claimed_key(model)
    claimants = registry.models_named(MODEL_KEY_TAG, key, model.workspace, by_name=key != model.name)
    others = [name for name in claimants if name != model.name]
    if others:
        _refuse_anothers(registry, store, key, model.name, others, model.workspace)
    if MODEL_KEY_TAG not in model.tags:
        registry.set_model_tag(model.name, MODEL_KEY_TAG, key, model.workspace)
    return key


def _refuse_anothers(
    registry: Registry, store: ObjectStore, key: str, model: str, others: list[str], workspace: str
) -> None:
    """Raise unless a model owns a folder that other models claim too."""

    def released_there(name: str) -> bool:
        try:
            return has_release(store, key, registry.versions(name, workspace))
        except RegistryRefusedError:
            return False  # A model whose versions cannot be listed keeps no other model from its folder.

    mine = released_there(model)
    if mine and model == key:
        return
    for other in others:
        if (not mine and model != key) or released_there(other):
            raise NoReleasePlaceError.folder_taken(key, other, model)


def release_run_id(
    registry: Registry,
    store: ObjectStore,
    version: RegisteredVersion,
    wanted: RunId,
    *,
    model_key: str,
    sha256: Sequence[str | None],
    commit_record: Callable[[ReleasePaths], ModelMeta | None],
    remake: bool = False,
) -> RunId:
    """Return the run_id in a version's tag; without a tag, make `wanted` unique in the model and write it to the tag.

    If two versions choose one run_id at the same moment, the lower version keeps it: each reads again after its write.
    The bucket is read too, because MLflow does not know the releases of deleted versions.

    Args:
        store: The bucket of the model's workspace.
        sha256: The digests of the version's ONNX file and of its state_dict; None if it has no such file.
        commit_record: Reads a release's model_meta.json; None if it is missing or unreadable.
        remake: Choose another run_id than the tag's, under which no object and no claim lies.

    Raises:
        InvalidNameError: the tag was written manually and is malformed.
    """
    given = version.tags.get(RUN_ID_TAG)
    if given and not remake:
        return RunId.parse(given)

    def others(run_id: RunId) -> list[int]:
        versions_with_run_id = registry.versions_with_run_id(version.model, str(run_id), version.workspace)
        return [number for number in versions_with_run_id if number != version.version]

    taken: list[RunId] = [RunId.parse(given)] if given else []
    while True:
        chosen = wanted.unique(taken, version=version.version)
        paths = ReleasePaths(model_key=model_key, run_id=chosen)
        is_free = not remake or not any(
            True for prefix in (paths.prefix, paths.claims_prefix) for _ in store.list(prefix)
        )
        if is_free and not others(chosen) and not _is_anothers(commit_record(paths), paths, version, sha256):
            registry.set_tags(version, {RUN_ID_TAG: str(chosen)})
            if min(others(chosen), default=version.version) >= version.version:
                return chosen
        taken.append(chosen)


def _is_anothers(
    meta: ModelMeta | None, paths: ReleasePaths, version: RegisteredVersion, sha256: Sequence[str | None]
) -> bool:
    """Return whether the complete release at these paths belongs to another version, perhaps a deleted one.

    A registered model that was deleted and created again counts from 1, so number and run may be equal although the
    files differ.
    """
    if meta is None or meta.mlflow is None:
        return False
    if not may_be_of(meta, version) or meta.mlflow.registered_model != version.model:
        return True
    found = [meta.files.get(name) for name in (paths.onnx_name, paths.state_dict_name)]
    return [None if record is None else record.sha256 for record in found] != list(sha256)
