"""Sending one file to Supabase Storage in chunks, so that what has arrived is never sent again.

Source: TUS 1.0.0, https://tus.io/protocols/resumable-upload, as Supabase Storage answers it (recorded with v1.70.6).
"""

from __future__ import annotations

import base64
import json
import logging
import re
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from supabase_bridge.errors import BridgeError, StoreUnavailableError, UnexpectedAnswerError
from supabase_bridge.object_store import Digests, Progress, PutOptions
from supabase_bridge.object_store.hashed_file import HashedFile, Meter
from supabase_bridge.object_store.remembered_uploads import Claim
from supabase_bridge.object_store.supabase_errors import FAILURES, RefusalError, Trouble, diagnose
from supabase_bridge.object_store.supabase_transport import TRIES, Transport
from supabase_bridge.object_store.supabase_upload import compare, found_at, hashed_file, max_age, user_metadata

CHUNK_BYTES = 6 * 1024 * 1024
"""What hosted Supabase wants each PATCH but the last one to carry."""

_TUS = {"tus-resumable": "1.0.0"}
_OUT_OF_STEP = frozenset({404, 409, 410})
"""The server has another offset, or no such upload any more: only HEAD can tell how to go on."""

_HOSTED = re.compile(r"https://([a-z0-9]+)\.supabase\.co/", re.IGNORECASE)
_UPLOAD_ID = re.compile(r"[A-Za-z0-9_=-]{1,2048}")

_logger = logging.getLogger(__name__)


def upload_resumable(
    transport: Transport, key: str, path: Path, options: PutOptions, *, claim: Claim, progress: Progress | None
) -> Digests:
    """Store a file under `key`, whatever is there, in constant memory; the object appears whole or not at all.

    A broken connection is taken up where it broke, and so is the upload that `claim` remembers, in this process or an
    earlier one: what has arrived is read from the disk for its hash only. TRIES failures in a row without a further
    byte accepted are the end of it, and so are breaks and stalls that in all take longer than `Transport.patience`; the
    claim then still knows where to go on.

    Args:
        progress: Called once for each byte, those of an earlier process included.

    Raises:
        LocalFileError: the file cannot be read, or became shorter.
        CorruptObjectError: the bytes do not have the SHA-256 of `options`.
        ObjectTooLargeError: the bucket does not take objects of this size.
        StoreUnavailableError: the connection broke too often, or was too slow.
    """
    with hashed_file(path, Meter(progress), options) as file:
        _Upload(transport, key, file, options, claim).run()
        sent = file.sent()
    if options.sha256 is not None:
        compare(transport, key, f"SHA-256 {options.sha256}", f"SHA-256 {sent.sha256}")
    return sent


def resumable_url(url: str) -> str:
    """Where uploads are created: for a hosted project its direct storage host, which Supabase wants large ones to use.

    Args:
        url: The route on the project's own host.
    """
    return _HOSTED.sub(r"https://\1.storage.supabase.co/", url, count=1) if _HOSTED.match(url) else url


def ask_for_refusal(transport: Transport, key: str, size_bytes: int, options: PutOptions, *, token: str) -> None:
    """Find out, without sending a body, whether an upload would be refused.

    Raises:
        AccessDeniedError, BucketNotFoundError, ObjectTooLargeError: it would be.
        StoreUnavailableError: there is no telling.
    """
    creation = _Creation(transport, key, size_bytes, options, token)

    def ask() -> None:
        with transport.own_connection() as http:
            http.delete(creation.make(http), headers=_TUS)

    transport.run(creation.request, ask)


class _Creation:
    """How an upload is begun, and where it then is."""

    def __init__(self, transport: Transport, key: str, size_bytes: int, options: PutOptions, token: str) -> None:
        own = transport.url("upload", "resumable")
        self.request = transport.request(f"uploading {key}", key)
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
        """Begin a new upload; its URL."""
        return self._checked(http.post(self._endpoint, headers=self._headers).headers["location"])

    def is_ours(self, url: str) -> bool:
        """Whether a remembered URL is one of this endpoint's."""
        return url.startswith(f"{self._endpoint}/") and bool(_UPLOAD_ID.fullmatch(url[len(self._endpoint) + 1 :]))

    def _checked(self, location: str) -> str:
        """The URL of the upload that `location` names, always below the endpoint: there and only there goes the key.

        Behind a gateway the server often gets scheme, port or path of its own URL wrong, so nothing but the upload's
        id is taken from it. Another host is not a mistake of that kind.
        """
        parts = urlsplit(urljoin(f"{self._endpoint}/", location))
        upload_id = parts.path.rpartition("/")[2]
        if parts.hostname not in self._hosts:
            raise self._unexpected(f"an upload URL on another host, {str(parts.hostname)[:100]!r}")
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise self._unexpected("an upload URL without an id")
        return f"{self._endpoint}/{upload_id}"

    def _unexpected(self, answer: str) -> UnexpectedAnswerError:
        return UnexpectedAnswerError(self.request.store, self.request.operation, answer)


class _Upload:
    """One file on its way out; used once."""

    def __init__(self, transport: Transport, key: str, file: HashedFile, options: PutOptions, claim: Claim) -> None:
        self._transport = transport
        self._key = key
        self._file = file
        self._claim = claim
        self._creation = _Creation(transport, key, file.size_bytes, options, claim.token)
        self._request = self._creation.request
        self._url = claim.url if claim.url is not None and self._creation.is_ours(claim.url) else None
        self._furthest = 0
        self._patience = transport.patience()

    def run(self) -> None:
        """Send until all has arrived."""
        failures = 0
        while True:
            before = self._furthest
            try:
                # A connection whose request was refused or broke off is never used again; see `own_connection`.
                with self._transport.own_connection() as http:
                    return self._send(http)
            except FAILURES as failure:
                progressed = self._furthest > before
                failures = 1 if progressed else failures + 1
                trouble = self._trouble(failure)
                stalled = progressed and isinstance(failure, httpx.TimeoutException)
                exhausted = failures >= TRIES or self._patience.left() <= 0
                if exhausted or not (trouble.again or stalled):
                    raise trouble.error from failure
            self._transport.wait(self._request, trouble, tried=failures)

    def _send(self, http: httpx.Client) -> None:
        url, offset = self._where_to_go_on(http)
        while offset < self._file.size_bytes:
            stop = min(offset + CHUNK_BYTES, self._file.size_bytes)
            headers = {
                **_TUS,
                "x-upsert": "true",  # The server asks on every PATCH whether the key is free.
                "upload-offset": str(offset),
                "content-type": "application/offset+octet-stream",
                "content-length": str(stop - offset),
            }
            answer = http.patch(url, headers=headers, content=self._file.pieces(offset, stop))
            accepted = int(answer.headers["upload-offset"])
            if not offset < accepted <= stop:
                raise ValueError(f"offset {accepted} after sending the bytes from {offset} to {stop}")
            offset = accepted
            self._reached(offset)

    def _reached(self, offset: int) -> None:
        """Note how far the upload has come."""
        self._patience.moved(max(0, offset - self._furthest))
        self._furthest = max(self._furthest, offset)

    def _where_to_go_on(self, http: httpx.Client) -> tuple[str, int]:
        """The upload's URL and offset: of the one under way if it is still there and ours, else of a new one."""
        if self._url is not None:
            offset = self._offset(http, self._url)
            if offset is not None:
                self._reached(offset)
                return self._url, offset
            _logger.info("An upload starts again", extra={"key": self._key})
            self._url = None
        self._url = self._creation.make(http)
        self._claim.remember(self._url)
        return self._url, 0

    def _offset(self, http: httpx.Client, url: str) -> int | None:
        """How far an upload has come; None if it has expired, or is not this one."""
        try:
            headers = http.head(url, headers=_TUS).headers
        except RefusalError as refusal:
            # An answer to HEAD has no body that could say why; the new upload's POST will be told.
            if self._trouble(refusal).again and refusal.answer.status not in _OUT_OF_STEP:
                raise
            return None
        offset = int(headers["upload-offset"])
        same = set(self._creation.target) <= set(headers.get("upload-metadata", "").split(","))
        if not same or headers.get("upload-length") != str(self._file.size_bytes):
            return None
        if offset == self._file.size_bytes and not self._arrived():
            return None
        return offset

    def _arrived(self) -> bool:
        """Whether the finished upload's object is there, and nobody has deleted or replaced it since."""
        found = found_at(self._transport, self._key)
        return found is not None and found.token == self._claim.token

    def _trouble(self, failure: Exception) -> Trouble:
        trouble = diagnose(failure, self._request)
        if isinstance(failure, RefusalError):
            status = failure.answer.status
            # 409 is never about the object here: x-upsert is on every request.
            if status == 409 or (status in _OUT_OF_STEP and self._url is not None):
                reason = f"the server lost track of the upload ({failure.answer})"
                error: BridgeError = StoreUnavailableError(self._transport.name, self._request.operation, reason)
                return Trouble(error=error, again=True)
        return trouble


def _pair(name: str, value: str) -> str:
    """One entry of Upload-Metadata."""
    return f"{name} {base64.b64encode(value.encode()).decode()}"
