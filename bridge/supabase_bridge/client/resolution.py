"""Resolve a reference to a verified release, and parse the paths of `supabase://` URIs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType

from supabase_bridge.client.errors import ReleaseUnsignedError
from supabase_bridge.client.readers import Reader
from supabase_bridge.client.release import Release, of_manifest, of_meta
from supabase_bridge.client.seen import SeenManifests
from supabase_bridge.core.documents import FileRecord, Manifest
from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError, NameKind
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import (
    META_NAME,
    SIGNATURE_NAME,
    ChannelPaths,
    ReleasePaths,
    RunId,
    check_channel,
    check_model_key,
)
from supabase_bridge.releases.errors import ChannelNotFoundError, ReleaseNotFoundError
from supabase_bridge.storage.errors import ObjectNotFoundError, ObjectTooLargeError, UnexpectedResponseError
from supabase_bridge.storage.time_budget import TimeBudget
from supabase_bridge.trust import model_signature
from supabase_bridge.trust.errors import ManifestRefusedError, SigningError
from supabase_bridge.trust.verify import TrustPolicy, verify_manifest

DEFAULT_CHANNEL = "latest"

_CHANNEL_MARK = "@"

_RUN_MARK = "/"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference to a release: a channel of a model, or one run_id.

    Attributes:
        channel: The channel that names the release. For a run_id: the channel whose log may have its signed entry.
        run_id: The release. None: the one that is current in the channel.
    """

    channel: ChannelPaths
    run_id: RunId | None

    @classmethod
    def parse(cls, text: str, *, channel: str | None = None, run_id: str | None = None) -> Reference:
        """Parse MODEL, MODEL@CHANNEL or MODEL/RUN_ID; a bare MODEL may have a channel or run_id beside it.

        Raises:
            InvalidNameError: the text has another form, a part of it is not valid, or it names a channel or run_id that
                is given beside it too.
        """
        mark = next((character for character in text if character in _CHANNEL_MARK + _RUN_MARK), None)
        model, _, rest = text.partition(mark) if mark else (text, "", "")
        if (mark == _CHANNEL_MARK and channel is not None) or (mark == _RUN_MARK and run_id is not None):
            raise InvalidNameError(NameKind.REFERENCE, text, "it says twice which release is meant")
        if mark is not None and not rest:
            raise InvalidNameError(NameKind.REFERENCE, text, f"nothing follows the {mark!r}")
        wanted_channel = rest if mark == _CHANNEL_MARK else channel
        wanted_run = rest if mark == _RUN_MARK else run_id
        return cls(
            channel=ChannelPaths(
                model_key=check_model_key(model), channel=check_channel(wanted_channel or DEFAULT_CHANNEL)
            ),
            run_id=None if wanted_run is None else RunId.parse(wanted_run),
        )

    @property
    def release(self) -> ReleasePaths | None:
        """The paths of the release, if the reference has a run_id."""
        return None if self.run_id is None else ReleasePaths(model_key=self.channel.model_key, run_id=self.run_id)

    def __str__(self) -> str:
        if self.run_id is not None:
            return f"{self.channel.model_key}{_RUN_MARK}{self.run_id}"
        return f"{self.channel.model_key}{_CHANNEL_MARK}{self.channel.channel}"


HISTORY_LIMIT = 200
"""The number of log entries that are searched for a signed one that names a release."""

SEARCHED_ENTRIES = 50
"""The number of log entries that are searched for the activation of a release."""

_DAMAGED = (ObjectNotFoundError, ObjectTooLargeError, InvalidDocumentError)
"""Errors of a single document, after which another one may still cover the release."""


class ReleaseResolution:
    """Resolves references against one bucket. Thread-safe.

    Args:
        seen: The last accepted manifest of each channel; an older one is refused.
        timeout: The total time of one `resolve`.
        clock: The time (aware).
    """

    def __init__(
        self,
        reader: Reader,
        *,
        policy: TrustPolicy,
        seen: SeenManifests,
        timeout: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._reader = reader
        self._policy = policy
        self._seen = seen
        self._timeout = timeout
        self._clock = clock

    def resolve(self, reference: Reference) -> Release:
        """Return the release that a reference names now.

        A channel takes one request; its answer has no body if the manifest has not changed since it was last read.
        A run_id takes the records from the release's own model_meta.json. If signatures are required, its model.sig
        must cover them (this needs the extra `signing`), or a signed entry of the channel's log must name it.

        Raises:
            ChannelNotFoundError: no version was promoted to the channel, or this consumer may not see it.
            ReleaseNotFoundError: the release does not exist, is incomplete, or this consumer may not see it.
            ReleaseUnsignedError: signatures are required, and neither of the two covers the release.
            ManifestRefusedError: the manifest failed verification; `reason` says why.
            InvalidDocumentError: a document is malformed.
            ObjectTooLargeError: a document is larger than LIMIT_BYTES.
        """
        deadline = TimeBudget(self._timeout)
        release = reference.release
        if release is None:
            return self._released(self._manifest(reference.channel, deadline), deadline)
        if self._policy.signature_required:
            return self._signed(reference.channel, release, deadline)
        return of_meta(self._meta(release, deadline), release)

    def last_known(self, channel: ChannelPaths) -> Release | None:
        """Return the release of the last accepted manifest, if the policy still accepts that; None if there is none.

        Raises:
            ManifestRefusedError: the policy does not accept it any more.
            StateCorruptedError: see `SeenManifests.recall`.
        """
        known = self._seen.recall(channel)
        if known is None:
            return None
        manifest = verify_manifest(known.data, policy=self._policy, channel=channel, seen=None, now=self._clock())
        return self._released(manifest, TimeBudget(self._timeout))

    def _manifest(self, channel: ChannelPaths, deadline: TimeBudget) -> Manifest:
        # Read before the request: a newer manifest that another process stores meanwhile must not refuse this answer.
        known = self._seen.recall(channel)
        try:
            content = self._reader.read(
                channel.manifest,
                limit_bytes=LIMIT_BYTES,
                known_etag=None if known is None else known.etag,
                deadline=deadline,
            )
        except ObjectNotFoundError:
            raise ChannelNotFoundError(channel.model_key, channel.channel, hidden=self._reader.sees_part) from None
        if content is None and known is None:
            raise UnexpectedResponseError(
                self._reader.name, f"reading {channel.manifest}", "unchanged, though never seen"
            )
        data = content.data if content is not None else b"" if known is None else known.data
        last = None if known is None else known.seen()
        manifest = verify_manifest(data, policy=self._policy, channel=channel, seen=last, now=self._clock())
        if content is not None:
            self._seen.keep(channel, data, etag=content.etag)
        return manifest

    def _released(self, manifest: Manifest, deadline: TimeBudget) -> Release:
        signed = manifest.signature is not None and bool(self._policy.keys)
        if META_NAME in manifest.current.files:
            return of_manifest(manifest, signed=signed)
        # A manifest that was written manually may record no files; `verify_manifest` accepts none like that if signed.
        paths = ReleasePaths(model_key=manifest.model_name, run_id=RunId.parse(manifest.current.run_id))
        return of_manifest(manifest, signed=False, files=of_meta(self._meta(paths, deadline), paths).files)

    def _signed(self, channel: ChannelPaths, release: ReleasePaths, deadline: TimeBudget) -> Release:
        """Return a release that a trusted key signed: by its model.sig (two reads) or by the channel's log."""
        by_signature = self._by_model_signature(release, deadline)
        if isinstance(by_signature, Release):
            return by_signature
        by_log = self._by_log(channel, release, deadline)
        if by_log is None:
            raise ReleaseUnsignedError(release.model_key, str(release.run_id), channel.channel, by_signature)
        return by_log

    def _by_model_signature(self, release: ReleasePaths, deadline: TimeBudget) -> Release | str:
        """Return a release by its model.sig, or the reason why that does not cover it."""
        try:
            model_signature.check_extra()
            found = self._reader.read(release.signature, limit_bytes=LIMIT_BYTES, known_etag=None, deadline=deadline)
            signature = b"" if found is None else found.data
            recorded = of_meta(self._meta(release, deadline), release)
            problem = model_signature.problem(signature, recorded.files, self._policy.keys)
        except (*_DAMAGED, ReleaseNotFoundError, SigningError) as error:
            problem = str(error)
        if problem is not None:
            return problem
        own = FileRecord.of(signature)
        return replace(recorded, signed=True, files=MappingProxyType({**recorded.files, SIGNATURE_NAME: own}))

    def activation(self, channel: ChannelPaths, run_id: RunId) -> Manifest | None:
        """Return the newest verified log entry by which a release became current in a channel.

        None: the newest SEARCHED_ENTRIES do not name it, the channel has no log, or this consumer may not see it.
        """
        return self._newest_entry(channel, run_id, TimeBudget(self._timeout), limit=SEARCHED_ENTRIES)

    def _by_log(self, channel: ChannelPaths, release: ReleasePaths, deadline: TimeBudget) -> Release | None:
        """Return a release by the newest signed log entry that names it; None if there is none."""
        entry = self._newest_entry(channel, release.run_id, deadline, limit=HISTORY_LIMIT)
        return None if entry is None else replace(self._released(entry, deadline), channel=None, sequence=None)

    def _newest_entry(
        self, channel: ChannelPaths, run_id: RunId, deadline: TimeBudget, *, limit: int
    ) -> Manifest | None:
        try:
            newest = self._manifest(channel, deadline)
        except ChannelNotFoundError:
            return None
        for sequence in range(newest.sequence, max(0, newest.sequence - limit), -1):
            entry = newest if sequence == newest.sequence else self._entry(channel, sequence, deadline)
            if entry is not None and entry.current.run_id == str(run_id):
                return entry
        return None

    def _entry(self, channel: ChannelPaths, sequence: int, deadline: TimeBudget) -> Manifest | None:
        """Return a verified log entry of any age; None if it is refused, damaged or missing."""
        try:
            content = self._reader.read(
                channel.history(sequence), limit_bytes=LIMIT_BYTES, known_etag=None, deadline=deadline
            )
            policy = replace(self._policy, max_age=None)
            data = b"" if content is None else content.data
            entry = verify_manifest(data, policy=policy, channel=channel, seen=None, now=self._clock())
        except (*_DAMAGED, ManifestRefusedError):
            return None
        return entry if entry.sequence == sequence else None

    def _meta(self, paths: ReleasePaths, deadline: TimeBudget) -> bytes:
        try:
            content = self._reader.read(paths.meta, limit_bytes=LIMIT_BYTES, known_etag=None, deadline=deadline)
        except ObjectNotFoundError:
            raise ReleaseNotFoundError(paths.model_key, str(paths.run_id), hidden=self._reader.sees_part) from None
        return b"" if content is None else content.data


def reference_in_path(path: str) -> tuple[Reference, str] | None:
    """Parse `<model>@<channel>/<file>` or `<model>/<run_id>/<file>`, a path in a bucket of releases.

    Returns:
        The release and the path in it ('' for all of it); None for any other path.

    Raises:
        InvalidNameError: the path has an '@', but no valid model or channel around it.
    """
    first, _, rest = path.partition("/")
    if _CHANNEL_MARK in first:
        model_key, _, channel = first.partition(_CHANNEL_MARK)
        paths = ChannelPaths(model_key=check_model_key(model_key), channel=check_channel(channel))
        return Reference(channel=paths, run_id=None), rest
    second, _, inside = rest.partition("/")
    try:
        run_id = RunId.parse(second)
    except InvalidNameError:
        return None
    return Reference(channel=ChannelPaths(model_key=first, channel=DEFAULT_CHANNEL), run_id=run_id), inside
