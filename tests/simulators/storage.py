"""A Supabase Storage server for tests, on a real socket, with faults on order.

It answers as the recorded server does (recordings/storage.json). From a shell:

    python -m tests.simulators.storage [--port N]
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, NoReturn

from tests.simulators.faults import (
    Action,
    CorruptRequest,
    CorruptResponse,
    CutAfterHandling,
    CutBeforeHandling,
    CutRequestAfter,
    CutResponseAfter,
    Delay,
    Fault,
    FaultPlan,
    Hang,
    Respond,
)
from tests.simulators.http_request import Request
from tests.simulators.http_response import Response
from tests.simulators.http_server import HttpServer, Site
from tests.simulators.storage_blobs import BlobStore
from tests.simulators.storage_errors import StorageError
from tests.simulators.storage_http import StorageApi, is_plain_upload
from tests.simulators.storage_services import Services
from tests.simulators.storage_state import Bucket, Draft, StorageState
from tests.simulators.storage_tokens import ANON_KEY, SERVICE_KEY, UrlSigner

__all__ = [
    "Action",
    "Call",
    "CorruptRequest",
    "CorruptResponse",
    "CutAfterHandling",
    "CutBeforeHandling",
    "CutRequestAfter",
    "CutResponseAfter",
    "Delay",
    "Fault",
    "Hang",
    "Respond",
    "StorageSimulator",
]


@dataclass(frozen=True)
class Call:
    """A request the simulator got: its percent-decoded path without query, and the status answered (0: no answer).

    Attributes:
        received_bytes: How much of its body had been read by then.
        query: Its query's parameters.
    """

    method: str
    path: str
    status: int
    received_bytes: int = field(default=0, compare=False)
    query: Mapping[str, str] = field(default_factory=dict, compare=False)


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class StorageSimulator:
    """Supabase Storage below `{url}/storage/v1`, from `start` to `stop` or as a context manager.

    What is stored survives `stop` and a further `start`, which takes the same port again; it goes when the context
    ends, or with this object.

    Args:
        seed: Of the random generator behind `Fault.probability`.
        clock: The time of day, aware; every timestamp and every expiry comes from it.
        wedge_refused_uploads: Reproduce the server's fault that a refused upload with more than about 100 kB of body
            makes the next request on its connection hang; without it the rest of the body is read and thrown away.
        port: The port to listen on; 0 for a free one.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        clock: Callable[[], datetime] = _utc_now,
        wedge_refused_uploads: bool = True,
        port: int = 0,
    ) -> None:
        self.service_key = SERVICE_KEY
        self.anon_key = ANON_KEY
        self._wedges = wedge_refused_uploads
        self._port = port
        self._blobs = BlobStore()
        self._state = StorageState(self._blobs, clock)
        self._signer = UrlSigner(clock)
        self._api = StorageApi(Services(state=self._state, signer=self._signer))
        self._faults = FaultPlan(seed)
        self._calls: list[Call] = []
        self._calls_lock = threading.Lock()
        self._server: HttpServer | None = None

    @property
    def url(self) -> str:
        """The project's URL, known from the first `start` on."""
        if not self._port:
            raise RuntimeError("the simulator has no URL before it is started")
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen; requests are answered when this returns."""
        if self._server is not None:
            raise RuntimeError("the simulator is running already")
        site = Site(handle=self._api.handle, faults=self._faults, record=self._record, wedges=self._wedges_on)
        self._server = HttpServer(site, self._port)
        self._port = self._server.port

    def stop(self) -> None:
        """Close every connection, also those that hang; may be called twice."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __enter__(self) -> StorageSimulator:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._blobs.close()

    def calls(self) -> list[Call]:
        """The requests since the last reset, in the order in which they were answered or given up."""
        with self._calls_lock:
            return list(self._calls)

    def reset_calls(self) -> None:
        """Forget the requests so far."""
        with self._calls_lock:
            self._calls.clear()

    def count(self, method: str | None = None, path_contains: str | None = None) -> int:
        """How many of the calls have this method, and this in their path."""
        return sum(
            method in (None, call.method) and (path_contains is None or path_contains in call.path)
            for call in self.calls()
        )

    def inject(self, fault: Fault) -> None:
        """Put a fault in force, after those already there; the first that wants a request gets it."""
        self._faults.add(fault)

    def struck(self) -> list[tuple[Fault, int]]:
        """The faults in force, each with how often it struck."""
        return self._faults.struck()

    def clear_faults(self) -> None:
        """Put no fault in force; requests that hang go on hanging."""
        self._faults.clear()

    def expire_uploads(self) -> None:
        """Forget the unfinished TUS uploads: HEAD and PATCH answer 404."""
        self._api.uploads.expire()

    def put_object(self, bucket: str, key: str, data: bytes, metadata: Mapping[str, Any] | None = None) -> None:
        """Store an object, over whatever is there; a bucket that does not exist is created, private."""
        now = self._state.now()
        if bucket not in self.buckets():
            self._state.create_bucket(
                Bucket(
                    id=bucket,
                    name=bucket,
                    public=False,
                    file_size_limit_bytes=None,
                    allowed_mime_types=None,
                    created_at=now,
                    updated_at=now,
                )
            )
        self._state.put(
            Draft(
                bucket=bucket,
                key=key,
                blob=self._blobs.from_bytes(data),
                mimetype="application/octet-stream",
                cache_control="no-cache",
                user_metadata=dict(metadata or {}),
            )
        )

    def make_public(self, bucket: str) -> None:
        """Let anybody read a bucket."""
        self._state.update_bucket(bucket, lambda before: replace(before, public=True))

    def let_anon_read(self, bucket: str) -> None:
        """Put a policy in force that lets the anon key read a bucket."""
        self._state.update_bucket(bucket, lambda before: replace(before, anon_reads=True))

    def sign(self, bucket: str, key: str, *, lifetime_seconds: int = 60) -> str:
        """A signed URL of an object, as the project's own route makes one."""
        token = self._signer.sign(f"{bucket}/{key}", scope="download", lifetime_seconds=lifetime_seconds)
        return f"{self.url}/storage/v1/object/sign/{bucket}/{key}?token={token}"

    def object_bytes(self, bucket: str, key: str) -> bytes:
        """An object's bytes; KeyError when there is none."""
        try:
            return self._state.get(bucket, key).blob.whole().read()
        except StorageError as error:
            raise KeyError(f"{bucket}/{key}") from error

    def object_metadata(self, bucket: str, key: str) -> dict[str, Any]:
        """What its uploader said of an object; KeyError when there is none."""
        try:
            return dict(self._state.get(bucket, key).user_metadata or {})
        except StorageError as error:
            raise KeyError(f"{bucket}/{key}") from error

    def object_keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys that begin with the prefix, sorted."""
        return [stored.key for stored in self._state.objects(bucket) if stored.key.startswith(prefix)]

    def buckets(self) -> list[str]:
        """The buckets' names, oldest first."""
        return [bucket.id for bucket in self._state.buckets()]

    def _record(self, request: Request, status: int) -> None:
        call = Call(request.method, request.path, status, request.body.received_bytes, request.query)
        with self._calls_lock:
            self._calls.append(call)

    def _wedges_on(self, request: Request, response: Response) -> bool:
        return self._wedges and response.status >= 400 and is_plain_upload(request)


def _terminate(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def main() -> None:
    """Serve until SIGTERM, or until standard input closes."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulators.storage", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    port: int = parser.parse_args().port
    signal.signal(signal.SIGTERM, _terminate)
    with StorageSimulator(port=port) as simulator:
        keys = {"service_key": simulator.service_key, "anon_key": simulator.anon_key}
        sys.stdout.write(json.dumps({"url": simulator.url, **keys}) + "\n")
        sys.stdout.flush()
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
