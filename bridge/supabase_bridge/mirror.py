"""The upload job: lay a model version out as a release, everything but a pointer.

Source: the release specification, section 3, steps 3 and 4.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from supabase_bridge import mlflow_model
from supabase_bridge.activate import VerifiedRelease
from supabase_bridge.channel_log import ChannelLog
from supabase_bridge.checks import Checks
from supabase_bridge.completion import (
    RUN_ID_TAG,
    TrainingFacts,
    complete_meta,
    complete_metrics,
    draft_summary,
    release_notes,
    verdict_of,
    wanted_run_id,
)
from supabase_bridge.documents import LIMIT_BYTES, FileRecord, Metrics, ModelMeta, Origin
from supabase_bridge.draft import Draft, draft_release
from supabase_bridge.errors import (
    InvalidDocumentError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    ReleaseDamagedError,
    ReleaseNotFoundError,
    ReleaseTakenError,
)
from supabase_bridge.gates import NO_GATE, Gate, Verdict
from supabase_bridge.identity import release_run_id
from supabase_bridge.layout import (
    META_NAME,
    METRICS_NAME,
    MLMODEL_NAME,
    SUMMARY_NAME,
    ChannelKeys,
    ReleaseKeys,
    RunId,
)
from supabase_bridge.object_store import JSON_TYPE, MARKDOWN_TYPE, TEXT_TYPE, YAML_TYPE, ObjectStore, Progress
from supabase_bridge.object_store.local_files import temporary_directory
from supabase_bridge.ownership import is_anothers, may_be_of, origin_of
from supabase_bridge.placing import Leftovers, place_all, place_document, place_file
from supabase_bridge.registry import RegisteredVersion, Registry
from supabase_bridge.release_signing import place_signature
from supabase_bridge.selection import Selection
from supabase_bridge.signing import UNSEALED, Seal
from supabase_bridge.source import Sources, VersionSource
from supabase_bridge.verified_releases import VerifiedReleases

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Mirrored:
    """A complete release of a version, just verified.

    Attributes:
        uploaded: False where it was complete already.
        verdict: What the gate says of the version, where it was uploaded and has to meet criteria.
    """

    release: VerifiedRelease
    uploaded: bool
    verdict: Verdict | None = None


class Mirror:
    """Lays versions out as releases in one object store.

    Args:
        baseline_channel: Metrics are compared with the release that is current there.
        seal: What releases are signed with, and whose signatures are believed; by default signatures are off.
        gate: What metrics.json says of the version's metrics is said by it.
        checks: What the model's files go through before any is uploaded.
        verified: What is remembered of releases that were verified before, under the same seal.
    """

    def __init__(
        self,
        registry: Registry,
        sources: Sources,
        store: ObjectStore,
        *,
        baseline_channel: str,
        checks: Checks,
        gate: Gate = NO_GATE,
        seal: Seal = UNSEALED,
        verified: VerifiedReleases | None = None,
    ) -> None:
        self._registry = registry
        self._sources = sources
        self._store = store
        self._baseline_channel = baseline_channel
        self._seal = seal
        self._verified = verified or VerifiedReleases(seal)
        self._gate = gate
        self._checks = checks

    def run(
        self,
        version: RegisteredVersion,
        *,
        model_key: str,
        source: VersionSource | None = None,
        announce: Callable[[int], Progress] | None = None,
    ) -> Mirrored:
        """Make the release of a version complete.

        Idempotent: what is there already is verified and kept, model_meta.json is written last, so that a crash leaves
        an incomplete directory which the next run finishes. Nothing refers to the release yet.

        Args:
            model_key: The model's folder; see `identity.model_key`.
            source: The version's source, where the caller has looked it up already.
            announce: Called once with the number of bytes to move, where any are; returns what is called as they move.

        Raises:
            ModelFileMissingError, ModelFileAmbiguousError, InvalidDocumentError: the version cannot be a release;
                nothing was uploaded.
            InvalidModelFileError, ModelCheckError, UnsafePickleError, CheckInterruptedError: see `Checks.run`; nothing
                was uploaded.
            LocalFileError: this machine has no room for the files.
            ReleaseConflictError: other content lies under the release's keys.
            ReleaseTakenError: the version's tag names the release of another version.
            InvalidRunIdError: see `identity.release_run_id`.
            SourceNotAllowedError: see `Sources.of`.
            ReleaseSignatureError: the release is complete, and no trusted key signed it.
            SigningKeyMissingError, UntrustedLogError: see `Seal` and `ChannelLog.look`.
        """
        if (given := version.tags.get(RUN_ID_TAG)) is not None:
            keys = ReleaseKeys(model_key=model_key, run_id=RunId.parse(given))
            if (release := self._complete(keys, version)) is not None:
                return Mirrored(release=release, uploaded=False)
        source = source or self._sources.of(version)
        with temporary_directory() as directory:
            selection = Selection(source, model=version.model, model_key=model_key, version=version.version)
            draft = draft_release(selection, directory)
            run_id = release_run_id(
                self._registry,
                version,
                wanted_run_id(draft.meta, source.facts),
                occupied=lambda wanted: self._is_anothers(
                    ReleaseKeys(model_key=model_key, run_id=wanted), version, draft
                ),
            )
            keys = ReleaseKeys(model_key=model_key, run_id=run_id)
            progress = None if announce is None else announce(draft.size_bytes)
            verdict = self._upload(draft, keys, source.facts, origin_of(version), progress)
        release = self._verified.verify(self._store, keys)
        facts = {"model": version.model, "version": version.version, "run_id": str(run_id)}
        logger.info("a version was mirrored", extra=facts)
        return Mirrored(release=release, uploaded=True, verdict=verdict)

    def _complete(self, keys: ReleaseKeys, version: RegisteredVersion) -> VerifiedRelease | None:
        """The version's release if it is complete and whole."""
        try:
            release = self._verified.verify(self._store, keys)
        except (ReleaseNotFoundError, ReleaseDamagedError):
            return None
        if (origin := release.meta.mlflow) is not None and not may_be_of(release.meta, version):
            raise ReleaseTakenError(keys.meta, origin.registered_model, origin.version, version.model, version.version)
        return release

    def _is_anothers(self, keys: ReleaseKeys, version: RegisteredVersion, draft: Draft) -> bool:
        weights = None if draft.state_dict is None else draft.state_dict.record.sha256
        content = {keys.onnx_name: draft.onnx.record.sha256, keys.state_dict_name: weights}
        return is_anothers(self._store, keys, version, content)

    def _upload(
        self, draft: Draft, keys: ReleaseKeys, facts: TrainingFacts, origin: Origin, progress: Progress | None
    ) -> Verdict | None:
        """Check the files, place each, verified by the store, the commit record last; returns the gate's verdict."""
        self._seal.require_signer(keys.meta)
        baseline = self._baseline(keys)
        drafted = complete_metrics(draft.metrics, facts, run_id=keys.run_id, baseline=baseline, gate=self._gate)
        notes = release_notes(drafted, facts)
        # The documents' own errors come before any byte is uploaded.
        planned = complete_meta(draft.meta, facts, keys=keys, origin=origin, files={}, release_notes=notes)
        planned.to_bytes()
        drafted.to_bytes()
        self._checks.run(draft.onnx, draft.state_dict, planned)
        summary = draft_summary(keys.model_key, drafted, facts).encode()
        model = mlflow_model.model_files(draft.mlmodel, draft.environment, draft.tensors, keys=keys, facts=facts)
        leftovers = self._leftovers(keys)
        placing: dict[str, Callable[[], FileRecord]] = {
            keys.onnx_name: lambda: place_file(self._store, keys.onnx, draft.onnx, progress),
            METRICS_NAME: lambda: self._place_metrics(keys, drafted, leftovers),
            SUMMARY_NAME: lambda: self._place_summary(keys, draft.summary or summary, leftovers),
        }
        if (state_dict := draft.state_dict) is not None:
            weights = keys.file(keys.state_dict_name)
            placing[keys.state_dict_name] = lambda: place_file(self._store, weights, state_dict, progress)
        for name, data in model.items():
            placing[name] = partial(self._place_model_file, keys, name, data, leftovers)
        files = place_all(placing)
        meta = complete_meta(draft.meta, facts, keys=keys, origin=origin, files=files, release_notes=notes)
        raw = meta.to_bytes()
        own = FileRecord.of(raw)
        place_signature(self._store, keys, {**files, META_NAME: own}, self._seal)
        place_document(
            self._store,
            keys.file(META_NAME),
            raw,
            content_type=JSON_TYPE,
            same=lambda found: ModelMeta.parse(found).files == meta.files,
            leftovers=Leftovers.KEPT if self._seal.signer is None else Leftovers.REFUSED,
        )
        return verdict_of(drafted)

    def _leftovers(self, keys: ReleaseKeys) -> Leftovers:
        """What is signed is what this attempt made; a release that is complete is never written over."""
        if self._seal.signer is None:
            return Leftovers.KEPT
        try:
            self._store.stat(keys.meta)
        except ObjectNotFoundError:
            return Leftovers.REPLACED
        return Leftovers.REFUSED

    def _place_metrics(self, keys: ReleaseKeys, drafted: Metrics, leftovers: Leftovers) -> FileRecord:
        return place_document(
            self._store,
            keys.metrics,
            drafted.to_bytes(),
            content_type=JSON_TYPE,
            same=lambda found: Metrics.parse(found).run_id == str(keys.run_id),
            leftovers=leftovers,
        )

    def _place_summary(self, keys: ReleaseKeys, summary: bytes, leftovers: Leftovers) -> FileRecord:
        return place_document(
            self._store,
            keys.file(SUMMARY_NAME),
            summary,
            content_type=MARKDOWN_TYPE,
            same=lambda _: True,
            leftovers=leftovers,
        )

    def _place_model_file(self, keys: ReleaseKeys, name: str, data: bytes, leftovers: Leftovers) -> FileRecord:
        """Place MLmodel or an environment file; what an earlier attempt made, on another machine perhaps, stays."""

        def same(found: bytes) -> bool:
            return name != MLMODEL_NAME or mlflow_model.names_onnx_file(found, keys.onnx_name)

        content_type = TEXT_TYPE if name.endswith(".txt") else YAML_TYPE
        return place_document(
            self._store, keys.file(name), data, content_type=content_type, same=same, leftovers=leftovers
        )

    def _baseline(self, keys: ReleaseKeys) -> Metrics | None:
        """The metrics of the release that is current now; none where nothing is, or its metrics are not to be had.

        For a release that is current itself, and is mirrored again, those of the one before it, as at its first time.
        """
        channel = ChannelKeys(model_key=keys.model_key, channel=self._baseline_channel)
        head = ChannelLog(self._store, channel, self._seal).look().head
        candidates = [] if head is None else [head.current, *head.previous]
        baseline = next((release for release in candidates if release.run_id != str(keys.run_id)), None)
        if baseline is None or baseline.metrics_path is None:
            return None
        try:
            return Metrics.parse(self._store.read(baseline.metrics_path, limit_bytes=LIMIT_BYTES))
        except (ObjectNotFoundError, ObjectTooLargeError, InvalidDocumentError):
            return None
