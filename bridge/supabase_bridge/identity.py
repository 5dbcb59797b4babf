"""What a model and its versions are called in Supabase: given once, kept in MLflow's tags, never changed."""

from __future__ import annotations

from supabase_bridge.completion import RUN_ID_TAG
from supabase_bridge.errors import ModelKeyTakenError
from supabase_bridge.layout import RunId, check_model_key
from supabase_bridge.registry import RegisteredVersion, Registry

MODEL_KEY_TAG = "supabase.key"


def model_key(registry: Registry, model: str, workspace: str) -> str:
    """The folder of a registered model: its tag `supabase.key`, or its name, which is then written to the tag.

    So a rename in MLflow does not move releases, and a new model under the old name gets the folder only if it is free.

    Raises:
        InvalidModelKeyError: the name, or the tag, cannot be a folder.
        ModelKeyTakenError: another registered model of the workspace has the folder.
        ModelNotFoundError: there is no such model.
    """
    tagged = registry.model_tags(model, workspace).get(MODEL_KEY_TAG)
    key = check_model_key(tagged or model)
    owner = registry.model_with_tag(MODEL_KEY_TAG, key, workspace, other_than=model)
    if owner is not None:
        raise ModelKeyTakenError(key, owner, model)
    if tagged is None:
        registry.set_model_tag(model, MODEL_KEY_TAG, key, workspace)
    return key


def release_run_id(registry: Registry, version: RegisteredVersion, wanted: RunId) -> RunId:
    """The run_id of a version: the one it has, or `wanted`, made unique in the model and written to the version's tag.

    Of two versions that ask for one run_id at the same moment the lower one keeps it: each looks again after writing.

    Raises:
        InvalidRunIdError: the version's tag was written by hand and is none.
    """
    if given := version.tags.get(RUN_ID_TAG):
        return RunId.parse(given)
    others = registry.holders(version.model, str(wanted), version.workspace)
    chosen = wanted.unique([wanted] if others else [], version=version.version)
    registry.set_tags(version, {RUN_ID_TAG: str(chosen)})
    if min(registry.holders(version.model, str(chosen), version.workspace), default=version.version) < version.version:
        chosen = wanted.unique([wanted], version=version.version)
        registry.set_tags(version, {RUN_ID_TAG: str(chosen)})
    return chosen
