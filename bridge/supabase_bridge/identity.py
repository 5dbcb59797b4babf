"""What a model and its versions are called in Supabase: given once, kept in MLflow's tags, never changed."""

from __future__ import annotations

from collections.abc import Callable

from supabase_bridge.completion import RUN_ID_TAG
from supabase_bridge.errors import ModelKeyTakenError
from supabase_bridge.layout import RunId, check_model_key
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.ownership import has_release
from supabase_bridge.registry import RegisteredVersion, Registry

MODEL_KEY_TAG = "supabase.key"


def model_key(registry: Registry, store: ObjectStore, model: str, workspace: str) -> str:
    """The folder of a registered model: its tag `supabase.key`, or its name, which is then written to the tag.

    So a rename in MLflow does not move releases, and a new model under the old name gets the folder only if it is free.
    Where several models want one folder it belongs to the one whose releases are in it; where nobody's are, or several
    models', to the one that is called so. Anybody may write the tag, so that it alone takes no folder from another.

    Args:
        store: Where the workspace's releases are.

    Raises:
        InvalidModelKeyError: the name, or the tag, cannot be a folder.
        ModelKeyTakenError: another registered model of the workspace has the folder.
        ModelNotFoundError: there is no such model.
    """
    tagged = registry.model_tags(model, workspace).get(MODEL_KEY_TAG)
    key = check_model_key(tagged or model)
    others = [name for name in registry.models_claiming(MODEL_KEY_TAG, key, workspace) if name != model]
    if others:
        _refuse_anothers(registry, store, key, model, others, workspace)
    if tagged is None:
        registry.set_model_tag(model, MODEL_KEY_TAG, key, workspace)
    return key


def _refuse_anothers(
    registry: Registry, store: ObjectStore, key: str, model: str, others: list[str], workspace: str
) -> None:
    """Refuse a folder to a model unless it is its own, rather than one of the others' that want it too."""

    def released_there(name: str) -> bool:
        return has_release(store, key, registry.versions(name, workspace))

    mine = released_there(model)
    if mine and model == key:
        return
    for other in others:
        if (not mine and model != key) or released_there(other):
            raise ModelKeyTakenError(key, other, model)


def release_run_id(
    registry: Registry, version: RegisteredVersion, wanted: RunId, *, occupied: Callable[[RunId], bool]
) -> RunId:
    """The run_id of a version: the one it has, or `wanted`, made unique in the model and written to the version's tag.

    Of two versions that ask for one run_id at the same moment the lower one keeps it: each looks again after writing.

    Args:
        occupied: Whether a release lies under a run_id that is not this version's; MLflow does not know of all of them.

    Raises:
        InvalidRunIdError: the version's tag was written by hand and is none.
    """
    if given := version.tags.get(RUN_ID_TAG):
        return RunId.parse(given)

    def others(run_id: RunId) -> list[int]:
        holders = registry.holders(version.model, str(run_id), version.workspace)
        return [number for number in holders if number != version.version]

    taken: list[RunId] = []
    while True:
        chosen = wanted.unique(taken, version=version.version)
        if not others(chosen) and not occupied(chosen):
            registry.set_tags(version, {RUN_ID_TAG: str(chosen)})
            if min(others(chosen), default=version.version) >= version.version:
                return chosen
        taken.append(chosen)
