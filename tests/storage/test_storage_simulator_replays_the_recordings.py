"""The storage simulator answers each recorded request as the real server did."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulators.storage import StorageSimulator

RECORDING = Path(__file__).parent.parent / "support" / "simulators" / "recordings" / "storage.json"
EXCHANGES: list[dict[str, Any]] = json.loads(RECORDING.read_text(encoding="utf-8"))["exchanges"]
BY_NAME = {exchange["name"]: exchange for exchange in EXCHANGES}

# What the recorded bodies of {"bytes": N} held is not known (neither a repeated byte nor a common pattern), so their
# MD5s cannot be met: everything but these two ETags is compared.
UNREPRODUCIBLE_MD5 = ("30108e3298ada93175f79395e7898113", "239bed9cf9438a7eb75e032d1a64ceb0")
OUR_MD5 = tuple(hashlib.md5(b"x" * size, usedforsecurity=False).hexdigest() for size in (1000, 2 * 1024 * 1024))

COMPARED_HEADERS = re.compile(
    r"content-type|cache-control|etag|content-range|accept-ranges|x-robots-tag|last-modified|expires|location"
    r"|tus-.*|upload-.*"
)
PLACEHOLDERS = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<uuid>"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<timestamp>"),
    (r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", "<http date>"),
    (r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "<jwt>"),
    (r"upload/resumable/[\w-]+", "upload/resumable/<upload>"),
    (r"http://127\.0\.0\.1:\d+", "<SUPABASE_URL>"),
    ("|".join(UNREPRODUCIBLE_MD5 + OUR_MD5), "<md5 of the bytes>"),
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Return the response in the form of the recording."""

    status: int
    headers: dict[str, str]
    body: Any


def generalised(value: Any) -> Any:
    """Replace every part of a value that differs between runs by a placeholder."""
    if isinstance(value, dict):
        return {key: generalised(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [generalised(inner) for inner in value]
    if isinstance(value, str):
        for pattern, placeholder in PLACEHOLDERS:
            value = re.sub(pattern, placeholder, value)
    return value


class Replay:
    """Replay the recording; connections are kept, but not after a refusal, which may have blocked them."""

    def __init__(self, simulator: StorageSimulator) -> None:
        self._simulator = simulator
        host = simulator.url.removeprefix("http://")
        self._connection = http.client.HTTPConnection(host, timeout=10)
        self._uploads: dict[str, str] = {}
        self._token = ""

    def run(self) -> dict[str, Answer]:
        """Send every request in order."""
        authorization = {"authorization": f"Bearer {self._simulator.legacy_service_key}"}
        self._send("POST", "/bucket", {**authorization, "content-type": "application/json"}, b'{"name":"models"}')
        with contextlib.closing(self._connection):
            return {exchange["name"]: self._exchange(exchange) for exchange in EXCHANGES}

    def _exchange(self, exchange: dict[str, Any]) -> Answer:
        request = exchange["request"]
        headers = {**request["headers"], **self._authorization(exchange)}
        path = self._path(exchange["name"], request["path"])
        status, received, raw = self._send(request["method"], path, headers, self._body(request))
        recorded_location = exchange["response"]["headers"].get("location")
        if recorded_location:
            self._uploads[recorded_location.rpartition("/")[2]] = received["location"].rpartition("/")[2]
        body = self._parsed(raw, received, exchange["response"]["body"])
        if exchange["name"] == "object.sign":
            self._token = body["signedURL"].partition("token=")[2]
        return Answer(status=status, headers=received, body=body)

    def _send(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        self._connection.putrequest(method, "/storage/v1" + path, skip_accept_encoding=True)
        if body or method in ("POST", "PUT", "PATCH"):
            self._connection.putheader("content-length", str(len(body)))
        for name, value in headers.items():
            self._connection.putheader(name, value)
        self._connection.endheaders(body)
        response = self._connection.getresponse()
        received = {name.lower(): value for name, value in response.getheaders()}
        raw = response.read()
        if response.status >= 400:
            self._connection.close()
        return response.status, received, raw

    def _authorization(self, exchange: dict[str, Any]) -> dict[str, str]:
        anonymous = exchange["name"].endswith(".anon")
        other = self._simulator.legacy_anon_key if anonymous else "garbage"
        tokens = {"service_role": self._simulator.legacy_service_key, "other": other}
        token = tokens.get(exchange["request"]["auth"])
        return {} if token is None else {"authorization": f"Bearer {token}"}

    def _path(self, name: str, path: str) -> str:
        head, _, signature = self._token.rpartition(".")
        token = f"{head}.{signature[::-1]}" if name.endswith(".tampered") else self._token
        path = path.replace("<jwt>", token)
        for recorded, ours in self._uploads.items():
            path = path.replace(recorded, ours)
        return path

    @staticmethod
    def _body(request: dict[str, Any]) -> bytes:
        body = request["body"]
        if body is None:
            return b""
        if isinstance(body, str):
            return body.encode()
        if body.keys() == {"bytes"}:
            return b"x" * int(body["bytes"])
        return json.dumps(body, separators=(",", ":")).encode()

    @staticmethod
    def _parsed(raw: bytes, headers: dict[str, str], recorded: Any) -> Any:
        if not raw:
            return None
        if "json" in headers.get("content-type", ""):
            return json.loads(raw)
        return {"bytes": len(raw)} if isinstance(recorded, dict) else raw.decode()


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, Answer]]:
    with StorageSimulator() as simulator:
        yield Replay(simulator).run()


def compared(headers: dict[str, str]) -> dict[str, Any]:
    return {name: generalised(value) for name, value in headers.items() if COMPARED_HEADERS.fullmatch(name)}


@pytest.mark.parametrize("name", BY_NAME)
def test_the_status_is_the_recorded_one(name: str, answers: dict[str, Answer]) -> None:
    assert answers[name].status == BY_NAME[name]["response"]["status"], answers[name]


@pytest.mark.parametrize("name", BY_NAME)
def test_the_headers_are_the_recorded_ones_no_more_no_less(name: str, answers: dict[str, Answer]) -> None:
    assert compared(answers[name].headers) == compared(BY_NAME[name]["response"]["headers"])


@pytest.mark.parametrize("name", BY_NAME)
def test_the_body_is_the_recorded_one_but_for_ids_and_times(name: str, answers: dict[str, Answer]) -> None:
    assert generalised(answers[name].body) == generalised(BY_NAME[name]["response"]["body"])


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "object.sign"])  # a token's length is its own
def test_the_length_told_is_the_recorded_one(name: str, answers: dict[str, Answer]) -> None:
    recorded = BY_NAME[name]["response"]["headers"].get("content-length")
    if recorded is not None:
        assert answers[name].headers["content-length"] == recorded


def test_the_newer_build_answers_alike_but_for_the_end_of_an_upload(answers: dict[str, Answer]) -> None:
    with StorageSimulator(newer_build=True) as simulator:
        newer = Replay(simulator).run()

    def alike(name: str) -> bool:
        old, new = answers[name], newer[name]
        return (old.status, compared(old.headers), generalised(old.body)) == (
            *(new.status, compared(new.headers)),
            generalised(new.body),
        )

    assert [name for name in BY_NAME if not alike(name)] == ["tus.patch.last"]
    assert newer["tus.patch.last"].headers["tus-complete"] == "1"


def test_all_83_exchanges_are_replayed(answers: dict[str, Answer]) -> None:
    assert len(EXCHANGES) == len(answers) == 83
