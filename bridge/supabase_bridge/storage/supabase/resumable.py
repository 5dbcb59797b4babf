"""Upload files in chunks with TUS, and keep the state of unfinished uploads on disk.

Protocol: https://tus.io/protocols/resumable-upload
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic import BaseModel, Field, ValidationError

from supabase_bridge.core.errors import BridgeError
from supabase_bridge.storage.base import Digests, Progress, ProgressReporter, PutOptions
from supabase_bridge.storage.errors import StoreUnavailableError
from supabase_bridge.storage.hashing import HashingReader
from supabase_bridge.storage.local_files import discard, file_lock
from supabase_bridge.storage.supabase.client import Transport
from supabase_bridge.storage.supabase.responses import FAILURES, TRIES, Failure, RefusalError, classify
from supabase_bridge.storage.supabase.upload import check_sha256, found_at, max_age, open_body, user_metadata

CHUNK_BYTES = 6 * 1024 * 1024
"""Hosted Supabase requires this size of every PATCH but the last one."""

_TUS = {"tus-resumable": "1.0.0"}

_OUT_OF_STEP = frozenset({404, 409, 410})
"""The server has another offset, or has lost the upload: only HEAD returns where to continue."""

_UPLOAD_ID = re.compile(r"[A-Za-z0-9_=-]{1,2048}")

_logger = logging.getLogger(__name__)


def upload_id(store_url: str, bucket: str, key: str, *, size_bytes: int, sha256: str) -> str:
    """Return a file name for an upload, made of its destination and its exact bytes."""
    return hashlib.sha256(json.dumps([store_url, bucket, key, size_bytes, sha256]).encode()).hexdigest()


class _SavedUpload(BaseModel):
    """The content of a state file. It holds no secret: the URL is useless without a secret key."""

    url: str = Field(max_length=4096)
    token: str = Field(pattern="^[0-9a-f]{32}$")


class UploadLock:
    """The exclusive right to one upload, and its saved state.

    Attributes:
        token: The random token of the upload: the saved one, or a new one.
        url: Where the saved upload continues; None if there is none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.token = uuid.uuid4().hex
        self.url: str | None = None
        # A state file that is missing or damaged is as good as none.
        with suppress(OSError, ValidationError):
            if path is not None:
                with path.open("rb") as file:
                    saved = _SavedUpload.model_validate_json(file.read(16 * 1024))
                self.token, self.url = saved.token, saved.url

    def save(self, url: str) -> None:
        """Save the URL until the upload ends; if that fails, the upload continues without."""
        self.url = url
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.stem}.{uuid.uuid4().hex}.part")
        try:
            temporary.write_text(_SavedUpload(url=url, token=self.token).model_dump_json(), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            discard(temporary)
            facts = {"path": str(self._path), "reason": error.strerror}
            _logger.warning("An upload cannot be saved; no other process could resume it", extra=facts)

    def forget(self) -> None:
        """Delete the saved state: the upload is complete, or cannot be resumed."""
        if self._path is not None:
            discard(self._path)


@contextmanager
def lock_upload(directory: Path, upload: str) -> Iterator[UploadLock]:
    """Lock an upload; its state is deleted at the end of the block, except after StoreUnavailableError.

    If several threads or processes lock the same upload, the first one gets the state: two of them that send chunks of
    one upload would disturb each other. The others start new uploads. The operating system releases the lock of a
    killed process, and the state stays.

    Args:
        directory: Created if it is missing; it has one small file for each unfinished upload.
        upload: The `upload_id`.
    """
    path = directory / f"{upload}.json"
    with file_lock(path.with_suffix(".lock"), remove=True) as held:
        if not held and not os.access(directory, os.W_OK):
            _logger.warning("Uploads cannot be saved: the directory is not writable", extra={"path": str(path)})
        lock = UploadLock(path if held else None)
        try:
            yield lock
        except StoreUnavailableError:
            raise
        except BridgeError:
            lock.forget()
            raise
        else:
            lock.forget()


def forget_stale(directory: Path, *, before: datetime, dry_run: bool) -> list[Path]:
    """Delete the state of uploads that were last resumed earlier than `before`; return the deleted files.

    The state of a running upload is never deleted.

    Args:
        dry_run: Delete nothing, and return what would be deleted.
    """
    stale: list[Path] = []
    for path in sorted(directory.glob("*.json")) + sorted(directory.glob("*.part")):
        if not _is_older(path, before):
            continue
        if dry_run:
            stale.append(path)
            continue
        with file_lock(path.with_name(f"{path.name.split('.')[0]}.lock"), remove=True) as held:
            if held and _is_older(path, before):
                discard(path)
                stale.append(path)
    return stale


def _is_older(path: Path, moment: datetime) -> bool:
    try:
        return path.stat().st_mtime < moment.timestamp()
    except OSError:
        return False


def upload_resumable(
    transport: Transport, key: str, path: Path, options: PutOptions, *, lock: UploadLock, progress: Progress | None
) -> Digests:
    """Store a file under `key`, replacing what is there, in constant memory; the object appears whole or not at all.

    The upload continues after a broken connection, and so does the saved upload of an earlier process: bytes that the
    server has are read from the disk only for their hash. The upload fails after TRIES failures in a row without
    another accepted byte, or when breaks and stalls exceed `Transport.budget`; the saved state then stays.

    Args:
        progress: Called once for each byte, including those of an earlier process.

    Raises:
        LocalFileError: the file cannot be read, or became shorter.
        CorruptObjectError: the bytes do not have the SHA-256 of `options`.
        ObjectTooLargeError: the bucket refuses objects of this size.
        StoreUnavailableError: the connection broke too often, or was too slow.
    """
    with open_body(path, ProgressReporter(progress), options) as file:
        _Upload(transport, key, file, options, lock).run()
        sent = file.digests()
    check_sha256(transport, key, options, sent)
    return sent


def resumable_url(url: str) -> str:
    """Return where uploads are created: on a hosted project's direct storage host, as Supabase asks for large files."""
    return re.sub(r"^https://([a-z0-9]+)\.supabase\.co/", r"https://\1.storage.supabase.co/", url, flags=re.IGNORECASE)


def check_refusal(transport: Transport, key: str, size_bytes: int, options: PutOptions, *, token: str) -> None:
    """Check without sending a body whether the server refuses an upload.

    Raises:
        AccessDeniedError, BucketNotFoundError, ObjectTooLargeError: it does.
        StoreUnavailableError: the server does not respond.
    """
    creation = _Creation(transport, key, size_bytes, options, token)

    def create_and_delete() -> None:
        with transport.own_connection() as http:
            http.delete(creation.make(http), headers=_TUS)

    transport.run(creation.request, create_and_delete)


class _Creation:
    """The request that creates an upload, and the check of the URL that it returns."""

    def __init__(self, transport: Transport, key: str, size_bytes: int, options: PutOptions, token: str) -> None:
        own = transport.url("upload", "resumable")
        self.request = transport.request(f"uploading {key}", key, size_bytes=size_bytes)
        self.target = [_pair("bucketName", transport.bucket), _pair("objectName", key)]
        self._endpoint = resumable_url(own)
        self._hosts = {urlsplit(own).hostname, urlsplit(self._endpoint).hostname}
        metadata = [
            *self.target,
            _pair("contentType", options.content_type),
            _pair("cacheControl", max_age(options)),
            _pair("metadata", json.dumps(user_metadata(transport, options, token, size_bytes=size_bytes))),
        ]
        self._headers = {
            **_TUS,
            "x-upsert": "true",
            "upload-length": str(size_bytes),
            "upload-metadata": ",".join(metadata),
        }

    def make(self, http: httpx.Client) -> str:
        """Create an upload and return its URL, always below the endpoint: the key is sent nowhere else.

        Behind a gateway the server often returns a wrong scheme, port or path, so only the upload's id is used. Another
        host is refused.
        """
        location = http.post(self._endpoint, headers=self._headers).headers["location"]
        parts = urlsplit(urljoin(f"{self._endpoint}/", location))
        upload_id = parts.path.rpartition("/")[2]
        if parts.hostname not in self._hosts:
            raise self.request.unexpected(f"an upload URL on another host, {str(parts.hostname)[:100]!r}")
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise self.request.unexpected("an upload URL without an id")
        return f"{self._endpoint}/{upload_id}"

    def is_ours(self, url: str) -> bool:
        """Return True if a saved URL belongs to this endpoint."""
        return url.startswith(f"{self._endpoint}/") and bool(_UPLOAD_ID.fullmatch(url[len(self._endpoint) + 1 :]))


class _Upload:
    """The upload of one file; used once."""

    def __init__(
        self, transport: Transport, key: str, file: HashingReader, options: PutOptions, lock: UploadLock
    ) -> None:
        self._transport = transport
        self._key = key
        self._file = file
        self._lock = lock
        self._creation = _Creation(transport, key, file.size_bytes, options, lock.token)
        self._request = self._creation.request
        self._url = lock.url if lock.url is not None and self._creation.is_ours(lock.url) else None
        self._furthest = 0
        self._budget = transport.budget()

    def run(self) -> None:
        """Send chunks until the server has all bytes."""
        failures = 0
        while True:
            before = self._furthest
            try:
                # A connection is never used again after a refusal or a break; see `own_connection`.
                with self._transport.own_connection() as http:
                    return self._send(http)
            except FAILURES as error:
                progressed = self._furthest > before
                failures = 1 if progressed else failures + 1
                failure = self._classify(error)
                stalled = progressed and isinstance(error, httpx.TimeoutException)
                exhausted = failures >= TRIES or self._budget.left() <= 0
                if exhausted or not (failure.again or stalled):
                    raise failure.error from error
            self._transport.wait(self._request, failure, tried=failures)

    def _send(self, http: httpx.Client) -> None:
        url, offset = self._resume(http)
        while offset < self._file.size_bytes:
            stop = min(offset + CHUNK_BYTES, self._file.size_bytes)
            headers = {
                **_TUS,
                "x-upsert": "true",  # The server checks on every PATCH whether the key is free.
                "upload-offset": str(offset),
                "content-type": "application/offset+octet-stream",
                "content-length": str(stop - offset),
            }
            response = http.patch(url, headers=headers, content=self._file.pieces(offset, stop))
            accepted = int(response.headers["upload-offset"])
            if not offset < accepted <= stop:
                raise ValueError(f"offset {accepted} after sending the bytes from {offset} to {stop}")
            offset = accepted
            self._reached(offset)

    def _reached(self, offset: int) -> None:
        """Note the offset that the server confirmed."""
        self._budget.moved(max(0, offset - self._furthest))
        self._furthest = max(self._furthest, offset)

    def _resume(self, http: httpx.Client) -> tuple[str, int]:
        """Return the URL and the offset of the running upload, or of a new one if that is gone or not ours."""
        if self._url is not None:
            offset = self._offset(http, self._url)
            if offset is not None:
                self._reached(offset)
                return self._url, offset
            _logger.info("An upload starts again", extra={"key": self._key})
            self._url = None
        self._url = self._creation.make(http)
        self._lock.save(self._url)
        return self._url, 0

    def _offset(self, http: httpx.Client, url: str) -> int | None:
        """Return the server's offset of an upload; None if the upload has expired, or is another one."""
        try:
            headers = http.head(url, headers=_TUS).headers
        except RefusalError as refusal:
            # A response to HEAD has no body with a reason; the POST of a new upload gets it.
            if self._classify(refusal).again and refusal.status not in _OUT_OF_STEP:
                raise
            return None
        offset = int(headers["upload-offset"])
        same = set(self._creation.target) <= set(headers.get("upload-metadata", "").split(","))
        if not same or headers.get("upload-length") != str(self._file.size_bytes):
            return None
        if offset == self._file.size_bytes:
            # The object of a finished upload may have been deleted or replaced since.
            found = found_at(self._transport, self._key)
            if found is None or found.token != self._lock.token:
                return None
        return offset

    def _classify(self, error: Exception) -> Failure:
        if isinstance(error, RefusalError):
            status = error.status
            # 409 never means that the object exists: x-upsert is on every request.
            if status == 409 or (status in _OUT_OF_STEP and self._url is not None):
                reason = f"the server lost track of the upload ({error})"
                return Failure(error=self._request.unavailable(reason), again=True)
        return classify(error, self._request)


def _pair(name: str, value: str) -> str:
    """Encode one entry of Upload-Metadata."""
    return f"{name} {base64.b64encode(value.encode()).decode()}"
