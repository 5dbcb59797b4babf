"""What is believed of what a bucket says: a channel's manifest, or a release that is named itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType

from supabase_bridge import model_signature
from supabase_bridge.consumer.memory import Memory
from supabase_bridge.consumer.reading import Deadline, Reader
from supabase_bridge.consumer.reference import Reference
from supabase_bridge.consumer.release import Release, of_manifest, of_meta, vouched
from supabase_bridge.documents import LIMIT_BYTES, FileRecord, Manifest
from supabase_bridge.errors import (
    ChannelNotFoundError,
    InvalidDocumentError,
    ManifestRefusedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    ReleaseNotFoundError,
    ReleaseUnsignedError,
    SigningExtraMissingError,
    UnexpectedAnswerError,
)
from supabase_bridge.layout import SIGNATURE_NAME, ChannelKeys, ReleaseKeys, RunId
from supabase_bridge.trust import TrustPolicy, accept

HISTORY_LIMIT = 200
"""So many log entries are looked through for a signed one that names a release."""
_DAMAGED = (ObjectNotFoundError, ObjectTooLargeError, InvalidDocumentError)
"""What says of one document only that it vouches for nothing."""


class Looking:
    """Resolves references against one bucket. Thread-safe.

    Args:
        memory: What was seen of each channel; a manifest older than that is refused.
        timeout: How long one look may take in all, whatever the other side does.
        clock: The time (aware).
    """

    def __init__(
        self,
        reader: Reader,
        *,
        policy: TrustPolicy,
        memory: Memory,
        timeout: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._reader = reader
        self._policy = policy
        self._memory = memory
        self._timeout = timeout
        self._clock = clock

    def look(self, reference: Reference) -> Release:
        """The release that is meant, as it is now.

        One request; for a channel that has not changed since it was last seen, one that is answered without a body.
        A release that is named itself is vouched for by nothing but its own model_meta.json; where signatures are
        required, by its model.sig, where the extra `signing` is there, or else by a signed entry of the channel's log.

        Raises:
            ChannelNotFoundError: nothing was promoted to the channel, or this consumer may not see it.
            ReleaseNotFoundError: there is no such release, it is incomplete, or this consumer may not see it.
            ReleaseUnsignedError: signatures are required, and neither of the two is there.
            ManifestRefusedError: the manifest is not believed; the subclass says why.
            InvalidDocumentError: a document is damaged.
            ObjectTooLargeError: a document is larger than any may be.
        """
        deadline = Deadline.after(self._timeout)
        release = reference.release
        if release is None:
            return self._released(self._manifest(reference.channel, deadline), deadline)
        if self._policy.signature_required:
            return self._signed(reference.channel, release, deadline)
        return of_meta(self._meta(release, deadline), release)

    def remembered(self, channel: ChannelKeys) -> Release | None:
        """What was current when the channel was last seen, as far as the policy still believes it; None: nothing.

        Raises:
            ManifestRefusedError: it is not believed any more.
            MemoryDamagedError: see `Memory.recall`.
        """
        known = self._memory.recall(channel)
        if known is None:
            return None
        manifest = accept(known.data, policy=self._policy, channel=channel, seen=None, now=self._clock())
        return self._released(manifest, Deadline.after(self._timeout))

    def _manifest(self, channel: ChannelKeys, deadline: Deadline) -> Manifest:
        # Recalled before the request: what another process sees meanwhile makes this answer no replay.
        known = self._memory.recall(channel)
        try:
            content = self._reader.read(
                channel.manifest,
                limit_bytes=LIMIT_BYTES,
                known_etag=None if known is None else known.etag,
                deadline=deadline,
            )
        except ObjectNotFoundError:
            raise ChannelNotFoundError(channel.model_key, channel.channel) from None
        if content is None and known is None:
            raise UnexpectedAnswerError(
                self._reader.name, f"reading {channel.manifest}", "unchanged, though never seen"
            )
        data = content.data if content is not None else b"" if known is None else known.data
        seen = None if known is None else known.seen()
        manifest = accept(data, policy=self._policy, channel=channel, seen=seen, now=self._clock())
        if content is not None:
            self._memory.keep(channel, data, etag=content.etag)
        return manifest

    def _released(self, manifest: Manifest, deadline: Deadline) -> Release:
        signed = manifest.signature is not None and bool(self._policy.keys)
        if vouched(manifest):
            return of_manifest(manifest, signed=signed)
        # Written by hand from the specification, which records no files here; `accept` takes no signed one like that.
        keys = ReleaseKeys(model_key=manifest.model_name, run_id=RunId.parse(manifest.current.run_id))
        return of_manifest(manifest, signed=False, files=of_meta(self._meta(keys, deadline), keys).files)

    def _signed(self, channel: ChannelKeys, release: ReleaseKeys, deadline: Deadline) -> Release:
        """A release by what a trusted key signed: its model.sig, or an entry of the channel's log that names it.

        model.sig first: two reads, however far back the release was promoted, and whether it ever was.
        """
        by_signature = self._by_model_signature(release, deadline)
        if isinstance(by_signature, Release):
            return by_signature
        by_log = self._by_log(channel, release, deadline)
        if by_log is None:
            raise ReleaseUnsignedError(release.model_key, str(release.run_id), channel.channel, by_signature)
        return by_log

    def _by_model_signature(self, release: ReleaseKeys, deadline: Deadline) -> Release | str:
        """A release by the signature of its files, or why that does not vouch for it."""
        try:
            model_signature.check_extra()
            found = self._reader.read(release.signature, limit_bytes=LIMIT_BYTES, known_etag=None, deadline=deadline)
            signature = b"" if found is None else found.data
            recorded = of_meta(self._meta(release, deadline), release)
            problem = model_signature.problem(signature, recorded.files, self._policy.keys)
        except (*_DAMAGED, ReleaseNotFoundError, SigningExtraMissingError) as error:
            problem = str(error)
        if problem is not None:
            return problem
        own = FileRecord.of(signature)
        return replace(recorded, signed=True, files=MappingProxyType({**recorded.files, SIGNATURE_NAME: own}))

    def _by_log(self, channel: ChannelKeys, release: ReleaseKeys, deadline: Deadline) -> Release | None:
        """A release by the newest signed entry of the channel's log that names it; None: there is none."""
        try:
            newest = self._manifest(channel, deadline)
        except ChannelNotFoundError:
            return None
        for sequence in range(newest.sequence, max(0, newest.sequence - HISTORY_LIMIT), -1):
            entry = newest if sequence == newest.sequence else self._entry(channel, sequence, deadline)
            if entry is not None and entry.current.run_id == str(release.run_id):
                return replace(self._released(entry, deadline), channel=None, sequence=None)
        return None

    def _entry(self, channel: ChannelKeys, sequence: int, deadline: Deadline) -> Manifest | None:
        """A log entry that is believed, however old it is; None where it is not, is damaged, or is not there."""
        try:
            content = self._reader.read(
                channel.history(sequence), limit_bytes=LIMIT_BYTES, known_etag=None, deadline=deadline
            )
            policy = replace(self._policy, max_age=None)
            data = b"" if content is None else content.data
            entry = accept(data, policy=policy, channel=channel, seen=None, now=self._clock())
        except (*_DAMAGED, ManifestRefusedError):
            return None
        return entry if entry.sequence == sequence else None

    def _meta(self, keys: ReleaseKeys, deadline: Deadline) -> bytes:
        try:
            content = self._reader.read(keys.meta, limit_bytes=LIMIT_BYTES, known_etag=None, deadline=deadline)
        except ObjectNotFoundError:
            raise ReleaseNotFoundError(keys.model_key, str(keys.run_id)) from None
        return b"" if content is None else content.data
