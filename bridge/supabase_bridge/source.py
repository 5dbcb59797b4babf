"""A model version's files and the facts of its training, wherever MLflow keeps them.

What is read is bounded by the settings: whoever can write to MLflow chooses a version's `source`, so a source outside
the allowed roots is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

from supabase_bridge.completion import Dataset, TrainingFacts
from supabase_bridge.config import Settings
from supabase_bridge.errors import SourceNotAllowedError
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.registry import RegisteredVersion, Registry, mlflow_errors
from supabase_bridge.shelf import Shelf
from supabase_bridge.source_folder import SourceFolder


@dataclass(frozen=True, kw_only=True)
class VersionSource:
    """Where a version's files are, and what is known of its training.

    Attributes:
        model_folder: The version's model directory.
        run_folder: Its run's artifacts; None for a version without a run.
        running: True while the run has not ended, so that more may still be logged to it.
    """

    model_folder: SourceFolder
    run_folder: SourceFolder | None
    facts: TrainingFacts
    running: bool


class Sources:
    """Finds the sources of model versions.

    Args:
        open_store: From a bucket's name to its object store; None: what lies in the project is fetched like the rest.
    """

    def __init__(
        self, registry: Registry, settings: Settings, *, open_store: Callable[[str], ObjectStore] | None = None
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._open_store = open_store

    def of(self, version: RegisteredVersion) -> VersionSource:
        """The source of a version.

        Raises:
            SourceNotAllowedError: its files lie outside the roots that the settings allow.
            RegistryUnavailableError: MLflow did not answer.
        """
        client = self._registry.client
        with mlflow_errors(f"find the files of {version.model} version {version.version}", version.workspace):
            model_uri = client.get_model_version_download_uri(version.model, str(version.version))
            run = client.get_run(version.run_id) if version.run_id else None
            run_uri = None if run is None else run.info.artifact_uri
            model_folder = self._folder(model_uri, version.workspace)
            run_folder = self._folder(run_uri, version.workspace) if run_uri else None
        running = run is not None and run.info.status in {"RUNNING", "SCHEDULED"}
        facts = _facts(version, run)
        return VersionSource(model_folder=model_folder, run_folder=run_folder, facts=facts, running=running)

    def _folder(self, uri: str, workspace: str) -> SourceFolder:
        located = self._locate(uri, hops=5)
        local_root = _local_path(located)
        self._check_allowed(located, local_root, workspace)
        # MLflow decodes percent signs in a local path too: it gets the very path that was checked.
        address = self._address(located) if local_root is None else local_root.resolve().as_uri()
        return SourceFolder(located, get_artifact_repository(address), local_root, shelf=self._shelf(located))

    def _shelf(self, uri: str) -> Shelf | None:
        """A folder in one of the buckets of artifacts; the buckets of releases are read through their records only."""
        scheme, _, rest = uri.partition("://")
        bucket, _, prefix = rest.partition("/")
        if self._open_store is None or scheme != "supabase" or bucket not in self._settings.artifact_buckets:
            return None
        return Shelf(self._open_store(bucket), bucket, prefix.strip("/"))

    def _address(self, uri: str) -> str:
        """Where MLflow's client gets a place from; left to itself, it asks its global tracking URI, not ours."""
        server = self._settings.tracking_uri
        served = server is not None and urlsplit(uri).scheme == "mlflow-artifacts"
        return str(MlflowArtifactsRepository.resolve_uri(uri, server)) if served else uri

    def _locate(self, uri: str, *, hops: int) -> str:
        """Follow MLflow's indirections to the place where the bytes are."""
        parts = urlsplit(uri)
        path = unquote(parts.path).strip("/")
        client = self._registry.client
        if hops == 0:
            raise SourceNotAllowedError(uri, ("a place, not a chain of references",))
        if parts.scheme == "runs":
            run_id, _, below = path.partition("/")
            return self._locate(_join(client.get_run(run_id).info.artifact_uri, below), hops=hops - 1)
        if parts.scheme == "models" and path.startswith("m-"):
            model_id, _, below = path.partition("/")
            return self._locate(_join(client.get_logged_model(model_id).artifact_location, below), hops=hops - 1)
        if parts.scheme == "models":
            name, _, number = path.partition("/")
            return self._locate(client.get_model_version_download_uri(name, number), hops=hops - 1)
        destination = self._settings.artifacts_destination
        in_project = destination.startswith("supabase://") and not parts.netloc
        if parts.scheme == "mlflow-artifacts" and (self._settings.tracking_uri is None or in_project):
            return _join(destination, path)
        return uri

    def _check_allowed(self, uri: str, local_path: Path | None, workspace: str) -> None:
        """Refuse what is outside the allowed roots; another workspace's bucket is."""
        own = self._settings.bucket_of(workspace)
        names = sorted({*self._settings.artifact_buckets, *([] if own is None else [own])})
        buckets = [f"supabase://{bucket}" for bucket in names]
        # The tracking server's own artifacts; a host in the URI would be asked instead of the server.
        served = () if self._settings.tracking_uri is None else ("mlflow-artifacts:",)
        allowed = (self._settings.artifacts_destination, *self._settings.allowed_sources, *served, *buckets)
        if not any(_below(root, uri, local_path) for root in allowed):
            raise SourceNotAllowedError(uri, allowed)


def _below(root: str, uri: str, local_path: Path | None) -> bool:
    local_root = _local_path(root)
    if local_path is not None:
        return local_root is not None and local_path.resolve().is_relative_to(local_root.resolve())
    if local_root is not None or ".." in unquote(urlsplit(uri).path).split("/"):
        return False
    if urlsplit(uri).netloc != urlsplit(root).netloc:
        return False
    return uri == root.rstrip("/") or uri.startswith(root.rstrip("/") + "/")


def _local_path(uri: str) -> Path | None:
    """The local path that a URI names, or None for one that is not local."""
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return Path(unquote(parts.path))
    return Path(uri) if parts.scheme == "" else None


def _join(uri: str | None, path: str) -> str:
    return f"{(uri or '').rstrip('/')}/{path}" if path else uri or ""


def _place(dataset_source: str) -> str:
    """The place that a dataset's source names; MLflow keeps it as JSON of one of several forms."""
    try:
        value = json.loads(dataset_source)
    except ValueError:
        return dataset_source
    found = [value[name] for name in ("uri", "url", "path") if name in value] if isinstance(value, dict) else []
    return str(found[0]) if found else dataset_source


def _facts(version: RegisteredVersion, run: Run | None) -> TrainingFacts:
    if run is None:
        return TrainingFacts(ended_at=version.created_at.replace(microsecond=0), description=version.description)
    moment = run.info.end_time or run.info.start_time
    ended_at = version.created_at if moment is None else datetime.fromtimestamp(moment / 1_000, tz=timezone.utc)
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return TrainingFacts(
        ended_at=ended_at.replace(microsecond=0),
        mlflow_run_id=run.info.run_id,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        datasets=tuple(
            Dataset(
                name=item.dataset.name,
                digest=item.dataset.digest,
                source=_place(item.dataset.source),
                context=next((tag.value for tag in item.tags if tag.key == "mlflow.data.context"), None),
            )
            for item in inputs
        ),
        description=version.description,
    )
