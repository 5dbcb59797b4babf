"""The upload job: make a complete release of a model version. No channel refers to the release yet.

Source: the release specification, section 3, steps 3 and 4.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from supabase_bridge.core.criteria import NO_GATE, Gate
from supabase_bridge.core.documents import Metrics, ModelMeta, Origin
from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.layout import META_NAME, SIGNATURE_NAME, ChannelPaths, ReleasePaths, RunId
from supabase_bridge.core.tags import RUN_ID_TAG
from supabase_bridge.core.verdict import Verdict
from supabase_bridge.mirror import metadata
from supabase_bridge.mirror.assemble import AssembledRelease, assemble_release
from supabase_bridge.mirror.attempt import Attempt, Trial, check_onnx
from supabase_bridge.mirror.checks.sandbox import Checks
from supabase_bridge.mirror.lookup import Baselines, FolderLookup
from supabase_bridge.mirror.release_draft import ReleaseDraft, make_draft, make_files
from supabase_bridge.mirror.repair import Recorded, differing, put_missing, read_recorded, recorded_before
from supabase_bridge.mirror.restore import hold_removed
from supabase_bridge.mirror.selection import Selection
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.mirror.sources import Sources, VersionSource
from supabase_bridge.registry.client import RegisteredVersion, Registry
from supabase_bridge.registry.naming import may_be_of, origin_of, release_run_id
from supabase_bridge.releases.archive import Bucket
from supabase_bridge.releases.channel import Channel, KnownHeads
from supabase_bridge.releases.errors import (
    ReleaseConflictError,
    ReleaseDamagedError,
    ReleaseNotFoundError,
    ReleaseTakenError,
    ReleaseUnrepairableError,
)
from supabase_bridge.releases.verify import VerificationAhead, VerifiedRelease, VerifiedReleases, place_signature
from supabase_bridge.storage.base import ObjectStore, Progress
from supabase_bridge.storage.errors import ObjectTooLargeError
from supabase_bridge.storage.local_files import temporary_directory
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Mirrored:
    """A complete release of a version, just verified.

    Attributes:
        uploaded: False where the release was complete before.
        verdict: The gate's verdict on the version, where it was uploaded and has to meet criteria.
    """

    release: VerifiedRelease
    uploaded: bool
    verdict: Verdict | None = None


class Mirror:
    """Makes releases of model versions in one object store.

    The steps: locate the source, choose and fetch its files, complete the documents, check the files, put them into the
    bucket, and verify the release.

    Args:
        baseline_channel: Metrics are compared with the current release of this channel.
        channels: All channels; their logs record the files of a release whose model_meta.json is gone.
        signing: Signs releases and names the trusted keys; by default signatures are off.
        gate: The criteria of the registered model; metrics.json records their verdict.
        checks: The checks that a model's files must pass before any of them is uploaded.
        verified: The releases that were verified before, under the same signing policy.
        heads: The logs' heads that were read before, under the same signing policy.
        bucket: The name of the store's bucket.
        archives: Opens the buckets from which removed releases are restored.
    """

    def __init__(
        self,
        registry: Registry,
        sources: Sources,
        store: ObjectStore,
        *,
        baseline_channel: str,
        channels: Sequence[str] = (),
        checks: Checks,
        gate: Gate = NO_GATE,
        signing: SigningPolicy = NO_SIGNING,
        verified: VerifiedReleases | VerificationAhead | None = None,
        heads: KnownHeads | None = None,
        bucket: str = "",
        archives: Callable[[], Sequence[Bucket]] = tuple,
    ) -> None:
        self._registry = registry
        self._sources = sources
        self._store = store
        self._baseline_channel = baseline_channel
        self._channel_names = channels
        self._signing = signing
        self._verified = verified or VerifiedReleases(signing)
        self._baselines = Baselines(store, baseline_channel, signing, heads or KnownHeads())
        self._gate = gate
        self._checks = checks
        self._bucket = bucket
        self._archives = archives

    def run(
        self,
        version: RegisteredVersion,
        *,
        model_key: str,
        source: VersionSource | None = None,
        announce: Callable[[int], Progress] | None = None,
        before_upload: Callable[[], None] = lambda: None,
        remake: bool = False,
        renew: bool = False,
    ) -> Mirrored:
        """Make the release of a version complete.

        Idempotent: files that are in the bucket already are verified and kept. model_meta.json is written last, so a
        crash leaves an incomplete folder, and the next run finishes it. The version gets another run_id if the folder
        is that of another release, or was rejected. A release that retention removed is restored with its bytes.

        Args:
            model_key: The model's folder; see `naming.model_key`.
            source: The version's source, where the caller has located it already.
            announce: Called once with the number of bytes to transfer; returns a function that is called with progress.
            before_upload: Called before files are fetched, checked and uploaded; not where the release is complete.
            remake: Make a new release under another run_id, also where there is a complete one. The old one stays.
            renew: Do so if the run's metrics changed since the release was made; for a release that was never current.

        Raises:
            ReleaseUnrepairableError: the release was complete, and a file cannot be made again with its recorded bytes.
            ReleaseBusyError: retention is deleting its files at this moment.
            ModelFileError, InvalidDocumentError: the version cannot be a release; nothing was uploaded.
            ModelRejectedError: see `Checks.onnx` and `Checks.state_dict`; what was uploaded meanwhile is deleted.
            CheckInterruptedError: see `Checks.onnx`; the next run continues.
            LocalFileError: this machine has no room for the files.
            ReleaseConflictError: the complete release of another version lies under the release's paths.
            InvalidNameError: see `naming.release_run_id`.
            SourceRefusedError: see `Sources.locate`.
            ReleaseSignatureError: the release is complete, and no trusted key signed it.
            SigningError, UntrustedLogError: see `SigningPolicy` and `Channel.read_head`.
        """
        if not remake and (release := self._find_complete(version, model_key)) is not None:
            if not renew or not self._has_new_metrics(version, release.meta):
                return Mirrored(release=release, uploaded=False)
            remake = True
        before_upload()
        with ExitStack() as stack:
            removed = None if remake else stack.enter_context(hold_removed(self._store, version, model_key))
            if removed is not None and removed.restore_from(self._archives(), bucket=self._bucket):
                return Mirrored(release=self._verified.verify(self._store, removed.paths), uploaded=True)
            source = source or self._sources.locate(version)
            directory = stack.enter_context(temporary_directory())
            selection = Selection(source, model=version.model, model_key=model_key, version=version.version)
            assembled = assemble_release(selection, directory, self._checks)
            if removed is not None:
                recorded = recorded_before(self._store, removed.paths, removed.raw)
                verdict, release = self._repair(assembled, removed.paths, source.facts, version, recorded, announce)
                return Mirrored(release=release, uploaded=True, verdict=verdict)
            with Trial(self._checks, assembled) as trial:
                while True:
                    try:
                        placed = self._place(
                            version, assembled, source.facts, model_key, trial, announce=announce, remake=remake
                        )
                        break
                    except ReleaseTakenError as error:
                        logger.info("a version gets another run_id", extra={"reason": str(error)})
                        taken = error.prefix.rstrip("/").rpartition("/")[2]
                        version = replace(version, tags={**version.tags, RUN_ID_TAG: taken})
                        remake = True
        run_id = str(placed.release.paths.run_id)
        facts = {"model": version.model, "version": version.version, "run_id": run_id}
        logger.info("a version was mirrored", extra=facts)
        return placed

    def _place(
        self,
        version: RegisteredVersion,
        assembled: AssembledRelease,
        facts: metadata.RunInfo,
        model_key: str,
        trial: Trial,
        *,
        announce: Callable[[int], Progress] | None,
        remake: bool,
    ) -> Mirrored:
        """Repair the release of a version that was complete before, or make one; raises ReleaseTakenError."""
        given = version.tags.get(RUN_ID_TAG)
        wanted = metadata.wanted_run_id(assembled.meta, facts)
        lookup = self._look_up(ReleasePaths(model_key=model_key, run_id=RunId.parse(given) if given else wanted))

        def commit_record(paths: ReleasePaths) -> ModelMeta | None:
            nonlocal lookup
            lookup = lookup if lookup.paths == paths else self._look_up(paths)
            with suppress(ObjectTooLargeError, InvalidDocumentError):
                raw = lookup.commit_record()
                return None if raw is None else ModelMeta.parse(raw)
            return None

        files = (assembled.onnx, assembled.state_dict)
        sha256 = [None if file is None else file.record.sha256 for file in files]
        run_id = release_run_id(
            self._registry,
            self._store,
            version,
            wanted,
            model_key=model_key,
            sha256=sha256,
            commit_record=commit_record,
            remake=remake,
        )
        paths = ReleasePaths(model_key=model_key, run_id=run_id)
        lookup = lookup if lookup.paths == paths else self._look_up(paths)
        # A version without a run_id was never complete under it, so no log names its release.
        channels = self._channels(model_key) if given and not remake else []
        recorded = read_recorded(self._store, paths, lookup.commit_record(), channels)
        if recorded is not None:
            verdict, release = self._repair(assembled, paths, facts, version, recorded, announce)
            return Mirrored(release=release, uploaded=True, verdict=verdict)
        return self.put_release(
            assembled, paths, facts, origin_of(version), announce=announce, lookup=lookup, trial=trial
        )

    def put_release(
        self,
        assembled: AssembledRelease,
        paths: ReleasePaths,
        facts: metadata.RunInfo,
        origin: Origin,
        *,
        announce: Callable[[int], Progress] | None = None,
        lookup: FolderLookup | None = None,
        trial: Trial | None = None,
    ) -> Mirrored:
        """Complete an assembled release's documents, claim its folder, then check and upload its files at once.

        Args:
            lookup: What storage has of the release, where the caller reads it already.
            trial: The check of its model, which another attempt may have begun.

        Raises:
            ReleaseTakenError: see `ReleaseClaim`; for the other errors see `run`.
        """
        self._signing.require_signer(paths.meta)
        lookup = lookup or self._look_up(paths)
        # The documents' own errors are raised before any byte is uploaded.
        draft = make_draft(assembled, paths, facts, origin, baseline=None, gate=self._gate)
        is_first = lookup.lacks_baseline or (lookup.lacks_baseline is None and origin.version == 1)
        with ExitStack() as stack:
            trial = trial or stack.enter_context(Trial(self._checks, assembled))
            trial.begin(draft.meta)
            pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="release"))
            attempt = Attempt(self._store, draft, self._signing)
            prepared = pool.submit(attempt.prepare) if is_first else None
            claimed = lookup.claim()
            draft = self._draft(assembled, paths, facts, origin, lookup, claimed)
            if prepared is not None and draft.meta == attempt.draft.meta and claimed is None:
                prepared.result()
            else:
                pool.submit(attempt.forget)
                attempt = Attempt(self._store, draft, self._signing)
            written = attempt.complete(
                trial,
                claimed=claimed,
                begin=lambda: None if announce is None else announce(assembled.size_bytes),
            )
            pool.submit(attempt.forget)
            release = (
                self._verified.verify(self._store, paths)
                if written is None
                else self._verified.verify_written(self._store, written)
            )
        return Mirrored(release=release, uploaded=True, verdict=draft.metrics.verdict())

    def _draft(
        self,
        assembled: AssembledRelease,
        paths: ReleasePaths,
        facts: metadata.RunInfo,
        origin: Origin,
        lookup: FolderLookup,
        claimed: ModelMeta | None,
    ) -> ReleaseDraft:
        """Draft a release; where its folder is claimed, with the documents of the attempt that claimed it."""
        basis = None if claimed is None else metadata.recorded_basis(claimed)
        if basis is None:
            return make_draft(assembled, paths, facts, origin, baseline=lookup.baseline(), gate=self._gate)
        # So that this attempt may finish the release of the other one.
        gate, facts = metadata.gate_of(basis), replace(facts, ended_at=basis.run_ended_at)
        named = basis.baseline_run_id
        baseline = None if named is None else self._baselines.read(paths.model_key, named)
        return make_draft(assembled, paths, facts, origin, baseline=baseline, gate=gate)

    def _look_up(self, paths: ReleasePaths) -> FolderLookup:
        return FolderLookup(self._store, paths, self._baselines)

    def _repair(
        self,
        assembled: AssembledRelease,
        paths: ReleasePaths,
        facts: metadata.RunInfo,
        version: RegisteredVersion,
        recorded: Recorded,
        announce: Callable[[int], Progress] | None,
    ) -> tuple[Verdict | None, VerifiedRelease]:
        """Write the missing files of a release that was complete before, each with its recorded bytes or not at all."""
        if recorded.meta is not None and (origin := recorded.meta.mlflow) and not may_be_of(recorded.meta, version):
            raise ReleaseConflictError.of_version(
                paths.meta, origin.registered_model, origin.version, version.model, version.version
            )
        candidates = self._remade(assembled, paths, facts, origin_of(version), recorded)
        made, metrics = min(candidates, key=lambda candidate: len(differing(recorded, candidate[0])))
        progress = None if announce is None else announce(assembled.size_bytes)
        left = put_missing(self._store, paths, recorded, made, progress)

        def unrepairable(problem: str) -> ReleaseUnrepairableError:
            return ReleaseUnrepairableError(str(paths.run_id), version.model, version.version, problem)

        if left:
            raise unrepairable(f"{', '.join(left)} cannot be made again with the recorded SHA-256")
        try:
            if recorded.removed is not None:
                self._store.delete([paths.archived_meta])
            elif META_NAME in made and not differing(recorded, made):
                # Only bytes that this mirror made itself are signed.
                signed = {name: record for name, record in recorded.files.items() if name != SIGNATURE_NAME}
                place_signature(self._store, paths, signed, self._signing)
            return metrics.verdict(), self._verified.verify(self._store, paths)
        except (ReleaseDamagedError, ReleaseNotFoundError) as error:
            raise unrepairable(str(error)) from error

    def _remade(
        self,
        assembled: AssembledRelease,
        paths: ReleasePaths,
        facts: metadata.RunInfo,
        origin: Origin,
        recorded: Recorded,
    ) -> Iterator[tuple[dict[str, ModelFile | bytes], Metrics]]:
        """Yield the files of a release, computed from what was recorded, or else from each baseline it may have had."""
        gate, baselines = self._gate, recorded.baselines or (self._baselines.run_id(paths),)
        if recorded.meta is not None and (basis := metadata.recorded_basis(recorded.meta)) is not None:
            facts = replace(facts, ended_at=basis.run_ended_at)
            gate, baselines = metadata.gate_of(basis), (basis.baseline_run_id,)
        found: Sequence[str] | None = None
        for run_id in baselines:
            baseline = None if run_id is None else self._baselines.read(paths.model_key, run_id)
            compared = None if baseline is None else baseline.metrics
            metrics = recorded.metrics or metadata.complete_metrics(
                assembled.metrics, facts, run_id=paths.run_id, baseline=compared, gate=gate
            )
            meta, made = make_files(assembled, paths, facts, origin, metrics, baseline=baseline, gate=gate)
            if recorded.meta is None:
                if found is None:
                    found = check_onnx(self._checks.for_repair, assembled, meta)
                made_notes = metadata.notes(assembled.meta, assembled.metrics, facts)
                meta = meta.with_notes([*assembled.notes, *made_notes, *found])
                files = {name: record for name, record in recorded.files.items() if name in made}
                made[META_NAME] = meta.model_copy(update={"files": files}).to_bytes()
            elif recorded.removed is not None:
                made[META_NAME] = recorded.removed
            yield made, metrics

    def _has_new_metrics(self, version: RegisteredVersion, meta: ModelMeta) -> bool:
        basis = metadata.recorded_basis(meta)
        if basis is None or version.run_id is None:
            return False
        if not self._gate.judges and basis.metrics_sha256 != metadata.metrics_digest({}):
            return False  # No gate judges the metrics, and the run had some; so MLflow is not asked.
        found = self._registry.metrics(version.run_id, version.workspace)
        return metadata.metrics_digest(found) != basis.metrics_sha256

    def _channels(self, model_key: str) -> list[Channel]:
        names = dict.fromkeys([self._baseline_channel, *self._channel_names])
        return [Channel(self._store, ChannelPaths(model_key=model_key, channel=name), self._signing) for name in names]

    def _find_complete(self, version: RegisteredVersion, model_key: str) -> VerifiedRelease | None:
        """Return the version's release if it is complete and undamaged."""
        if (given := version.tags.get(RUN_ID_TAG)) is None:
            return None
        paths = ReleasePaths(model_key=model_key, run_id=RunId.parse(given))
        try:
            release = self._verified.verify(self._store, paths)
        except (ReleaseNotFoundError, ReleaseDamagedError):
            return None
        if (origin := release.meta.mlflow) is not None and not may_be_of(release.meta, version):
            raise ReleaseConflictError.of_version(
                paths.meta, origin.registered_model, origin.version, version.model, version.version
            )
        return release
