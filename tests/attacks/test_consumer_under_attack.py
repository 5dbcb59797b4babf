"""A consumer facing a hostile or broken server: it ends in bounded time, with a named error, and gives nothing away."""

from __future__ import annotations

import gzip
import json
import logging
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from supabase_bridge import Resolver
from supabase_bridge.core.errors import BridgeError, InvalidDocumentError, SettingsError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.storage.errors import (
    CorruptObjectError,
    DeadlineExceededError,
    ObjectTooLargeError,
    StoreUnavailableError,
    UnexpectedResponseError,
)
from tests.support.consumers import FIRST, LATEST, MODEL, SECOND, Bucket
from tests.support.simulators.hostile import Conversation, Script, answer, hostile

KEY = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.the-signature-of-a-key"
SECONDS = 0.4
BOUND_SECONDS = 20.0
"""A slow machine's share of SECONDS; an unbounded read would take for ever."""
PATIENT_SECONDS = 5.0
"""For what ends by itself: a busy machine may need longer than SECONDS."""


def resolver(url: str, **more: object) -> Resolver:
    arguments: dict[str, object] = {"key": KEY, "timeout": timedelta(seconds=SECONDS), **more}
    return Resolver(url=url, **arguments)  # type: ignore[arg-type]  # what each test gives is what it is


def manifest() -> bytes:
    """A manifest that is in order, with the records of its files."""
    return Bucket(lambda _key, _data: None).promote().to_bytes()


def deadline_for(error: type[BridgeError]) -> timedelta:
    return timedelta(seconds=SECONDS if error is DeadlineExceededError else PATIENT_SECONDS)


def refused(script: Script, error: type[BridgeError]) -> BridgeError:
    """The error that a resolve against this server ends in, which it does in time."""
    with hostile(script) as server, resolver(server.url, timeout=deadline_for(error)) as reading:
        start = time.monotonic()
        with pytest.raises(error) as caught:
            reading.resolve(MODEL)
        assert time.monotonic() - start < BOUND_SECONDS
        assert KEY not in str(caught.value)
        return caught.value


def test_a_server_that_hangs_is_given_up() -> None:
    refused(lambda talk: talk.hang(), DeadlineExceededError)


def test_a_server_that_sends_its_head_byte_by_byte_is_given_up() -> None:
    refused(lambda talk: talk.trickle(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 10_000), DeadlineExceededError)


def test_a_server_that_sends_a_manifest_byte_by_byte_is_given_up() -> None:
    refused(lambda talk: talk.trickle(answer(manifest())), DeadlineExceededError)


def test_a_server_that_sends_an_endless_chunk_header_is_given_up() -> None:
    def script(talk: Conversation) -> None:
        talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;")
        talk.trickle(b"x" * 10_000)

    refused(script, DeadlineExceededError)


def test_a_server_that_refuses_byte_by_byte_is_given_up() -> None:
    refused(lambda talk: talk.trickle(answer(b"{" * 50_000, status="400 Bad Request")), DeadlineExceededError)


def test_endless_headers_are_not_read() -> None:
    def script(talk: Conversation) -> None:
        talk.send(b"HTTP/1.1 200 OK\r\n")
        talk.endlessly(b"X-More: " + b"a" * 1000 + b"\r\n")

    refused(script, StoreUnavailableError)


def test_an_endless_manifest_is_read_no_further_than_its_bound() -> None:
    def script(talk: Conversation) -> None:
        talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        talk.endlessly(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

    refused(script, ObjectTooLargeError)


def test_a_manifest_that_is_said_to_be_too_large_is_not_read() -> None:
    refused(lambda talk: talk.send(answer(b"", length=LIMIT_BYTES + 1)), ObjectTooLargeError)


def test_an_endless_refusal_is_read_no_further_than_its_bound() -> None:
    def script(talk: Conversation) -> None:
        talk.send(b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n")
        talk.endlessly(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

    refused(script, UnexpectedResponseError)


def test_a_manifest_that_is_shorter_than_announced_is_no_manifest() -> None:
    whole = manifest()
    refused(lambda talk: talk.send(answer(whole[:-40], length=len(whole))), StoreUnavailableError)


def test_a_compressed_manifest_is_not_unpacked() -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    refused(lambda talk: talk.send(answer(bomb, headers="Content-Encoding: gzip\r\n")), UnexpectedResponseError)


@pytest.mark.parametrize(
    "bomb", [b"[" * 500_000, b'{"a":' * 150_000, b'{"current":' + b"[" * 1000 + b"]" * 1000 + b"}"]
)
def test_deeply_nested_json_is_refused(bomb: bytes) -> None:
    refused(lambda talk: talk.send(answer(bomb)), InvalidDocumentError)


@pytest.mark.parametrize("junk", [b"", b"null", b"\xff\xfe{}", b'{"a":1,"a":2}', b'{"sequence": 1e999}', b"<html>"])
def test_what_is_no_manifest_is_refused(junk: bytes) -> None:
    refused(lambda talk: talk.send(answer(junk)), InvalidDocumentError)


@pytest.mark.parametrize("number", [2**53, 10**30])
@pytest.mark.parametrize("place", ["a field of nobody's", "a size"])
def test_a_manifest_that_could_not_be_remembered_is_refused_and_locks_nobody_out(
    tmp_path: Path, place: str, number: int
) -> None:
    """Its digest, which a replay is told by, is of canonical JSON, and that has no such numbers."""
    bucket = Bucket.of_directory(tmp_path / "models")
    value = bucket.promote(FIRST).to_object()
    if place == "a size":
        value["current"]["files"]["metrics.json"]["size_bytes"] = number
    else:
        value["current"]["later"] = [{"count": -number}]
    bucket.put(LATEST.manifest, json.dumps(value).encode())

    def consumer() -> Resolver:
        return Resolver(directory=tmp_path / "models", cache_dir=tmp_path / "cache")

    with consumer() as running:
        for _ in range(2):
            with pytest.raises(InvalidDocumentError, match="canonical"):
                running.resolve(MODEL)
        bucket.promote(SECOND)
        assert running.resolve(MODEL).run_id == SECOND
    with consumer() as another:
        assert another.resolve(MODEL).run_id == SECOND


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_not_followed_and_its_target_gets_no_key(status: str) -> None:
    with hostile(lambda talk: talk.send(answer(manifest()))) as elsewhere:
        location = f"Location: {elsewhere.url}/storage/v1/object/models/x\r\n"
        error = refused(lambda talk: talk.send(answer(b"", status=status, headers=location)), UnexpectedResponseError)
        assert isinstance(error, UnexpectedResponseError)
        assert "redirect to '127.0.0.1'" in error.answer
        assert elsewhere.heads == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://[", "http://evil%1b[2J/", "//", "x" * 9_000])
def test_a_redirect_to_a_file_or_to_nowhere_is_not_followed(target: str) -> None:
    location = f"Location: {target}\r\n"
    refused(lambda talk: talk.send(answer(b"", status="302 Found", headers=location)), UnexpectedResponseError)


def test_unchanged_is_no_answer_to_somebody_who_has_seen_nothing() -> None:
    refused(lambda talk: talk.send(answer(b"", status="304 Not Modified")), BridgeError)


def test_an_etag_that_cannot_be_sent_back_does_no_harm() -> None:
    def script(talk: Conversation) -> None:
        talk.send(b'HTTP/1.1 200 OK\r\nETag: "\xc3\xa9"\r\nContent-Length: %d\r\n\r\n%s' % (len(data), data))

    data = manifest()
    with hostile(script) as server, resolver(server.url, timeout=timedelta(seconds=PATIENT_SECONDS)) as reading:
        assert reading.resolve(MODEL).run_id == reading.resolve(MODEL).run_id == FIRST
        assert all(b"if-none-match" not in head.lower() for head in server.heads)


def test_a_server_that_always_fails_is_given_up_within_the_time() -> None:
    refused(lambda talk: talk.send(answer(b"", status="503 Busy")), StoreUnavailableError)


def test_a_server_that_talks_something_else_is_given_up() -> None:
    refused(lambda talk: talk.send(b"SSH-2.0-OpenSSH_9.9\r\n"), StoreUnavailableError)


def test_a_signed_url_does_not_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with hostile(lambda talk: talk.send(answer(manifest()))) as server, caplog.at_level(logging.INFO):
        with Resolver(signed_urls=lambda key: f"{server.url}/object/sign/models/{key}?token=a-secret-token") as reading:
            assert reading.resolve(MODEL).run_id == FIRST
        assert b"a-secret-token" in server.heads[0]
    assert "a-secret-token" not in caplog.text


def test_no_key_goes_to_a_signed_url() -> None:
    with pytest.raises(SettingsError):
        Resolver(signed_urls=lambda key: key, key=KEY)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.org/x", "", "http://", "http://a b/", "http://h/\n"]
)
def test_what_is_signed_must_be_an_http_url(url: str) -> None:
    with pytest.raises(SettingsError), Resolver(signed_urls=lambda _key: url) as reading:
        reading.resolve(MODEL)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a certificate for 127.0.0.1, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "certificate.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM) + secret)
    return path


RESOLVE = """
import sys, time
from datetime import timedelta
from supabase_bridge import Resolver
start = time.monotonic()
try:
    print(Resolver(url=sys.argv[1], timeout=timedelta(seconds=float(sys.argv[2]))).resolve("two_tower").run_id)
except Exception as error:
    print(type(error).__name__)
print(time.monotonic() - start)
"""


@pytest.mark.parametrize(
    ("script", "timeout", "outcome"),
    [
        # On a busy machine a handshake alone takes longer than the short one.
        (lambda talk: talk.send(answer(manifest())), "30", FIRST),
        (lambda talk: talk.trickle(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 10_000), "0.4", "DeadlineExceededError"),
    ],
    ids=["well behaved", "trickling"],
)
def test_over_tls_a_deadline_holds_as_well(certificate: Path, script: Script, timeout: str, outcome: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with hostile(script, tls=context) as server:
        # A process of its own: certificates are read once.
        done = subprocess.run(
            [sys.executable, "-c", RESOLVE, server.url, timeout],
            env={**os.environ, "SSL_CERT_FILE": str(certificate)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    said, seconds = done.stdout.split()
    assert said == outcome
    assert float(seconds) < BOUND_SECONDS


def test_a_certificate_that_nobody_vouches_for_is_not_accepted(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with hostile(lambda talk: talk.send(answer(manifest())), tls=context) as server:
        with resolver(server.url) as reading, pytest.raises(StoreUnavailableError):
            reading.resolve(MODEL)
        assert server.heads == []


def _pull(script: Callable[[Conversation], None], error: type[BridgeError], directory: Path) -> None:
    """Pull from a server whose manifest is in order, and whose files are what `script` makes of them."""
    data = manifest()

    def served(talk: Conversation) -> None:
        if b"/manifest.json" in talk.head.partition(b"\r\n")[0]:
            talk.send(answer(data))
        else:
            script(talk)

    with (
        hostile(served) as server,
        resolver(server.url, cache_dir=directory / "cache", minimum_rate=10**9, timeout=deadline_for(error)) as reading,
    ):
        start = time.monotonic()
        with pytest.raises(error):
            reading.pull(MODEL, directory / "dest")
        assert time.monotonic() - start < BOUND_SECONDS
    assert not (directory / "dest").exists()
    assert [path for path in directory.rglob("*") if path.is_file() and path.suffix == ".part"] == []


def test_a_file_that_hangs_is_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    _pull(lambda talk: talk.hang(), DeadlineExceededError, tmp_path)


def test_a_file_that_trickles_is_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    def script(talk: Conversation) -> None:
        talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        talk.trickle(b"1\r\nx\r\n" * 1000)

    _pull(script, DeadlineExceededError, tmp_path)


def test_an_endless_file_is_read_no_further_than_its_record(tmp_path: Path) -> None:
    def script(talk: Conversation) -> None:
        talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        talk.endlessly(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

    _pull(script, CorruptObjectError, tmp_path)


@pytest.mark.parametrize("length", [0, 1, 10**12])
def test_a_file_of_another_length_is_not_read(tmp_path: Path, length: int) -> None:
    _pull(lambda talk: talk.send(answer(b"", length=length)), CorruptObjectError, tmp_path)


def test_a_file_with_other_bytes_is_not_kept(tmp_path: Path) -> None:
    sizes = {name: len(data) for name, data in Bucket(lambda _key, _data: None).files().items()}

    def script(talk: Conversation) -> None:
        name = talk.head.split(b" ")[1].partition(b"?")[0].rpartition(b"/")[2].decode()
        talk.send(answer(b"x" * sizes[name]))

    _pull(script, CorruptObjectError, tmp_path)


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    _pull(lambda talk: talk.send(answer(bomb, headers="Content-Encoding: gzip\r\n")), UnexpectedResponseError, tmp_path)


def test_a_file_that_is_redirected_is_not_followed(tmp_path: Path) -> None:
    headers = "Location: http://169.254.169.254/latest/meta-data\r\n"
    _pull(
        lambda talk: talk.send(answer(b"", status="307 Elsewhere", headers=headers)), UnexpectedResponseError, tmp_path
    )
