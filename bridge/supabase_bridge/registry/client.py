"""MLflow's model registry through its client: read models and versions, write tags, make transitions.

Each method documents how many calls it makes; over REST each call is a round trip.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property

import mlflow
import mlflow.environment_variables
from mlflow.entities.model_registry import ModelVersion
from mlflow.entities.model_registry import RegisteredModel as MlflowModel
from mlflow.exceptions import MlflowException

from supabase_bridge.core.events import DEFAULT_WORKSPACE
from supabase_bridge.core.tags import RUN_ID_TAG
from supabase_bridge.core.text import for_database, time_from_ms
from supabase_bridge.outbox.errors import RegistryUnavailableError
from supabase_bridge.registry.errors import ModelNotFoundError, RegistryRefusedError, VersionNotFoundError

_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_REFUSED = {*_ABSENT, "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED", "INVALID_STATE"}
_TAG_LIMIT = 5_000
_PAGE = 1_000
_NO_TIME = datetime(1970, 1, 1, tzinfo=timezone.utc)
_UNQUOTABLE = re.compile(r"""['"\\\x00-\x1f\x7f]""")


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A registered model as the registry has it now.

    Attributes:
        newest: The newest version of each stage, by its number; MLflow returns them with the model.
    """

    workspace: str
    name: str
    tags: Mapping[str, str]
    newest: Mapping[int, RegisteredVersion]


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A model version as the registry has it now; `source` is a client's text."""

    workspace: str
    model: str
    version: int
    stage: str
    aliases: frozenset[str]
    tags: Mapping[str, str]
    run_id: str | None
    description: str
    created_at: datetime
    source: str = ""


class Registry:
    """A model registry, through MLflow's own client. Nothing is cached: each call reads the registry as it is now.

    Args:
        tracking_uri: Source of the runs: a database URL or an MLflow server.
        registry_uri: Source of the versions, and target of the tags; a `supabase+` URI captures transitions.

    Raises (every method):
        RegistryUnavailableError: MLflow did not answer, or answered with a temporary error.
        RegistryRefusedError: MLflow refused the call.
    """

    def __init__(self, *, tracking_uri: str, registry_uri: str) -> None:
        self._tracking_uri = tracking_uri
        self._registry_uri = registry_uri

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        """MLflow's client, made at the first call: it imports MLflow's stores, which takes half a second."""
        return mlflow.MlflowClient(tracking_uri=self._tracking_uri, registry_uri=self._registry_uri)

    def prepare(self) -> None:
        """Make MLflow's client now, so that the first call finds it."""
        _ = self.client

    def models(self, workspace: str = DEFAULT_WORKSPACE) -> list[str]:
        """Return the names of all registered models, sorted, without prompts. One call for each thousand models."""
        with mlflow_errors("list the registered models", workspace):
            return sorted(model.name for model in self._all_models())

    def version(self, model: str, version: int, workspace: str = DEFAULT_WORKSPACE) -> RegisteredVersion:
        """Return one version, with its tags and aliases. One call.

        Raises:
            VersionNotFoundError: the version does not exist, or was deleted.
        """
        with mlflow_errors(f"read {model} version {version}", workspace, VersionNotFoundError(model, version)):
            return _registered(workspace, model, self.client.get_model_version(model, str(version)))

    def versions(self, model: str, workspace: str = DEFAULT_WORKSPACE) -> list[RegisteredVersion]:
        """Return all versions of a model, the oldest first; none for an unknown model. One call for each thousand."""
        return self._search(model, workspace)

    def versions_with_run_id(self, model: str, run_id: str, workspace: str = DEFAULT_WORKSPACE) -> list[int]:
        """Return the numbers of a model's versions whose tag has this run_id, the oldest first. One call."""
        found = self._search(model, workspace, f" and {_is('tags.`supabase.run_id`', run_id)}")
        return [item.version for item in found if item.tags.get(RUN_ID_TAG) == run_id]

    def metrics(self, run_id: str, workspace: str = DEFAULT_WORKSPACE) -> Mapping[str, float]:
        """Return the newest value of each metric of a run. One call."""
        with mlflow_errors(f"read run {run_id}", workspace):
            return dict(self.client.get_run(run_id).data.metrics)

    def params(self, run_id: str, workspace: str = DEFAULT_WORKSPACE) -> Mapping[str, str]:
        """Return the params of a run. One call."""
        with mlflow_errors(f"read run {run_id}", workspace):
            return dict(self.client.get_run(run_id).data.params)

    def model(self, name: str, workspace: str = DEFAULT_WORKSPACE) -> RegisteredModel:
        """Return a registered model with its tags and newest versions. One call.

        Raises:
            ModelNotFoundError: the model does not exist.
        """
        with mlflow_errors(f"read model {name}", workspace, ModelNotFoundError(name)):
            found = self.client.get_registered_model(name)
        newest: dict[int, RegisteredVersion] = {}
        for item in found.latest_versions or ():
            number = int(item.version)
            # MLflow returns these versions without their aliases.
            aliases = frozenset(alias for alias, target in (found.aliases or {}).items() if int(target) == number)
            newest[number] = replace(_registered(workspace, name, item), aliases=aliases)
        return RegisteredModel(workspace=workspace, name=name, tags=dict(found.tags or {}), newest=newest)

    def models_named(self, tag: str, value: str, workspace: str, *, by_name: bool = True) -> list[str]:
        """Return the names of the models that have a tag with this value, or that lack the tag and have this name.

        One call, and another one with `by_name`.

        Args:
            by_name: False omits the models without the tag. Names are unique: if the caller's own model has this name,
                no other model has it.
        """
        with mlflow_errors(f"search models by tag {tag}", workspace):
            found = list(self._all_models(_is(f"tags.`{tag}`", value)))
            if by_name:
                found += self._all_models(_is("name", value))
            # A database may compare without case, and `_is` may find similar texts.
            return sorted({model.name for model in found if (model.tags or {}).get(tag, model.name) == value})

    def set_model_tag(self, model: str, key: str, value: str, workspace: str = DEFAULT_WORKSPACE) -> None:
        """Write a tag of a registered model. One call."""
        with mlflow_errors(f"write tag {key} of {model}", workspace, ModelNotFoundError(model)):
            self.client.set_registered_model_tag(model, key, value)

    def set_tags(self, version: RegisteredVersion, tags: Mapping[str, str | None]) -> None:
        """Set tags of a version; None deletes a tag. One call for each tag that differs from `version.tags`.

        Texts are cut and escaped as `for_database` does.

        Raises:
            VersionNotFoundError: the version was deleted meanwhile.
        """
        model, number = version.model, str(version.version)
        absent = VersionNotFoundError(model, version.version)
        with mlflow_errors(f"write the tags of {model} version {number}", version.workspace, absent):
            for key, value in tags.items():
                if value is None:
                    if key in version.tags:
                        self.client.delete_model_version_tag(model, number, key)
                elif version.tags.get(key) != (text := for_database(value, limit=_TAG_LIMIT)):
                    self.client.set_model_version_tag(model, number, key, text)

    def promote(self, model: str, version: int, stage: str, workspace: str = DEFAULT_WORKSPACE) -> None:
        """Move a version to a stage and archive the other versions there, as an operator does in MLflow's UI.

        Raises:
            VersionNotFoundError: the version does not exist.
        """
        absent = VersionNotFoundError(model, version)
        with mlflow_errors(f"move {model} version {version} to {stage}", workspace, absent), warnings.catch_warnings():
            # Stages are deprecated in the Python client only; the REST API and the UI still have them.
            warnings.simplefilter("ignore", FutureWarning)
            self.client.transition_model_version_stage(model, str(version), stage, archive_existing_versions=True)

    def set_alias(self, model: str, alias: str, version: int, workspace: str = DEFAULT_WORKSPACE) -> None:
        """Assign an alias to a version; the version that had it loses it.

        Raises:
            VersionNotFoundError: the version does not exist.
        """
        with mlflow_errors(f"set alias {alias} of {model}", workspace, VersionNotFoundError(model, version)):
            self.client.set_registered_model_alias(model, alias, str(version))

    def _all_models(self, filter_string: str | None = None) -> Iterator[MlflowModel]:
        token: str | None = None
        while True:
            page = self.client.search_registered_models(filter_string, max_results=_PAGE, page_token=token)
            yield from page
            if not (token := page.token):
                return

    def _search(self, model: str, workspace: str, condition: str = "") -> list[RegisteredVersion]:
        filter_string = f"{_is('name', model)}{condition}"
        with mlflow_errors("search model versions", workspace):
            found: list[RegisteredVersion] = []
            token: str | None = None
            while True:
                page = self.client.search_model_versions(filter_string, max_results=_PAGE, page_token=token)
                # MySQL may store a name in another case; a pattern may find similar names.
                found += [
                    _registered(workspace, model, item)
                    for item in page
                    if item.name == model or not _UNQUOTABLE.search(model)
                ]
                if not (token := page.token):
                    return sorted(found, key=lambda item: item.version)


def _registered(workspace: str, model: str, found: ModelVersion) -> RegisteredVersion:
    """Convert a version; its model has the requested name, which MySQL may store in another case."""
    return RegisteredVersion(
        workspace=workspace,
        model=model,
        version=int(found.version),
        stage=found.current_stage or "None",
        aliases=frozenset(found.aliases or ()),
        tags=dict(found.tags or {}),
        run_id=found.run_id or None,
        description=found.description or "",
        created_at=time_from_ms(found.creation_timestamp) or _NO_TIME,
        source=found.source or "",
    )


def _is(field: str, text: str) -> str:
    """Return the condition that a field has this text.

    MLflow's search language has no escapes. A text that it cannot quote becomes a pattern, which may find similar
    texts too.
    """
    if not _UNQUOTABLE.search(text):
        return f"{field} = '{text}'"
    pattern = _UNQUOTABLE.sub("_", text)
    return f"{field} LIKE '{pattern}'"


@contextmanager
def mlflow_errors(
    operation: str, workspace: str = DEFAULT_WORKSPACE, absent: Exception | None = None
) -> Iterator[None]:
    """Run calls of MLflow's client in a workspace, and translate its errors.

    Args:
        operation: What failed, for the message: "MLflow could not `operation`".
        absent: Raised if MLflow answers that the object does not exist.
    """
    try:
        with _in_workspace(workspace):
            yield
    except MlflowException as error:
        if absent is not None and error.error_code in _ABSENT:
            raise absent from error
        kind = RegistryRefusedError if error.error_code in _REFUSED else RegistryUnavailableError
        raise kind(operation, str(error).split("\n")[0][:300]) from error


def _in_workspace(workspace: str) -> AbstractContextManager[object]:
    """Select a workspace if MLflow has workspaces enabled; MLflow 2.22 has none."""
    enabled = getattr(mlflow.environment_variables, "MLFLOW_ENABLE_WORKSPACES", None)
    if enabled is None or not enabled.get():
        return nullcontext()
    from mlflow.utils.workspace_context import WorkspaceContext

    context: AbstractContextManager[object] = WorkspaceContext(workspace)
    return context
