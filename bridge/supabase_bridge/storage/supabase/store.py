"""`SupabaseStore`: the object-store protocol on Supabase Storage, with signed URLs."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import httpx
from pydantic import AwareDatetime, BaseModel, NonNegativeInt, SecretStr

from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.layout import TEMPORARY_PREFIX, check_object_key
from supabase_bridge.settings.model import RESUMABLE_THRESHOLD_BYTES
from supabase_bridge.storage import errors
from supabase_bridge.storage.base import Body, Digests, ObjectInfo, Progress, PutOptions
from supabase_bridge.storage.supabase import resumable, upload
from supabase_bridge.storage.supabase.bucket import read_bucket
from supabase_bridge.storage.supabase.client import Transport
from supabase_bridge.storage.supabase.copy import copy_between, move_to_free
from supabase_bridge.storage.supabase.read import plain_etag
from supabase_bridge.storage.supabase.upload import body_size, found_at, stored_at, verify

_logger = logging.getLogger(__name__)

_PAGE = 1000
"""The largest number of objects that the server lists, or deletes, in one request."""


@runtime_checkable
class SigningStore(Protocol):
    """A store that can sign URLs; a directory cannot, because no server serves it."""

    def signed_url(self, key: str, *, lifetime: timedelta) -> str:
        """Return a URL that reads the current object without a key until `lifetime` (whole seconds) ends.

        Only deleting the object or changing the project's signing key revokes it. A browser saves the download under
        the last part of the key.

        Raises:
            ObjectNotFoundError: there is none.
        """
        ...

    def signed_upload_url(self, key: str) -> str:
        """Return a URL to which a client without a key can PUT an object, also over an existing one.

        The server decides how long it works: two hours in a hosted project.
        """
        ...


class SupabaseStore:
    """The object store in one bucket of a Supabase project; see `ObjectStore` for the contract of each method.

    Failures that pass (broken connections, 429, 5xx, HTML from a gateway) are retried where a repetition is harmless:
    TRIES attempts, with pauses of about three seconds in all. Timeouts are not retried: they raise
    StoreUnavailableError, and so does a transfer below MINIMUM_RATE. The result of a copy on the server is polled for
    longer (see `wait_until_visible`).

    Args:
        url: The project's URL, without /storage/v1.
        key: A secret key of it.
        bucket: The bucket's name.
        timeout: Maximum time of one network operation without progress, or below MINIMUM_RATE.
        resumable_threshold_bytes: A larger file is sent in chunks, and its upload continues after a broken connection.
        uploads: Directory for the state of unfinished resumable uploads; None: no other process can resume them.
        pause: Waits between two attempts; replaced in tests.
        writes: Whether `key` is a secret key; a reader's key sees only what a policy allows.
        digest_key: The secret under which recorded digests are authenticated; None: they are not trusted.
    """

    def __init__(
        self,
        *,
        url: str,
        key: SecretStr,
        bucket: str,
        timeout: timedelta,
        resumable_threshold_bytes: int = RESUMABLE_THRESHOLD_BYTES,
        uploads: Path | None = None,
        pause: Callable[[float], None] = time.sleep,
        writes: bool = True,
        digest_key: SecretStr | None = None,
    ) -> None:
        self._bucket = bucket
        self._resumable_threshold_bytes = resumable_threshold_bytes
        self._uploads = uploads
        self._transport = Transport(
            url=url, key=key, bucket=bucket, timeout=timeout, pause=pause, writes=writes, digest_key=digest_key
        )

    @property
    def name(self) -> str:
        return self._transport.name

    def ensure_bucket(self) -> None:
        try:
            if (kept := read_bucket(self._transport).kept_versions) is not None:
                facts = {"store": self.name, "versions": kept}
                _logger.warning("The bucket keeps old versions of objects (docs/operations.md)", extra=facts)
        except errors.BucketNotFoundError:
            request = self._transport.request("creating the bucket", self._bucket)
            create = self._transport.storage().create_bucket
            try:
                self._transport.run(request, lambda: create(self._bucket, options={"public": False}))
            except errors.ObjectExistsError:
                _logger.info("Another client created the bucket at the same time", extra={"bucket": self._bucket})

    def create(self, key: str, body: bytes, options: PutOptions) -> None:
        """Implement `create` by an upload to a new temporary key and a move, as Supabase has no conditional write.

        The server lets exactly one of any number of concurrent moves onto one key succeed, and none if an object is
        there (measured; its database has a unique index). The upload is verified before the move, so that a damaged
        object is never visible under its key.

        If the outcome stays unknown (StoreUnavailableError), a later `create` of the same key raises ObjectExistsError
        if this one succeeded. Compare the contents then.
        """
        check_object_key(key)
        token = uuid.uuid4().hex
        temporary = TEMPORARY_PREFIX + token
        with self._temporary_of(key, temporary):
            sent = upload.upload(self._transport, temporary, body, options, token=token, progress=None)
            if options.compared:
                verify(self._transport, temporary, sent, stored_at(self._transport, temporary))
            move_to_free(self._transport, temporary, key, token, size_bytes=sent.size_bytes)

    def copy_in(self, bucket: str, info: ObjectInfo, key: str, options: PutOptions) -> ObjectInfo | None:
        """Copy on the server to the key itself, and verify the copy."""
        return copy_between(self._transport, bucket, info, check_object_key(key), options, token=uuid.uuid4().hex)

    def move(self, key: str, target: str) -> None:
        bucket = self._transport.storage().from_(self._bucket)
        request = self._transport.request(f"moving {check_object_key(key)} to {target}", target)
        self._transport.run(request, lambda: bucket.move(key, check_object_key(target)))

    @contextmanager
    def _temporary_of(self, key: str, temporary: str) -> Iterator[None]:
        """Delete the temporary object of `key` if the block fails with a known outcome."""
        try:
            yield
        except errors.ObjectNotFoundError as error:
            reason = "another client deleted its temporary object"
            raise errors.StoreUnavailableError(self.name, f"creating {key}", reason) from error
        except errors.StoreUnavailableError:
            # A move may be running; a cleanup deletes the object later.
            raise
        except BridgeError:
            self._discard(temporary)
            raise

    def overwrite(
        self, key: str, body: Body, options: PutOptions, progress: Progress | None = None
    ) -> ObjectInfo | None:
        check_object_key(key)
        with self._lock(key, body, options) as lock:
            token = lock.token
            sent = self._send(key, body, options, lock, progress)
        if not options.compared:
            return None
        stored = found_at(self._transport, key)
        # Another token, or no object: another client has changed it since, and only that client can verify it.
        if stored is None or stored.token not in (None, token):
            return None
        try:
            verify(self._transport, key, sent, stored)
        except (errors.CorruptObjectError, errors.ObjectNotFoundError):
            stored = found_at(self._transport, key)
            if stored is not None and stored.token in (None, token):
                raise
            return None
        return stored.info

    def read(self, key: str, *, limit_bytes: int) -> bytes:
        check_object_key(key)
        transport = self._transport
        content = transport.reader().read(key, limit_bytes=limit_bytes, known_etag=None, deadline=transport.budget())
        return b"" if content is None else content.data

    def stream(self, key: str, *, fresh: bool = False) -> Iterator[bytes]:
        check_object_key(key)
        return self._transport.reader().stream(key, deadline=self._transport.budget(), fresh=fresh)

    def read_part(self, info: ObjectInfo, *, start: int, size_bytes: int) -> bytes:
        budget = self._transport.budget()
        return self._transport.reader().read_part(info, start=start, size_bytes=size_bytes, deadline=budget)

    def stat(self, key: str) -> ObjectInfo:
        return stored_at(self._transport, check_object_key(key)).info

    def list(self, prefix: str, *, bucket_exists: bool = False) -> Iterator[ObjectInfo]:
        """Implement `list`; temporary objects are listed only if `prefix` begins with TEMPORARY_PREFIX."""
        empty = True
        for info in list_objects(self._transport, prefix):
            empty = False
            if not info.key.startswith(TEMPORARY_PREFIX) or prefix.startswith(TEMPORARY_PREFIX):
                yield info
        if empty and not bucket_exists:
            # The listing of a bucket that is missing, or hidden from this key, is empty.
            self._check_bucket()

    def delete(self, keys: Sequence[str]) -> None:
        checked = [check_object_key(key) for key in keys]
        bucket = self._transport.storage().from_(self._bucket)
        for start in range(0, len(checked), _PAGE):
            batch = checked[start : start + _PAGE]
            request = self._transport.request(f"deleting {len(batch)} objects")
            self._transport.run(request, partial(bucket.remove, batch))

    def signed_url(self, key: str, *, lifetime: timedelta) -> str:
        request = self._transport.request(f"signing {check_object_key(key)}", key)
        bucket = self._transport.storage().from_(self._bucket)
        path, name, seconds = self._transport.path(key), key.rpartition("/")[2], int(lifetime.total_seconds())
        response = self._transport.run(request, lambda: bucket.create_signed_url(path, seconds, {"download": name}))
        url = response["signedURL"]
        if url is None:
            raise errors.UnexpectedResponseError(self.name, request.operation, "no URL")
        return url

    def signed_upload_url(self, key: str) -> str:
        transport = self._transport
        request = transport.request(f"signing an upload of {check_object_key(key)}", key)
        url = transport.url("object", "upload", "sign", self._bucket, key)

        def ask() -> _SignedUpload:
            response = transport.http().post(url, headers={"x-upsert": "true"})
            return _SignedUpload.model_validate_json(response.content)

        # The server's own text of the URL has the key as it is, with spaces and question marks.
        return f"{url}?token={transport.run(request, ask).token}"

    def close(self) -> None:
        self._transport.close()

    def _check_bucket(self) -> None:
        storage = self._transport.storage()
        self._transport.run(self._transport.request("looking for the bucket"), lambda: storage.get_bucket(self._bucket))

    def _lock(self, key: str, body: Body, options: PutOptions) -> AbstractContextManager[resumable.UploadLock]:
        """Lock an upload, with its saved state if it is large enough to be resumed."""
        if self._uploads is None or options.sha256 is None or not self._is_large(body):
            return nullcontext(resumable.UploadLock())
        url, size_bytes = self._transport.url(), body_size(body)
        found = resumable.upload_id(url, self._bucket, key, size_bytes=size_bytes, sha256=options.sha256)
        return resumable.lock_upload(self._uploads, found)

    def _send(
        self, key: str, body: Body, options: PutOptions, lock: resumable.UploadLock, progress: Progress | None
    ) -> Digests:
        if isinstance(body, Path) and self._is_large(body):
            return resumable.upload_resumable(self._transport, key, body, options, lock=lock, progress=progress)
        try:
            return upload.upload(self._transport, key, body, options, token=lock.token, progress=progress)
        except errors.StoreUnavailableError as error:
            if isinstance(error.__cause__, httpx.WriteTimeout):
                # A server that refuses an upload may leave its body unread, so that its response never comes.
                with suppress(errors.UnexpectedResponseError):  # The server has no resumable uploads.
                    resumable.check_refusal(self._transport, key, body_size(body), options, token=lock.token)
            raise

    def _is_large(self, body: Body) -> bool:
        return isinstance(body, Path) and body_size(body) > self._resumable_threshold_bytes

    def _discard(self, temporary: str) -> None:
        """Delete a temporary object; one that stays is never listed with the others, and a cleanup deletes it later."""
        try:
            self.delete([temporary])
        except BridgeError as error:
            _logger.warning("A temporary object was left behind", extra={"key": temporary, "reason": str(error)})


def list_objects(transport: Transport, prefix: str) -> Iterator[ObjectInfo]:
    """List the objects whose keys begin with `prefix` in byte order; nothing if the bucket is missing.

    Raises:
        UnexpectedResponseError: a page is out of order, or does not say how to get the next one.
    """
    request = transport.request(f"listing {prefix!r}")
    body: dict[str, Any] = {"prefix": prefix, "limit": _PAGE, "with_delimiter": False}
    last = ""

    def ask() -> _Page:
        response = transport.http().post(transport.url("object", "list-v2", transport.bucket), json=body)
        return _Page.model_validate_json(response.content)

    while True:
        page = transport.run(request, ask)
        for item in page.objects:
            if item.name <= last or not item.name.startswith(prefix):
                raise request.unexpected(f"{item.name!r} out of order")
            last = item.name
            facts = item.metadata
            if facts is None or facts.size is None:
                raise request.unexpected(f"{item.name!r} without its size")
            etag = plain_etag(facts.eTag)
            yield ObjectInfo(key=item.name, size_bytes=facts.size, modified_at=item.updated_at, etag=etag)
        if not page.hasNext:
            return
        if not page.objects or not page.nextCursor:
            raise request.unexpected("a page without the cursor of the next")
        body["cursor"] = page.nextCursor


class _Facts(BaseModel):
    size: NonNegativeInt | None = None
    eTag: str | None = None


class _Listed(BaseModel):
    name: str
    updated_at: AwareDatetime
    metadata: _Facts | None = None


class _Page(BaseModel):
    """The parts of a listing's page that are used."""

    objects: list[_Listed]
    hasNext: bool
    nextCursor: str | None = None


class _SignedUpload(BaseModel):
    token: str
