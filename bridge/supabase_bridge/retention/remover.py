"""Remove the model files of releases that a plan lets go, in an order of which a crash leaves a valid state."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime

from supabase_bridge.core import tags as status_tags
from supabase_bridge.core.errors import BridgeError, InvalidDocumentError
from supabase_bridge.core.layout import ReleasePaths
from supabase_bridge.core.retention import Removal as Way
from supabase_bridge.core.retention import RetentionPolicy
from supabase_bridge.mirror.errors import ModelFileError, SourceRefusedError
from supabase_bridge.mirror.sources import Sources
from supabase_bridge.registry.client import RegisteredVersion, Registry
from supabase_bridge.registry.errors import VersionNotFoundError
from supabase_bridge.registry.naming import may_be_of
from supabase_bridge.releases.archive import Bucket, archive_release
from supabase_bridge.releases.errors import ReleaseDamagedError, ReleaseNotFoundError
from supabase_bridge.releases.removal import Removal
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.retention.plan import ForeignFolders, PlannedRelease, Planner
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.errors import CorruptObjectError, ObjectNotFoundError

logger = logging.getLogger(__name__)

_BATCH = 50
"""Releases of one model that are marked at once: after the marks, the whole folder of the model is listed again."""

_OF_ONE_RELEASE = (
    CorruptObjectError,
    InvalidDocumentError,
    ModelFileError,
    ObjectNotFoundError,
    ReleaseDamagedError,
    ReleaseNotFoundError,
    SourceRefusedError,
    VersionNotFoundError,
)
"""Errors that keep one release, while the others go on."""

_PYTORCH = (".pt", ".pth", ".pt2")


@dataclass(frozen=True, kw_only=True)
class RemovalResult:
    """What became of a release that the plan let go.

    Attributes:
        problem: Why it stays, or why files of it are left; None: its model files are gone.
    """

    release: PlannedRelease
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Remover:
    """Carries retention out. Idempotent; any number of them may run beside workers, readers and passes.

    Attributes:
        now: The time by the database's clock.
        forget: Forgets what other parts have of a removed release, in a workspace: embeddings, and steps that
            succeeded.
    """

    settings: Settings
    planner: Planner
    registry: Registry
    sources: Sources
    open_store: Callable[[str], ObjectStore]
    now: Callable[[], datetime]
    forget: Callable[[str, ReleasePaths], None] = lambda *_: None

    def run(self, *, model: str | None = None) -> Iterator[RemovalResult]:
        """Remove what the policy lets go, and finish removals that were interrupted.

        Raises:
            ObjectStoreError, RegistryUnavailableError: the run ended early; the next one does the rest.
        """
        for item in self.planner.plan(now=self.now(), model=model):
            if isinstance(item, ForeignFolders):
                continue
            for release in item:
                self._tidy(release)
            for batch in _batches([release for release in item if release.goes]):
                yield from self._remove(batch)

    def _remove(self, planned: Sequence[PlannedRelease]) -> Iterator[RemovalResult]:
        """Mark releases of one folder, plan again, and remove those that nothing uses now."""
        workspace, key = planned[0].workspace, planned[0].paths.model_key
        begun: dict[str, tuple[Removal, bytes]] = {}
        with ExitStack() as undo:
            for release in planned:
                removal = Removal(self._store(workspace), release.paths, attempt=uuid.uuid4().hex)
                try:
                    begun[str(release.paths.run_id)] = removal, removal.begin()
                except _OF_ONE_RELEASE as error:
                    yield RemovalResult(release=release, problem=str(error))
                    continue
                undo.callback(_cancel, removal)
            # An activation either finds the mark, or is found here: by its event, its hold, or the log.
            models = sorted({release.version.model for release in planned if release.version is not None})
            again = self.planner.plan_folder(workspace, key, models, now=self.now())
            for release in again:
                if (found := begun.get(str(release.paths.run_id))) is None:
                    continue
                problem = release.reason
                if release.goes:
                    try:
                        problem = self._remove_one(release, *found)
                    except _OF_ONE_RELEASE as error:
                        problem = str(error)
                yield RemovalResult(release=release, problem=problem)

    def _remove_one(self, release: PlannedRelease, removal: Removal, raw: bytes) -> str | None:
        """Remove one release; the result is the reason why it stays."""
        paths, policy, facts = release.paths, release.policy, release.version
        if policy is None or facts is None:
            return "no policy is set for it"
        version = self.registry.version(facts.model, facts.version, release.workspace)
        if removal.meta.mlflow is None or not may_be_of(removal.meta, version):
            # Any trainer can write the tag that names a release.
            return f"its model_meta.json does not name version {facts.version} of {facts.model}"
        if (problem := self._unrestorable(release, policy, removal, raw, version)) is not None:
            return problem
        self.registry.set_tags(version, status_tags.archived(policy.place))
        if not removal.commit():
            self._tag_complete(facts.model, facts.version, release.workspace)
            return "it is needed now"
        self.forget(release.workspace, paths)
        names = [
            name
            for name in removal.meta.files
            if paths.is_model_file(name) and (policy.then is Way.ARCHIVE or not paths.is_tower(name))
        ]
        if not removal.delete_files(names):
            return "it is being restored now"
        found = {"model": facts.model, "version": facts.version, "run_id": str(paths.run_id)}
        logger.info("the model files of a release were removed", extra=found)
        return None

    def _unrestorable(
        self,
        release: PlannedRelease,
        policy: RetentionPolicy,
        removal: Removal,
        raw: bytes,
        version: RegisteredVersion,
    ) -> str | None:
        """Make sure that the model files can come back, and return why they could not; None: they can.

        Raises:
            ReleaseDamagedError, CorruptObjectError: see `archive_release`.
        """
        if policy.archive_bucket is None:
            return missing_in_mlflow(self.sources, version, removal)
        archive = Bucket(name=policy.archive_bucket, store=self.open_store(policy.archive_bucket))
        if removal.committed:
            verify_release(archive.store, release.paths)
            return None
        bucket = self.settings.bucket_of(release.workspace) or self.settings.bucket
        source = Bucket(name=bucket, store=self._store(release.workspace))
        archive_release(source, archive, release.paths, removal.meta, raw)
        return None

    def _tidy(self, release: PlannedRelease) -> None:
        """Delete marks of killed commands, and correct the tags that an interrupted removal or restoration left."""
        if release.stale:
            self._store(release.workspace).delete(release.stale)
        if (facts := release.version) is None or release.goes:
            return
        if facts.status == status_tags.ARCHIVED and not release.removed and release.model_bytes:
            self._tag_complete(facts.model, facts.version, release.workspace)
        elif facts.status != status_tags.ARCHIVED and release.removed and release.reason is None and release.policy:
            with suppress(VersionNotFoundError):
                version = self.registry.version(facts.model, facts.version, release.workspace)
                self.registry.set_tags(version, status_tags.archived(release.policy.place))

    def _tag_complete(self, model: str, number: int, workspace: str) -> None:
        with suppress(VersionNotFoundError):
            version = self.registry.version(model, number, workspace)
            self.registry.set_tags(version, status_tags.not_archived(version.tags))

    def _store(self, workspace: str) -> ObjectStore:
        return self.open_store(self.settings.bucket_of(workspace) or self.settings.bucket)


def missing_in_mlflow(sources: Sources, version: RegisteredVersion, removal: Removal) -> str | None:
    """Return why MLflow could not give the model files of a release back; None: the files of its training are there.

    Raises:
        SourceRefusedError, RegistryUnavailableError: see `Sources.locate`.
    """
    source, paths = sources.locate(version), removal.paths
    folders = [source.model_folder, *([] if source.run_folder is None else [source.run_folder])]
    found = [file for folder in folders for file in folder.files()]
    for name, record in removal.meta.files.items():
        if not paths.is_model_file(name) or paths.is_tower(name):
            continue
        suffixes = (".onnx",) if name == paths.onnx_name else _PYTORCH if name == paths.state_dict_name else (name,)
        # An ONNX file may have been joined of several.
        sizes = {None, record.size_bytes}
        like = [file for file in found if file.path.lower().endswith(tuple(item.lower() for item in suffixes))]
        if not any(name == paths.onnx_name or file.size_bytes in sizes for file in like):
            return f"MLflow has no file any more from which {name} could be made again"
    return None


def _batches(releases: Sequence[PlannedRelease]) -> Iterator[Sequence[PlannedRelease]]:
    for start in range(0, len(releases), _BATCH):
        yield releases[start : start + _BATCH]


def _cancel(removal: Removal) -> None:
    # A mark that is left behind changes nothing; a later run deletes it.
    if not removal.committed:
        with suppress(BridgeError):
            removal.cancel()
