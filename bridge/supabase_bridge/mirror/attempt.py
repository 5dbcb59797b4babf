"""One attempt at a release: claim its folder, check and upload its files at the same time, and commit it.

Small objects are prepared, and reads are made, beside each other: docs/adr/0020-claims.md counts the round trips.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

from supabase_bridge.core.documents import FileRecord, ModelMeta
from supabase_bridge.core.layout import META_NAME
from supabase_bridge.mirror.assemble import AssembledRelease
from supabase_bridge.mirror.checks.sandbox import Checks
from supabase_bridge.mirror.errors import ModelRejectedError
from supabase_bridge.mirror.release_draft import ReleaseDraft
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.mirror.upload import has_content, put_all
from supabase_bridge.releases.claim import ReleaseClaim
from supabase_bridge.releases.errors import ReleaseTakenError
from supabase_bridge.releases.verify import VerifiedRelease, Written, place_signature
from supabase_bridge.storage.base import ObjectInfo, ObjectStore, Progress
from supabase_bridge.storage.hashing import hash_body
from supabase_bridge.trust.signer import SigningPolicy


class Trial:
    """The check of a version's ONNX model, begun once and shared by all attempts at its release; a context manager.

    The end of the block waits for the check.
    """

    def __init__(self, checks: Checks, assembled: AssembledRelease) -> None:
        self._checks = checks
        self._assembled = assembled
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trial")
        self._begun: Future[tuple[str, ...]] | None = None

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def begin(self, meta: ModelMeta) -> None:
        """Begin the check, unless it has begun.

        Args:
            meta: The release's description of the model, the same for every attempt.
        """
        if self._begun is None:
            self._begun = self._pool.submit(check_onnx, self._checks, self._assembled, meta)

    def notes(self) -> tuple[str, ...]:
        """Wait for the check that was begun, and return its notes; for its errors see `Checks.onnx`."""
        if self._begun is None:
            raise ValueError("the check was not begun")
        return self._begun.result()


def check_onnx(checks: Checks, assembled: AssembledRelease, meta: ModelMeta) -> tuple[str, ...]:
    """Check the ONNX model of a release, which is fetched for it if need be; see `Checks.onnx`."""
    return checks.onnx(assembled.local_onnx(), meta, assembled.given, towers=assembled.towers)


class Attempt:
    """One attempt to complete a drafted release."""

    def __init__(self, store: ObjectStore, draft: ReleaseDraft, signing: SigningPolicy) -> None:
        self.draft = draft
        self._store = store
        self._signing = signing
        self._claim = ReleaseClaim(store, draft.paths, draft.meta, attempt=uuid.uuid4().hex)

    def prepare(self) -> None:
        """Upload the claim to a temporary key, before it is known whether the draft is the right one."""
        self._claim.prepare()

    def forget(self) -> None:
        """Delete what is needed no more; see `ReleaseClaim.forget`."""
        self._claim.forget()

    def complete(
        self, trial: Trial, *, claimed: ModelMeta | None, begin: Callable[[], Progress | None]
    ) -> Written | None:
        """Claim the folder, upload the files while the model is tried, and commit the release.

        Args:
            claimed: The draft for which the folder is claimed already.
            begin: Called when the claim is won; returns a function that is called with progress.

        Returns:
            What was written; None: another attempt completed the release, or it is signed, so that it must be verified.

        Raises:
            ReleaseTakenError: see `ReleaseClaim`.
            ModelRejectedError: see `Trial.notes`; what was uploaded meanwhile is deleted.
            The errors of `put_all`.
        """
        draft, claim = self.draft, self._claim
        with ThreadPoolExecutor(3, thread_name_prefix="release") as pool:
            prepared = None
            if claimed is None:
                prepared = pool.submit(claim.prepare_verdict, draft.meta.with_notes(draft.notes))
            try:
                claim.take(self._is_ours, claimed=claimed)
            except ReleaseTakenError:
                wait([prepared] if prepared is not None else [])
                claim.forget()
                raise
            progress = begin()
            present = {info.key: info for info in claim.present}
            missing = {name: file for name, file in draft.files.items() if draft.paths.file(name) not in present}
            accepted = pool.submit(self._accept, trial, prepared)
            uploaded = pool.submit(put_all, self._store, draft.paths.prefix, missing, progress=progress)
        try:
            raw = accepted.result()
        except ModelRejectedError:
            claim.reject()
            claim.forget()
            raise
        stored = {**present, **uploaded.result()}
        signed = {**draft.records, META_NAME: FileRecord.of(raw)}
        place_signature(self._store, draft.paths, signed, self._signing)
        if not claim.commit() or self._signing.keys:
            return None
        return self._written(raw, stored)

    def _accept(self, trial: Trial, prepared: Future[None] | None) -> bytes:
        """Wait for the trial, and record that the checks have passed; return the commit record."""
        own = self.draft.meta.with_notes([*self.draft.notes, *trial.notes()])
        if prepared is not None:
            prepared.result()
        raw = self._claim.accept(own)
        if self._signing.signer is not None and raw != own.to_bytes():
            raise ReleaseTakenError(self.draft.paths.prefix, "its commit record has other notes, and is not signed")
        return raw

    def _is_ours(self, info: ObjectInfo) -> bool:
        file: ModelFile | bytes | None = self.draft.files.get(info.key.removeprefix(self.draft.paths.prefix))
        return file is not None and has_content(self._store, info, file)

    def _written(self, raw: bytes, stored: Mapping[str, ObjectInfo]) -> Written:
        paths = self.draft.paths
        meta = ModelMeta.parse(raw)
        release = VerifiedRelease(paths=paths, meta=meta, files={**meta.files, META_NAME: FileRecord.of(raw)})
        objects: dict[str, tuple[int, str | None]] = {
            info.key: (info.size_bytes, info.etag) for info in stored.values() if info.key != paths.meta
        }
        objects[paths.meta] = (len(raw), hash_body(raw).md5)
        return Written(release=release, objects=objects)
