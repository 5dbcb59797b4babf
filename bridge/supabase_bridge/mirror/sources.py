"""Find a model version's files and the facts of its training in MLflow.

Any client of MLflow can choose a version's `source`. A source outside the roots that the settings allow is refused. It
lies inside the directory of the version's own run or logged model; a version without a run may name another directory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

from supabase_bridge.core.text import time_from_ms
from supabase_bridge.mirror.errors import OutsideRootsError, RootMissingError, SourceRefusedError
from supabase_bridge.mirror.metadata import Dataset, RunInfo
from supabase_bridge.mirror.source_files import BucketFolder, SourceFolder
from supabase_bridge.outbox.artifact_roots import NO_ARTIFACT_ROOTS, ArtifactRoots
from supabase_bridge.registry.client import RegisteredVersion, Registry, mlflow_errors
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore

_MODEL_ID = re.compile(r"\bm-[0-9a-f]{32}\b")


@dataclass(frozen=True, kw_only=True)
class VersionSource:
    """The folders of a version's files, and the facts of its training.

    Attributes:
        model_folder: The version's model directory.
        run_folder: Its run's artifacts; None for a version without a run.
        running: True until the run ends; a training may still log to it.
    """

    model_folder: SourceFolder
    run_folder: SourceFolder | None
    facts: RunInfo
    running: bool


def destination(settings: Settings, recorded: ArtifactRoots) -> str:
    """Return the place behind `mlflow-artifacts:/`: the operator's setting, else the server's own, else the default."""
    own = settings.artifacts_destination
    return own if settings.names_artifacts else recorded.artifacts_destination or own


class Sources:
    """Finds the sources of model versions.

    Args:
        open_store: Opens the object store of a bucket by its name; None: files in the project are fetched like others.
        recorded: Reads the artifact roots of the MLflow server. They are trusted; a destination in the settings comes
            first.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        *,
        open_store: Callable[[str], ObjectStore] | None = None,
        recorded: Callable[[], ArtifactRoots] = lambda: NO_ARTIFACT_ROOTS,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._open_store = open_store
        self._recorded = recorded

    def locate(self, version: RegisteredVersion) -> VersionSource:
        """Find the folders of a version's files, and read the facts of its training.

        Raises:
            SourceRefusedError: its files lie outside the allowed roots.
            RootMissingError: the root of its files does not exist on this machine.
            RegistryUnavailableError: MLflow did not answer.
        """
        return _Search(self._registry, self._settings, self._recorded(), self._open_store).locate(version)

    def check_place(self, place: str, workspace: str) -> None:
        """Refuse the place of a version's files without asking MLflow; it is no reference to a run or another model.

        Raises:
            OutsideRootsError, RootMissingError: see `locate`.
        """
        search = _Search(self._registry, self._settings, self._recorded(), self._open_store)
        search.check_place(place, workspace)


class _Search:
    """The search for the files of one version, with the roots that are trusted now."""

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        recorded: ArtifactRoots,
        open_store: Callable[[str], ObjectStore] | None,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._open_store = open_store
        self._default_root = recorded.default_artifact_root
        self._destination = destination(settings, recorded)

    def locate(self, version: RegisteredVersion) -> VersionSource:
        """See `Sources.locate`."""
        client = self._registry.client
        with mlflow_errors(f"find the files of {version.model} version {version.version}", version.workspace):
            model_uri = client.get_model_version_download_uri(version.model, str(version.version))
            run = client.get_run(version.run_id) if version.run_id else None
            run_uri = None if run is None else run.info.artifact_uri
            located = self._locate(model_uri, hops=5)
            run_folder = self._folder(self._locate(run_uri, hops=5), version.workspace) if run_uri else None
            model_folder = self._folder(located, version.workspace, alone=version.run_id is None)
            self._check_own(version, located, None if run_folder is None else run_folder.uri)
        running = run is not None and run.info.status in {"RUNNING", "SCHEDULED"}
        facts = _facts(version, run)
        return VersionSource(model_folder=model_folder, run_folder=run_folder, facts=facts, running=running)

    def check_place(self, place: str, workspace: str) -> None:
        """See `Sources.check_place`."""
        located = self._locate(place, hops=1)
        self._check_allowed(located, _local_path(located), workspace)

    def _check_own(self, version: RegisteredVersion, located: str, run_place: str | None) -> None:
        """Refuse a place outside the directories of the version's own run and logged model."""
        local_path = _local_path(located)
        owners = [] if run_place is None else [run_place]
        if any(_below(owner, located, local_path) for owner in owners):
            return
        owners += self._owners(version.source, version.run_id, hops=5)
        owners += [
            place
            for model_id in _MODEL_ID.findall(located)
            for place, run_id in [self._logged_model(model_id)]
            if run_id == version.run_id
        ]
        if any(_below(owner, located, local_path) for owner in owners):
            return
        if version.run_id is not None or urlsplit(version.source).scheme in {"runs", "models"}:
            raise SourceRefusedError.of_another_run(version.source)
        if any(_is_root(root, located, local_path) for root in self._roots(version.workspace)):
            raise SourceRefusedError.holds_runs(version.source)

    def _owners(self, source: str, run_id: str | None, *, hops: int) -> list[str]:
        """Return the directories of the runs and logged models that a chain of references names."""
        parts = urlsplit(source)
        name, _, rest = unquote(parts.path).strip("/").partition("/")
        client = self._registry.client
        if hops == 0 or parts.scheme not in {"runs", "models"}:
            return []
        if parts.scheme == "runs":
            # A version with a run has this run alone.
            return [] if run_id is not None else [self._locate(client.get_run(name).info.artifact_uri, hops=hops)]
        if name.startswith("m-"):
            return [self._logged_model(name)[0]]
        named = client.get_model_version(name, rest)
        run = None if named.run_id is None else client.get_run(named.run_id)
        places = [] if run is None else [self._locate(run.info.artifact_uri, hops=hops)]
        return places + self._owners(named.source or "", named.run_id, hops=hops - 1)

    def _logged_model(self, model_id: str) -> tuple[str, str | None]:
        """Return the directory of a logged model, and the run that logged it. MLflow 2.22 has no logged models."""
        read = getattr(self._registry.client, "get_logged_model", None)
        if read is None:
            raise SourceRefusedError(f"models:/{model_id}", "this version of MLflow has no logged models")
        found = read(model_id)
        return self._locate(found.artifact_location, hops=1), found.source_run_id or None

    def _folder(self, located: str, workspace: str, *, alone: bool = False) -> SourceFolder:
        local_root = _local_path(located)
        self._check_allowed(located, local_root, workspace)
        # MLflow decodes percent signs in a local path too, so it gets the resolved path that was checked.
        address = self._address(located) if local_root is None else local_root.resolve().as_uri()
        return SourceFolder(
            located,
            get_artifact_repository(address),
            local_root,
            bucket_folder=self._bucket_folder(located),
            alone=alone,
        )

    def _bucket_folder(self, uri: str) -> BucketFolder | None:
        """Return the folder in one of the project's buckets of artifacts; None for every other place."""
        scheme, _, rest = uri.partition("://")
        bucket, _, prefix = rest.partition("/")
        if self._open_store is None or scheme != "supabase" or bucket not in self._settings.artifact_buckets:
            return None
        return BucketFolder(self._open_store(bucket), bucket, prefix.strip("/"))

    def _address(self, uri: str) -> str:
        """Return the address for MLflow's client; by itself it would use its global tracking URI instead of ours."""
        server = self._settings.tracking_uri
        served = server is not None and urlsplit(uri).scheme == "mlflow-artifacts"
        return str(MlflowArtifactsRepository.resolve_uri(uri, server)) if served else uri

    def _locate(self, uri: str, *, hops: int) -> str:
        """Follow MLflow's references to the place of the files."""
        parts = urlsplit(uri)
        path = unquote(parts.path).strip("/")
        client = self._registry.client
        if hops == 0:
            raise SourceRefusedError(uri, "it is a chain of references, not a place")
        if parts.scheme == "runs":
            run_id, _, below = path.partition("/")
            return self._locate(_join(client.get_run(run_id).info.artifact_uri, below), hops=hops - 1)
        if parts.scheme == "models" and path.startswith("m-"):
            model_id, _, below = path.partition("/")
            return self._locate(_join(self._logged_model(model_id)[0], below), hops=hops - 1)
        if parts.scheme == "models":
            name, _, number = path.partition("/")
            return self._locate(client.get_model_version_download_uri(name, number), hops=hops - 1)
        in_project = self._destination.startswith("supabase://") and not parts.netloc
        if parts.scheme == "mlflow-artifacts" and (self._settings.tracking_uri is None or in_project):
            return _join(self._destination, path)
        return uri

    def _check_allowed(self, uri: str, local_path: Path | None, workspace: str) -> None:
        """Refuse a place outside the allowed roots, and one whose root does not exist on this machine."""
        allowed = self._roots(workspace)
        above = [root for root in allowed if _below(root, uri, local_path)]
        if not above:
            raise OutsideRootsError(uri, allowed)
        local_roots = [path for root in above if (path := _local_path(root)) is not None]
        # In the home itself nothing is mounted: its directory of artifacts is made with the first one.
        if local_roots and not any(path.is_dir() or path.is_relative_to(self._settings.home) for path in local_roots):
            raise RootMissingError(uri, local_roots[0])

    def _roots(self, workspace: str) -> tuple[str, ...]:
        """Return the allowed roots; another workspace's bucket is not among them."""
        own = self._settings.bucket_of(workspace)
        names = sorted({*self._settings.artifact_buckets, *([] if own is None else [own])})
        buckets = [f"supabase://{bucket}" for bucket in names]
        # The tracking server's own artifacts; with a host in the URI MLflow would call that host instead.
        served = () if self._settings.tracking_uri is None else ("mlflow-artifacts:",)
        default_root = () if self._default_root is None else (self._default_root,)
        destinations = dict.fromkeys((self._destination, self._settings.artifacts_destination))
        return (*destinations, *default_root, *self._settings.allowed_sources, *served, *buckets)


def _below(root: str, uri: str, local_path: Path | None) -> bool:
    local_root = _local_path(root)
    if local_path is not None:
        return local_root is not None and local_path.resolve().is_relative_to(local_root.resolve())
    if local_root is not None or ".." in unquote(urlsplit(uri).path).split("/"):
        return False
    if urlsplit(uri).netloc != urlsplit(root).netloc:
        return False
    return uri == root.rstrip("/") or uri.startswith(root.rstrip("/") + "/")


def _is_root(root: str, uri: str, local_path: Path | None) -> bool:
    """Return whether a place below a root, or above it, is the root itself."""
    local_root = _local_path(root)
    if local_path is not None or local_root is not None:
        return local_path is not None and local_root is not None and local_root.resolve() == local_path.resolve()
    return _parts(uri) == _parts(root)


def _parts(uri: str) -> tuple[str, str, list[str]]:
    parts = urlsplit(uri)
    return parts.scheme, parts.netloc, [part for part in unquote(parts.path).split("/") if part not in {"", "."}]


def _local_path(uri: str) -> Path | None:
    """Return the local path of a URI, or None for a URI of another kind."""
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return Path(unquote(parts.path))
    return Path(uri) if parts.scheme == "" else None


def _join(uri: str | None, path: str) -> str:
    return f"{(uri or '').rstrip('/')}/{path}" if path else uri or ""


def _place(dataset_source: str) -> str:
    """Return the place that a dataset's source names; MLflow stores it as JSON in one of several forms."""
    try:
        value = json.loads(dataset_source)
    except ValueError:
        return dataset_source
    found = [value[name] for name in ("uri", "url", "path") if name in value] if isinstance(value, dict) else []
    return str(found[0]) if found else dataset_source


def _facts(version: RegisteredVersion, run: Run | None) -> RunInfo:
    if run is None:
        return RunInfo(ended_at=version.created_at.replace(microsecond=0), description=version.description)
    # Clients of MLflow write these numbers, so that one may be no time at all.
    ended_at = time_from_ms(run.info.end_time) or time_from_ms(run.info.start_time) or version.created_at
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return RunInfo(
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
