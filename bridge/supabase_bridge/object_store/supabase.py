"""A bucket of Supabase Storage."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import httpx

from supabase_bridge.config import RESUMABLE_THRESHOLD_BYTES
from supabase_bridge.errors import (
    BridgeError,
    BucketNotFoundError,
    CorruptObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreUnavailableError,
    UnexpectedAnswerError,
)
from supabase_bridge.layout import TEMPORARY_PREFIX, check_object_key
from supabase_bridge.object_store import Body, Digests, ObjectInfo, Progress, PutOptions
from supabase_bridge.object_store.remembered_uploads import Claim, RememberedUploads, UploadName
from supabase_bridge.object_store.signing import signed_url
from supabase_bridge.object_store.supabase_copy import copy_between
from supabase_bridge.object_store.supabase_download import Download, read_part
from supabase_bridge.object_store.supabase_listing import PAGE, listed
from supabase_bridge.object_store.supabase_move import move_to_free
from supabase_bridge.object_store.supabase_resumable import ask_for_refusal, upload_resumable
from supabase_bridge.object_store.supabase_transport import Transport
from supabase_bridge.object_store.supabase_upload import (
    SHARED_CONNECTION_LIMIT_BYTES,
    body_size,
    found_at,
    stored_at,
    upload,
    verify,
)
from supabase_bridge.secret import Secret

_logger = logging.getLogger(__name__)


class SupabaseStore:
    """The object store in one bucket of a Supabase project; see `ObjectStore` for what each method promises.

    Failures that pass (broken connections, 429, 5xx, HTML from a gateway) are tried again wherever doing it twice is
    harmless: TRIES times, with pauses of about three seconds in all. A silent server is not asked again: after
    `timeout` it is StoreUnavailableError, and so is one that moves less than MINIMUM_RATE. What it was asked to copy is
    looked for longer (see `await_arrival`).

    Args:
        url: The project's URL, without /storage/v1.
        key: Its service-role key.
        bucket: The bucket's name.
        timeout: How long one network operation may stay silent, or below MINIMUM_RATE.
        resumable_threshold_bytes: A file larger than this is sent in chunks, which survive a broken connection.
        uploads: The directory that remembers unfinished ones of these for another process; None: they are not.
        pause: Waits between two tries; replaced in tests.
    """

    def __init__(
        self,
        *,
        url: str,
        key: Secret,
        bucket: str,
        timeout: timedelta,
        resumable_threshold_bytes: int = RESUMABLE_THRESHOLD_BYTES,
        uploads: Path | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bucket = bucket
        self._resumable_threshold_bytes = resumable_threshold_bytes
        self._remembered = RememberedUploads(uploads)
        self._transport = Transport(url=url, key=key, bucket=bucket, timeout=timeout, pause=pause)

    @property
    def name(self) -> str:
        return self._transport.name

    def ensure_bucket(self) -> None:
        try:
            self._check_bucket()
        except BucketNotFoundError:
            request = self._transport.request("creating the bucket", self._bucket)
            create = self._transport.storage().create_bucket
            try:
                self._transport.run(request, lambda: create(self._bucket, options={"public": False}))
            except ObjectExistsError:
                _logger.info("Somebody else created the bucket at the same time", extra={"bucket": self._bucket})

    def create(self, key: str, body: Body, options: PutOptions, progress: Progress | None = None) -> None:
        """As the protocol says, although Supabase has no conditional write, by upload to a fresh key and `move`.

        Of any number of concurrent moves onto one key the server lets exactly one succeed, and refuses all where the
        key is taken (measured; it is a unique index in its database). What arrived is compared with what was sent
        before the move, so that a damaged upload is never seen under its key.

        A file of more than `resumable_threshold_bytes` whose SHA-256 is given is remembered until it is in place, its
        temporary key included, so that another process goes on where this one was stopped.

        Where the outcome stays unknown (StoreUnavailableError) a later `create` of the same key says ObjectExistsError
        if this one had succeeded: compare contents then.
        """
        check_object_key(key)
        with self._claim(key, body, options) as claim:
            temporary = TEMPORARY_PREFIX + claim.token
            if body_size(body) > SHARED_CONNECTION_LIMIT_BYTES and found_at(self._transport, key) is not None:
                if claim.url is not None:
                    self._discard(temporary)
                raise ObjectExistsError(self.name, key)
            with self._temporary_of(key, temporary):
                sent = self._send(temporary, body, options, claim, progress)
                verify(self._transport, temporary, sent, stored_at(self._transport, temporary))
                move_to_free(self._transport, temporary, key, claim.token, size_bytes=sent.size_bytes)

    def copy_in(self, bucket: str, info: ObjectInfo, key: str, options: PutOptions) -> None:
        """As the protocol says; the server copies to a fresh key, which is compared and then moved, as in `create`."""
        if found_at(self._transport, check_object_key(key)) is not None:
            raise ObjectExistsError(self.name, key)
        token = uuid.uuid4().hex
        temporary = TEMPORARY_PREFIX + token
        with self._temporary_of(key, temporary):
            copy_between(self._transport, bucket, info, temporary, options, token=token)
            move_to_free(self._transport, temporary, key, token, size_bytes=info.size_bytes)

    @contextmanager
    def _temporary_of(self, key: str, temporary: str) -> Iterator[None]:
        """Make a temporary object and move it to `key`; it is deleted after a failure that leaves nothing open."""
        try:
            yield
        except ObjectNotFoundError as error:
            reason = "its temporary object was deleted by somebody else"
            raise StoreUnavailableError(self.name, f"creating {key}", reason) from error
        except StoreUnavailableError:
            # The server does not answer now, or a move may be under way: the next `create` that remembers this
            # upload goes on with it, or whoever sweeps temporary keys takes it later.
            raise
        except BridgeError:
            self._discard(temporary)
            raise

    def overwrite(self, key: str, body: Body, options: PutOptions, progress: Progress | None = None) -> None:
        check_object_key(key)
        with self._claim(key, body, options) as claim:
            token = claim.token
            sent = self._send(key, body, options, claim, progress)
        if not options.compared:
            return
        stored = found_at(self._transport, key)
        # Another token, or nothing: somebody else has changed the object since, and what is there is not ours to judge.
        if stored is None or stored.token not in (None, token):
            return
        try:
            verify(self._transport, key, sent, stored)
        except (CorruptObjectError, ObjectNotFoundError):
            stored = found_at(self._transport, key)
            if stored is not None and stored.token in (None, token):
                raise

    def read(self, key: str, *, limit_bytes: int) -> bytes:
        return b"".join(Download(self._transport, check_object_key(key), limit_bytes=limit_bytes, fresh=True).pieces())

    def stream(self, key: str, *, fresh: bool = False) -> Iterator[bytes]:
        return Download(self._transport, check_object_key(key), fresh=fresh).pieces()

    def read_part(self, info: ObjectInfo, *, start: int, size_bytes: int) -> bytes:
        return read_part(self._transport, info, start=start, size_bytes=size_bytes)

    def stat(self, key: str) -> ObjectInfo:
        return stored_at(self._transport, check_object_key(key)).info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """As the protocol says; temporary objects are listed only where `prefix` begins with their own."""
        empty = True
        for info in listed(self._transport, prefix):
            empty = False
            if not info.key.startswith(TEMPORARY_PREFIX) or prefix.startswith(TEMPORARY_PREFIX):
                yield info
        if empty:
            # A bucket that is missing, or hidden from this key, lists as empty.
            self._check_bucket()

    def delete(self, keys: Sequence[str]) -> None:
        checked = [check_object_key(key) for key in keys]
        bucket = self._transport.storage().from_(self._bucket)
        for start in range(0, len(checked), PAGE):
            batch = checked[start : start + PAGE]
            request = self._transport.request(f"deleting {len(batch)} objects")
            self._transport.run(request, partial(bucket.remove, batch))

    def signed_url(self, key: str, *, lifetime: timedelta) -> str:
        return signed_url(self._transport, key, lifetime=lifetime)

    def close(self) -> None:
        self._transport.close()

    def _check_bucket(self) -> None:
        storage = self._transport.storage()
        self._transport.run(self._transport.request("looking for the bucket"), lambda: storage.get_bucket(self._bucket))

    @contextmanager
    def _claim(self, key: str, body: Body, options: PutOptions) -> Iterator[Claim]:
        """The right to an upload; what is remembered of it where it is large enough to be resumed."""
        name = None
        if self._is_large(body) and options.sha256 is not None:
            name = UploadName(
                store_url=self._transport.url(),
                bucket=self._bucket,
                key=key,
                size_bytes=body_size(body),
                sha256=options.sha256,
            )
        with self._remembered.claim(name) as claim:
            yield claim

    def _send(self, key: str, body: Body, options: PutOptions, claim: Claim, progress: Progress | None) -> Digests:
        if isinstance(body, Path) and self._is_large(body):
            return upload_resumable(self._transport, key, body, options, claim=claim, progress=progress)
        try:
            return upload(self._transport, key, body, options, token=claim.token, progress=progress)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, httpx.WriteTimeout):
                # A server that refuses an upload may leave its body unread, so that the refusal is never heard.
                with suppress(UnexpectedAnswerError):  # One without resumable uploads cannot tell.
                    ask_for_refusal(self._transport, key, body_size(body), options, token=claim.token)
            raise

    def _is_large(self, body: Body) -> bool:
        return isinstance(body, Path) and body_size(body) > self._resumable_threshold_bytes

    def _discard(self, temporary: str) -> None:
        """Delete a temporary object if that is possible; it is never listed with the others, and swept later."""
        try:
            self.delete([temporary])
        except BridgeError as error:
            _logger.warning("A temporary object was left behind", extra={"key": temporary, "reason": str(error)})
