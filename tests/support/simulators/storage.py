"""A Supabase Storage server for tests, on a real socket, with injected faults.

It answers as the recorded server does (recordings/storage.json). From a shell:

    python -m tests.support.simulators.storage [--port N] [--real-costs]
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, NoReturn

from tests.support.simulators.faults import (
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
from tests.support.simulators.gateway import Gateway
from tests.support.simulators.http_request import Request
from tests.support.simulators.http_response import Response
from tests.support.simulators.http_server import HttpServer, Site
from tests.support.simulators.storage_blobs import BlobStore
from tests.support.simulators.storage_errors import StorageError
from tests.support.simulators.storage_http import StorageApi, is_plain_upload
from tests.support.simulators.storage_outages import Outage
from tests.support.simulators.storage_services import REAL_COSTS, ServerCosts, Services
from tests.support.simulators.storage_state import AssembledRelease, Bucket, StorageState
from tests.support.simulators.storage_tokens import ANON_KEY, SERVICE_KEY, UrlSigner

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
    "Outage",
    "Respond",
    "StorageSimulator",
]


@dataclass(frozen=True)
class Call:
    """A request to the simulator: its decoded path without query, and the status of the response (0: none).

    Attributes:
        received_bytes: How much of its body had been read by then.
        query: Its query's parameters.
        started: When its head had been read, by the monotonic clock.
        ended: When its response was about to be sent.
    """

    method: str
    path: str
    status: int
    received_bytes: int = field(default=0, compare=False)
    query: Mapping[str, str] = field(default_factory=dict, compare=False)
    started: float = field(default=0.0, compare=False)
    ended: float = field(default=0.0, compare=False)


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class StorageSimulator:
    """Supabase Storage below `{url}/storage/v1`, from `start` to `stop` or as a context manager.

    Objects survive `stop` and a further `start`, which uses the same port again. They are deleted when the context
    ends, or with this object.

    Args:
        seed: The seed of the random generator of `Fault.probability`.
        clock: The time of day, aware; every timestamp and every expiry comes from it.
        wedge_refused_uploads: Reproduce the server's fault that a refused upload with more than about 100 kB of body
            makes the next request on its connection hang; without it the rest of the body is read and thrown away.
        newer_build: Answer as the build of 2026-08-21 does where it differs from the recorded server.
        port: The port to listen on; 0 for a free one.
        costs: What `move`, `copy` and uploads take; by default nothing.

    Attributes:
        service_key: The project's secret key, which is exempt from policies.
        anon_key: Its publishable key.
        legacy_service_key: The legacy key of the role `service_role`.
        legacy_anon_key: The legacy key of the role `anon`.
        gateway: Creates and deletes further keys.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        clock: Callable[[], datetime] = _utc_now,
        wedge_refused_uploads: bool = True,
        newer_build: bool = False,
        port: int = 0,
        costs: ServerCosts | None = None,
    ) -> None:
        self.gateway = Gateway()
        self.service_key = self.gateway.secret_key
        self.anon_key = self.gateway.publishable_key
        self.legacy_service_key = SERVICE_KEY
        self.legacy_anon_key = ANON_KEY
        self._wedges = wedge_refused_uploads
        self._port = port
        self._blobs = BlobStore()
        self._state = StorageState(self._blobs, clock)
        self._signer = UrlSigner(clock)
        services = Services(
            state=self._state, signer=self._signer, newer_build=newer_build, costs=costs or ServerCosts()
        )
        self._api = StorageApi(services, self.gateway)
        self._faults = FaultPlan(seed)
        self._calls: list[Call] = []
        self._calls_lock = threading.Lock()
        self._server: HttpServer | None = None

    @property
    def url(self) -> str:
        """The project's URL; it exists after the first `start`."""
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
        """The requests since the last reset, in the order of their responses."""
        with self._calls_lock:
            return list(self._calls)

    def reset_calls(self) -> None:
        """Forget the requests so far."""
        with self._calls_lock:
            self._calls.clear()

    def count(self, method: str | None = None, path_contains: str | None = None) -> int:
        """Count the calls with this method and with this text in their path."""
        return sum(
            method in (None, call.method) and (path_contains is None or path_contains in call.path)
            for call in self.calls()
        )

    def inject(self, fault: Fault) -> None:
        """Add a fault after the active ones; the first one that matches a request is used."""
        self._faults.add(fault)

    def struck(self) -> list[tuple[Fault, int]]:
        """Return the active faults, each with its number of uses."""
        return self._faults.struck()

    def clear_faults(self) -> None:
        """Remove all faults; requests that hang continue to hang."""
        self._faults.clear()

    def suffer(self, outage: Outage) -> None:
        """Refuse requests as a project in this outage does, until the next call."""
        self._api.outage = outage

    def serve_rest(self, handle: Callable[[Request], Response]) -> None:
        """Let a service answer below `/rest/v1`, behind the same gateway as Storage."""
        self._api.rest = handle

    def expire_uploads(self) -> None:
        """Forget the unfinished TUS uploads: HEAD and PATCH answer 404."""
        self._api.uploads.expire()

    def put_object(self, bucket: str, key: str, data: bytes, metadata: Mapping[str, Any] | None = None) -> None:
        """Store an object, replacing what is there; a missing bucket is created, private."""
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
            AssembledRelease(
                bucket=bucket,
                key=key,
                blob=self._blobs.from_bytes(data),
                mimetype="application/octet-stream",
                cache_control="no-cache",
                user_metadata=dict(metadata or {}),
            )
        )

    def keep_versions(self, bucket: str, status: str = "ENABLED", *, rules: Sequence[Mapping[str, Any]] = ()) -> None:
        """Set the versioning status of a bucket, and its lifecycle rules; both show in the API."""
        self._state.update_bucket(bucket, lambda before: replace(before, versioning=status, rules=tuple(rules)))

    def make_public(self, bucket: str) -> None:
        """Make a bucket public."""
        self._state.update_bucket(bucket, lambda before: replace(before, public=True))

    def let_anon_read(self, bucket: str) -> None:
        """Add a policy that lets the anon key read a bucket."""
        self._state.update_bucket(bucket, lambda before: replace(before, anon_reads=True))

    def sign(self, bucket: str, key: str, *, lifetime_seconds: int = 60) -> str:
        """Return a signed URL of an object, like the project's own route."""
        token = self._signer.sign(f"{bucket}/{key}", scope="download", lifetime_seconds=lifetime_seconds)
        return f"{self.url}/storage/v1/object/sign/{bucket}/{key}?token={token}"

    def object_bytes(self, bucket: str, key: str) -> bytes:
        """Return an object's bytes; KeyError if there is none."""
        try:
            return self._state.get(bucket, key).blob.whole().read()
        except StorageError as error:
            raise KeyError(f"{bucket}/{key}") from error

    def object_metadata(self, bucket: str, key: str) -> dict[str, Any]:
        """Return the user metadata of an object; KeyError if there is none."""
        try:
            return dict(self._state.get(bucket, key).user_metadata or {})
        except StorageError as error:
            raise KeyError(f"{bucket}/{key}") from error

    def object_keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the sorted keys that begin with the prefix."""
        return [stored.key for stored in self._state.objects(bucket) if stored.key.startswith(prefix)]

    def buckets(self) -> list[str]:
        """Return the names of the buckets, the oldest first."""
        return [bucket.id for bucket in self._state.buckets()]

    def _record(self, request: Request, status: int) -> None:
        call = Call(
            request.method,
            request.path,
            status,
            request.body.received_bytes,
            request.query,
            started=request.started,
            ended=time.monotonic(),
        )
        with self._calls_lock:
            self._calls.append(call)

    def _wedges_on(self, request: Request, response: Response) -> bool:
        return self._wedges and response.status >= 400 and is_plain_upload(request)


def _terminate(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def main() -> None:
    """Serve until SIGTERM, or until standard input closes."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.simulators.storage", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument(
        "--real-costs", action="store_true", help="take a real server's time for moves, copies and uploads"
    )
    options = parser.parse_args()
    costs = REAL_COSTS if options.real_costs else None
    signal.signal(signal.SIGTERM, _terminate)
    with StorageSimulator(port=options.port, costs=costs) as simulator:
        keys = {"service_key": simulator.service_key, "anon_key": simulator.anon_key}
        sys.stdout.write(json.dumps({"url": simulator.url, **keys}) + "\n")
        sys.stdout.flush()
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
