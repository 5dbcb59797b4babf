"""MLflow's model registry as the worker needs it: read versions, read and write tags, make transitions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone

import mlflow
import mlflow.environment_variables
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from supabase_bridge.errors import (
    ModelNotFoundError,
    RegistryRefusedError,
    RegistryUnavailableError,
    VersionNotFoundError,
)
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE
from supabase_bridge.storable import storable

_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_REFUSED = {*_ABSENT, "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED", "INVALID_STATE"}
_TAG_LIMIT = 5_000
_PAGE = 1_000


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A model version as the registry has it now."""

    workspace: str
    model: str
    version: int
    stage: str
    aliases: frozenset[str]
    tags: Mapping[str, str]
    run_id: str | None
    description: str
    created_at: datetime


class Registry:
    """A model registry, through MLflow's own client.

    Args:
        tracking_uri: Where runs are read from: a database URL or an MLflow server.
        registry_uri: Where versions are read from and tags written to; a `supabase+` URI captures transitions.

    Raises (every method):
        RegistryUnavailableError: MLflow did not answer, or answered with an error that may pass.
        RegistryRefusedError: MLflow answered that it will not do this.
    """

    def __init__(self, *, tracking_uri: str, registry_uri: str) -> None:
        self.client = mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)

    def models(self, workspace: str = DEFAULT_WORKSPACE) -> list[str]:
        """The names of all registered models, sorted; prompts left out."""
        with mlflow_errors("list the registered models", workspace):
            return sorted(model.name for model in self._all_models())

    def version(self, model: str, version: int, workspace: str = DEFAULT_WORKSPACE) -> RegisteredVersion:
        """One version.

        Raises:
            VersionNotFoundError: there is none, or it was deleted.
        """
        with mlflow_errors(f"read {model} version {version}", workspace, VersionNotFoundError(model, version)):
            return _registered(workspace, model, self.client.get_model_version(model, str(version)))

    def versions(self, model: str, workspace: str = DEFAULT_WORKSPACE) -> list[RegisteredVersion]:
        """All versions of a model, the oldest first; none for an unknown model."""
        return self._search(model, workspace)

    def holders(self, model: str, run_id: str, workspace: str = DEFAULT_WORKSPACE) -> list[int]:
        """The versions of a model that carry a run_id in their tag, the oldest first."""
        found = self._search(model, workspace, f" and tags.`supabase.run_id` = {_quoted(run_id)}")
        return [item.version for item in found]

    def metrics(self, run_id: str, workspace: str = DEFAULT_WORKSPACE) -> Mapping[str, float]:
        """The newest value of each metric of a run."""
        with mlflow_errors(f"read run {run_id}", workspace):
            return dict(self.client.get_run(run_id).data.metrics)

    def model_tags(self, model: str, workspace: str = DEFAULT_WORKSPACE) -> Mapping[str, str]:
        """A registered model's tags.

        Raises:
            ModelNotFoundError: there is no such model.
        """
        with mlflow_errors(f"read model {model}", workspace, ModelNotFoundError(model)):
            return dict(self.client.get_registered_model(model).tags)

    def models_claiming(self, tag: str, value: str, workspace: str) -> list[str]:
        """The names of the registered models that have a tag with this value, or have no such tag and are called so."""
        with mlflow_errors(f"search models by tag {tag}", workspace):
            filters = (f"tags.`{tag}` = {_quoted(value)}", f"name = {_quoted(value)}")
            found = [model for text in filters for model in self._all_models(text)]
            # A database may find what differs in case.
            return sorted({model.name for model in found if (model.tags or {}).get(tag, model.name) == value})

    def set_model_tag(self, model: str, key: str, value: str, workspace: str = DEFAULT_WORKSPACE) -> None:
        """Write a registered model's tag."""
        with mlflow_errors(f"write tag {key} of {model}", workspace, ModelNotFoundError(model)):
            self.client.set_registered_model_tag(model, key, value)

    def set_tags(self, version: RegisteredVersion, tags: Mapping[str, str | None]) -> None:
        """Make a version's tags these; None removes one. What is so already is not written. Longer texts are cut.

        What no database takes is shown, see `storable`.

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
                elif version.tags.get(key) != (text := storable(value, limit=_TAG_LIMIT)):
                    self.client.set_model_version_tag(model, number, key, text)

    def promote(self, model: str, version: int, stage: str, workspace: str = DEFAULT_WORKSPACE) -> None:
        """Move a version to a stage and archive the others there, as a person would in the UI.

        Raises:
            VersionNotFoundError: there is none.
        """
        absent = VersionNotFoundError(model, version)
        with mlflow_errors(f"move {model} version {version} to {stage}", workspace, absent), warnings.catch_warnings():
            # Stages are deprecated in the Python client only; the registry and its UI go on with them.
            warnings.simplefilter("ignore", FutureWarning)
            self.client.transition_model_version_stage(model, str(version), stage, archive_existing_versions=True)

    def set_alias(self, model: str, alias: str, version: int, workspace: str = DEFAULT_WORKSPACE) -> None:
        """Give a version an alias, and take it from the version that has it.

        Raises:
            VersionNotFoundError: there is none.
        """
        with mlflow_errors(f"set alias {alias} of {model}", workspace, VersionNotFoundError(model, version)):
            self.client.set_registered_model_alias(model, alias, str(version))

    def _all_models(self, filter_string: str | None = None) -> Iterator[RegisteredModel]:
        token: str | None = None
        while True:
            page = self.client.search_registered_models(filter_string, max_results=_PAGE, page_token=token)
            yield from page
            if not (token := page.token):
                return

    def _search(self, model: str, workspace: str, condition: str = "") -> list[RegisteredVersion]:
        filter_string = f"name = {_quoted(model)}{condition}"
        with mlflow_errors("search model versions", workspace):
            found: list[RegisteredVersion] = []
            token: str | None = None
            while True:
                page = self.client.search_model_versions(filter_string, max_results=_PAGE, page_token=token)
                found += [_registered(workspace, model, item) for item in page]
                if not (token := page.token):
                    return sorted(found, key=lambda item: item.version)


def _registered(workspace: str, model: str, found: ModelVersion) -> RegisteredVersion:
    """A version as a value; its model is called as it was asked for, which MySQL may have in another case."""
    return RegisteredVersion(
        workspace=workspace,
        model=model,
        version=int(found.version),
        stage=found.current_stage or "None",
        aliases=frozenset(found.aliases or ()),
        tags=dict(found.tags or {}),
        run_id=found.run_id or None,
        description=found.description or "",
        created_at=datetime.fromtimestamp(found.creation_timestamp / 1_000, tz=timezone.utc),
    )


def _quoted(text: str) -> str:
    """A text in MLflow's search language, which knows no escapes: the other quotation mark helps."""
    return f'"{text}"' if "'" in text else f"'{text}'"


@contextmanager
def mlflow_errors(
    operation: str, workspace: str = DEFAULT_WORKSPACE, absent: Exception | None = None
) -> Iterator[None]:
    """Run calls of MLflow's client in a workspace, and give its errors our names."""
    try:
        with _in_workspace(workspace):
            yield
    except MlflowException as error:
        if absent is not None and error.error_code in _ABSENT:
            raise absent from error
        kind = RegistryRefusedError if error.error_code in _REFUSED else RegistryUnavailableError
        raise kind(operation, str(error).split("\n")[0][:300]) from error


def _in_workspace(workspace: str) -> AbstractContextManager[object]:
    """Where workspaces are on, MLflow's stores want one named; where they are off, or unknown (2.22), there is one."""
    enabled = getattr(mlflow.environment_variables, "MLFLOW_ENABLE_WORKSPACES", None)
    if enabled is None or not enabled.get():
        return nullcontext()
    from mlflow.utils.workspace_context import WorkspaceContext

    context: AbstractContextManager[object] = WorkspaceContext(workspace)
    return context
