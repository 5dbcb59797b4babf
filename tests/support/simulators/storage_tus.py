"""The resumable uploads of Supabase Storage (TUS 1.0.0, https://tus.io/protocols/resumable-upload)."""

from __future__ import annotations

import base64
import binascii
import json
import threading
import uuid
from dataclasses import dataclass, field

from tests.support.simulators import storage_errors as errors
from tests.support.simulators.http_request import Request
from tests.support.simulators.http_response import Response, json_response
from tests.support.simulators.storage_blobs import BlobWriter
from tests.support.simulators.storage_errors import StorageError
from tests.support.simulators.storage_services import Services, require_token, wants_upsert
from tests.support.simulators.storage_state import AssembledRelease, check_key, check_path
from tests.support.simulators.storage_tokens import Role
from tests.support.simulators.storage_uploads import GLOBAL_LIMIT_BYTES, check_mimetype, size_limit_bytes

_RESUMABLE = {"tus-resumable": "1.0.0"}
_TEXT = {"content-type": "text/plain;charset=UTF-8"}
_OCTETS = "application/offset+octet-stream"
_OPTIONS = {
    **_RESUMABLE,
    "tus-version": "1.0.0",
    "tus-max-size": str(GLOBAL_LIMIT_BYTES),
    "tus-extension": "creation,creation-with-upload,creation-defer-length,termination,expiration",
}


class TusError(Exception):
    """A refusal of the protocol: a real status and a text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = Response(status=status, headers={**_TEXT, **_RESUMABLE}, body=text.encode())


@dataclass
class _Upload:
    id: str
    bucket: str
    key: str
    length: int | None
    metadata: dict[str, str]
    writer: BlobWriter
    finished: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


def _parse_metadata(header: str) -> dict[str, str]:
    metadata: dict[str, str] = {}
    try:
        for pair in filter(None, header.split(",")):
            name, _, value = pair.strip().partition(" ")
            metadata[name] = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise TusError(
            400, "Upload-Metadata is invalid. It MUST consist of comma-separated key-value pairs\n"
        ) from error
    return metadata


def _metadata_header(metadata: dict[str, str]) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in metadata.items())


class TusUploads:
    """The running uploads, and the finished ones that HEAD still reports."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._uploads: dict[str, _Upload] = {}
        self._lock = threading.Lock()

    def expire(self) -> None:
        """Forget every unfinished upload, as the server does after 24 hours."""
        with self._lock:
            for upload in [upload for upload in self._uploads.values() if not upload.finished]:
                del self._uploads[upload.id]

    def route(self, request: Request, segments: list[str]) -> Response:
        """Answer a request below `/upload/resumable`; `segments` are what follows in the path."""
        if request.method == "OPTIONS":
            return Response(status=204, headers=_OPTIONS)
        try:
            privileged = require_token(request) is Role.SERVICE
        except StorageError as error:
            return json_response(error.as_json(), status=error.http_status)
        try:
            if request.header("tus-resumable") != "1.0.0":
                raise TusError(412, "Tus-Resumable Required\n")
            return self._dispatch(request, segments, privileged)
        except StorageError as error:
            return TusError(error.status, error.message).response
        except TusError as error:
            return error.response

    def _dispatch(self, request: Request, segments: list[str], privileged: bool) -> Response:
        match (request.method, segments):
            case ("POST", []):
                return self._create(request, privileged)
            case ("HEAD", [upload_id]):
                return self._head(self._find(upload_id))
            case ("PATCH", [upload_id]):
                return self._patch(request, self._find(upload_id), privileged)
            case ("DELETE", [upload_id]):
                return self._terminate(self._find(upload_id), privileged)
            case _:
                raise TusError(404, "Not found\n")

    def _find(self, upload_id: str) -> _Upload:
        with self._lock:
            if upload_id not in self._uploads:
                raise TusError(404, "The file for this url was not found\n")
            return self._uploads[upload_id]

    def _may_write(self, request: Request, bucket: str, key: str, privileged: bool) -> None:
        """Make the server's checks before each POST and PATCH, so each needs `x-upsert`."""
        self._services.state.bucket(bucket)
        check_key(key)
        if not privileged:
            raise errors.row_level_security()
        if not wants_upsert(request) and self._services.state.exists(bucket, key):
            raise errors.key_exists()

    def _create(self, request: Request, privileged: bool) -> Response:
        metadata = _parse_metadata(request.header("upload-metadata"))
        bucket_name, key = metadata.get("bucketName", ""), metadata.get("objectName", "")
        self._may_write(request, bucket_name, key, privileged)
        check_path(bucket_name, key)
        length = _declared_length(request)
        bucket = self._services.state.bucket(bucket_name)
        if length is not None and length > size_limit_bytes(bucket):
            raise TusError(413, "Maximum size exceeded\n")
        if "contentType" in metadata:
            check_mimetype(bucket, metadata["contentType"])
        seconds = metadata.get("cacheControl", "")
        metadata["cacheControl"] = f"max-age={seconds}" if seconds.lstrip("-").isdecimal() else "no-cache"
        upload = self._register(bucket_name, key, length, metadata)
        location = f"http://{request.header('host')}{request.raw_path.rstrip('/')}/{upload.id}"
        headers = {**_TEXT, **_RESUMABLE, "location": location}
        if request.header("content-type") == _OCTETS:
            self._append(request, upload)
            headers["upload-offset"] = str(upload.writer.size_bytes)
        self._finish_if_complete(upload)
        return Response(status=201, headers=headers)

    def _register(self, bucket: str, key: str, length: int | None, metadata: dict[str, str]) -> _Upload:
        plain = f"{bucket}/{key}/{uuid.uuid4()}".encode()
        upload = _Upload(
            id=base64.urlsafe_b64encode(plain).rstrip(b"=").decode(),
            bucket=bucket,
            key=key,
            length=length,
            metadata=metadata,
            writer=self._services.state.blobs.writer(),
        )
        with self._lock:
            self._uploads[upload.id] = upload
        return upload

    def _head(self, upload: _Upload) -> Response:
        with upload.lock:  # so that HEAD waits for a PATCH that is still being read, as the server's locker makes it
            length = {"upload-defer-length": "1"} if upload.length is None else {"upload-length": str(upload.length)}
            headers = {
                **_TEXT,
                **_RESUMABLE,
                "cache-control": "no-store",
                "upload-offset": str(upload.writer.size_bytes),
                **length,
                "upload-metadata": _metadata_header(upload.metadata),
            }
            return Response(headers=headers)

    def _patch(self, request: Request, upload: _Upload, privileged: bool) -> Response:
        if request.header("content-type") != _OCTETS:
            raise TusError(403, "Content-Type header required\n")
        if not request.header("upload-offset").isdecimal():
            raise TusError(403, "Upload-Offset header required\n")
        self._may_write(request, upload.bucket, upload.key, privileged)
        with upload.lock:
            if int(request.header("upload-offset")) != upload.writer.size_bytes or upload.finished:
                raise TusError(409, "Upload-Offset conflict\n")
            if upload.length is None and request.header("upload-length").isdecimal():
                upload.length = int(request.header("upload-length"))
            self._append(request, upload)
            self._finish_if_complete(upload)
            headers = {**_RESUMABLE, "upload-offset": str(upload.writer.size_bytes)}
            if self._services.newer_build and upload.finished:
                headers["tus-complete"] = "1"
            return Response(status=204, headers=headers)

    def _append(self, request: Request, upload: _Upload) -> None:
        """Receive the body; after a broken connection the received bytes stay."""
        if upload.length is not None and upload.writer.size_bytes + (request.body.unread_bytes or 0) > upload.length:
            raise TusError(413, "upload's size exceeded\n")
        with upload.writer.appending() as write:
            append = self._services.upload_rate.limit(write)
            while piece := request.body.read():
                append(piece)

    def _finish_if_complete(self, upload: _Upload) -> None:
        """Make the object visible; like the server, without another check that the key is free."""
        if upload.finished or upload.writer.size_bytes != upload.length:
            return
        try:
            user_metadata = json.loads(upload.metadata.get("metadata", "null"))
        except ValueError:
            user_metadata = None  # the real server ignores what it cannot parse
        draft = AssembledRelease(
            bucket=upload.bucket,
            key=upload.key,
            blob=upload.writer.finish(),
            mimetype=upload.metadata.get("contentType", "application/octet-stream"),
            cache_control=upload.metadata["cacheControl"],
            user_metadata=user_metadata,
        )
        self._services.state.put(draft)
        upload.finished = True

    def _terminate(self, upload: _Upload, privileged: bool) -> Response:
        if not privileged:
            raise errors.row_level_security()
        with upload.lock:
            if upload.finished:
                raise TusError(400, "Cannot terminate an already completed upload\n")
            with self._lock:
                self._uploads.pop(upload.id, None)
            upload.writer.discard()
        return Response(status=204, headers=_RESUMABLE)


def _declared_length(request: Request) -> int | None:
    """Upload-Length, or None for a deferred one."""
    if request.header("upload-defer-length") == "1":
        return None
    if not request.header("upload-length").isdecimal():
        raise TusError(400, "Upload-Length or Upload-Defer-Length header required\n")
    return int(request.header("upload-length"))
