"""Read a channel's release log as history: all entries, the one at a time, and the proof that none was rewritten."""

from __future__ import annotations

import hashlib
import os
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from supabase_bridge.core.documents import CurrentRelease, Manifest, Metrics
from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import LIMIT_BYTES, canonical
from supabase_bridge.core.layout import METRICS_NAME
from supabase_bridge.core.release_log import digest
from supabase_bridge.releases.channel import Channel
from supabase_bridge.storage.base import ObjectStore, for_each
from supabase_bridge.storage.errors import CorruptObjectError, ObjectNotFoundError, ObjectTooLargeError
from supabase_bridge.storage.local_files import discard, open_for_reading
from supabase_bridge.trust.signer import SigningPolicy

_FIRST_BATCH, _LARGEST_BATCH = 8, 256
"""How many entries are read at once where the cache has none: few, if only the newest ones are missing in it."""


class DigestCache:
    """Small documents that never change, one file for each, named by the SHA-256 of its content.

    A damaged file counts as absent, and a directory that cannot be written caches nothing.

    Args:
        directory: Created with the first document. None: nothing is cached.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def get(self, sha256: str | None) -> bytes | None:
        """Return the document with this digest; None if it is not cached."""
        if self._directory is None or sha256 is None:
            return None
        try:
            with open_for_reading(self._directory / sha256) as file:
                # Not of LIMIT_BYTES: thousands are read, and each would get a buffer so large.
                data = file.read(min(os.fstat(file.fileno()).st_size, LIMIT_BYTES))
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def put(self, sha256: str, data: bytes) -> None:
        """Store a document under its digest."""
        if self._directory is None:
            return
        temporary = self._directory / f".{uuid.uuid4().hex}.part"
        with suppress(OSError):
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                temporary.write_bytes(data)
                temporary.replace(self._directory / sha256)
            finally:
                discard(temporary)


@dataclass(frozen=True, kw_only=True)
class LoggedEntry:
    """One place of a log.

    Attributes:
        entry: None: it is missing, or it is no entry of this log.
        problem: Why it is not trustworthy; None: nothing is known against it.
        proven: An entry after it names its digest. The newest entry has none after it.
    """

    sequence: int
    entry: Manifest | None
    problem: str | None = None
    proven: bool = False


class LogHistory:
    """The entries of one channel's log.

    Args:
        cache: Has entries by the digest that the entry after each names. An entry that no entry names is always read.
    """

    def __init__(self, channel: Channel, cache: DigestCache) -> None:
        self._channel = channel
        self._cache = cache

    def read(self, head: Manifest) -> list[LoggedEntry]:
        """Return all entries up to the newest one, the oldest first. A missing or a rewritten one has its problem.

        An entry in the cache is one that the entry after it names, whatever the bucket has in its place now.

        Raises:
            ObjectStoreError: the store did not answer.
        """
        self._keep(head)
        found = [LoggedEntry(sequence=head.sequence, entry=head)]
        batch = _FIRST_BATCH
        read: dict[int, LoggedEntry] = {}
        for sequence in range(head.sequence - 1, 0, -1):
            after = found[-1].entry
            named = None if after is None else after.previous_entry_sha256
            if sequence not in read and (cached := self._cached(named, sequence)) is not None:
                found.append(LoggedEntry(sequence=sequence, entry=cached, proven=True))
                continue
            if sequence not in read:
                read = self._read_all(range(sequence, max(sequence - batch, 0), -1))
                batch = min(batch * 2, _LARGEST_BATCH)
            found.append(_linked(read[sequence], named))
        return found[::-1]

    def at(self, head: Manifest, time: datetime) -> Manifest | None:
        """Return the entry that made current what was current at a time; None if nothing was.

        It takes requests by the logarithm of the log's length. The times are those of the workers that wrote the
        entries; if a clock ran backwards between two entries, the result is one of them.

        Raises:
            ReleaseDamagedError, InvalidDocumentError: an entry that it needs is missing, or is no entry of this log.
            ObjectStoreError: the store did not answer.
        """
        known = {head.sequence: head}

        def current(sequence: int) -> CurrentRelease:
            if sequence not in known:
                known[sequence] = self._channel.entry(sequence)
            return known[sequence].current

        sequences = range(1, head.sequence + 1)
        last = bisect_right(sequences, time, key=lambda sequence: current(sequence).published_at)
        if last == 0:
            return None
        # An entry that was written again has time and release of the one that moved the pointer.
        found = current(last)

        def place(sequence: int) -> tuple[datetime, bool]:
            return current(sequence).published_at, current(sequence).run_id == found.run_id

        first = bisect_left(sequences, (found.published_at, True), hi=last, key=place) + 1
        return known.get(first, known[last])

    def _cached(self, sha256: str | None, sequence: int) -> Manifest | None:
        data = self._cache.get(sha256)
        if data is None:
            return None
        entry = Manifest.parse_again(data)
        paths = self._channel.paths
        named = (entry.model_name, entry.channel, entry.sequence)
        return entry if named == (paths.model_key, paths.channel, sequence) else None

    def _read_all(self, sequences: Iterable[int]) -> dict[int, LoggedEntry]:
        found: dict[int, LoggedEntry] = {}

        def read(text: str) -> None:
            sequence = int(text)
            try:
                entry = self._channel.entry(sequence)
            except ObjectNotFoundError:
                found[sequence] = LoggedEntry(sequence=sequence, entry=None, problem="it is missing")
            except (InvalidDocumentError, CorruptObjectError, ObjectTooLargeError) as error:
                found[sequence] = LoggedEntry(sequence=sequence, entry=None, problem=str(error))
            else:
                found[sequence] = LoggedEntry(sequence=sequence, entry=entry)
                self._keep(entry)

        for_each(map(str, sequences), read)
        return found

    def _keep(self, entry: Manifest) -> None:
        with suppress(InvalidDocumentError):
            data = canonical(entry.to_object(), entry.document_name)
            self._cache.put(hashlib.sha256(data).hexdigest(), data)


def _linked(found: LoggedEntry, named: str | None) -> LoggedEntry:
    """Compare an entry that was read with the digest that the entry after it names."""
    if found.entry is None or named is None:
        return found
    try:
        actual = digest(found.entry)
    except InvalidDocumentError as error:
        return replace(found, problem=str(error))
    if actual != named:
        return replace(found, problem=f"it was rewritten: entry {found.sequence + 1} names another one")
    return replace(found, proven=True)


def verified(log: Sequence[LoggedEntry], channel: Channel, signing: SigningPolicy) -> Iterator[LoggedEntry]:
    """Yield the entries of a log, the oldest first, each with the first problem of the chain and of its signature.

    The log must have been read without a cache. If keys are trusted, one of them must have signed each entry from the
    first signed one on, and the newest entry: signatures may have been switched on later.
    """
    signed = [found.sequence for found in log if found.entry is not None and found.entry.signature is not None]
    first_signed = min(signed, default=len(log))
    chained = False
    for found in log:
        entry, problem = found.entry, found.problem
        if entry is not None and problem is None:
            if chained and entry.previous_entry_sha256 is None:
                problem = "it names no entry before it, although an earlier one does: it was rewritten"
            elif found.sequence >= first_signed:
                refused = signing.problem(entry, channel.paths.history(found.sequence))
                problem = None if refused is None else str(refused)
            chained = chained or entry.previous_entry_sha256 is not None
        yield found if problem is None else replace(found, problem=problem)


def metrics_of(
    store: ObjectStore, entries: Iterable[Manifest], cache: DigestCache, *, note: Callable[[str], None]
) -> Mapping[str, Metrics]:
    """Return the metrics of each release that an entry made current, by run_id; a release without any is left out.

    Args:
        note: Called with the reason why the metrics of a release cannot be read.

    Raises:
        ObjectStoreError: the store did not answer.
    """
    releases = {entry.current.run_id: entry.current for entry in entries}
    found: dict[str, Metrics] = {}
    for run_id, current in releases.items():
        if (data := cache.get(_digest_of_metrics(current))) is not None:
            found[run_id] = Metrics.parse_again(data)

    def read(run_id: str) -> None:
        current = releases[run_id]
        try:
            data = store.read(current.metrics_path, limit_bytes=LIMIT_BYTES)
            found[run_id] = Metrics.parse(data)
        except (ObjectNotFoundError, ObjectTooLargeError, CorruptObjectError, InvalidDocumentError) as error:
            note(str(error))
            return
        actual, recorded = hashlib.sha256(data).hexdigest(), _digest_of_metrics(current)
        if recorded not in {None, actual}:
            del found[run_id]
            note(f"{current.metrics_path} is not the file that the log records")
        cache.put(actual, data)

    for_each([run_id for run_id in releases if run_id not in found], read)
    return found


def _digest_of_metrics(release: CurrentRelease) -> str | None:
    record = release.files.get(METRICS_NAME)
    return None if record is None else record.sha256
