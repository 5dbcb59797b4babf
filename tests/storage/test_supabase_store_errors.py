"""The Supabase adapter raises the right error for each refusal, and never with the key in it."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from supabase_bridge.core.errors import BridgeError, InvalidObjectKeyError, SettingsError
from supabase_bridge.storage.base import IMMUTABLE, JSON_TYPE, NO_CACHE, PutOptions
from supabase_bridge.storage.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoreUnavailableError,
    UnexpectedResponseError,
)
from supabase_bridge.storage.supabase.responses import Operation, classify, parse_refusal
from supabase_bridge.storage.supabase.store import SupabaseStore
from tests.support.simulators.faults import CutBeforeHandling, Fault, Respond
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import BUCKET, supabase_store

RECORDINGS = Path(__file__).parents[1] / "support" / "simulators" / "recordings" / "storage.json"
PLAIN = PutOptions()
BIG = b"x" * 300_000
REQUEST = Operation(store="Supabase example bucket models", bucket="models", operation="doing it", key="m/a")

MEANINGS: dict[str, type[BridgeError]] = {
    "bucket.create.exists": ObjectExistsError,
    "bucket.get.missing": BucketNotFoundError,
    "bucket.no_auth": AccessDeniedError,
    "bucket.garbage_key": AccessDeniedError,
    "object.upload.duplicate": ObjectExistsError,
    "object.upload.missing_bucket": BucketNotFoundError,
    "object.upload.oversize": ObjectTooLargeError,
    "object.upload.invalid_key.non_ascii": InvalidObjectKeyError,
    "object.upload.invalid_key.tilde": InvalidObjectKeyError,
    "object.upload.invalid_key.dot_segment": InvalidObjectKeyError,
    "object.upload.anon": AccessDeniedError,
    "object.upload.bad_key": AccessDeniedError,
    "object.get.range.bad": UnexpectedResponseError,
    "object.get.missing": ObjectNotFoundError,
    "object.get.while_tus_incomplete": ObjectNotFoundError,
    "object.get.missing_bucket": BucketNotFoundError,
    "object.get.no_auth": BucketNotFoundError,
    "object.get.anon": ObjectNotFoundError,
    "object.info.missing": ObjectNotFoundError,
    "object.copy.duplicate": ObjectExistsError,
    "object.copy.missing_source": ObjectNotFoundError,
    "object.copy.missing_destination_bucket": BucketNotFoundError,
    "object.move.missing_source": ObjectNotFoundError,
    "object.move.onto_existing": ObjectExistsError,
    "object.signed_get.tampered": AccessDeniedError,
    "bucket.delete.not_empty": ObjectExistsError,
}
"""Every JSON refusal the real server was recorded with; the TUS routes answer in text and are not the adapter's."""


def refusals() -> dict[str, dict[str, Any]]:
    exchanges = json.loads(RECORDINGS.read_text(encoding="utf-8"))["exchanges"]
    return {
        exchange["name"]: exchange["response"]
        for exchange in exchanges
        if exchange["response"]["status"] >= 400
        and isinstance(exchange["response"]["body"], dict)
        and not exchange["name"].startswith("tus.")
    }


def meaning(status: int, body: bytes, headers: dict[str, str] | None = None) -> BridgeError:
    response = httpx.Response(status, headers=headers)
    return classify(parse_refusal(response, body, secret="s3cret"), REQUEST).error


def test_every_recorded_refusal_has_a_meaning_here() -> None:
    assert set(refusals()) == set(MEANINGS)


@pytest.mark.parametrize("name", sorted(MEANINGS))
def test_a_recorded_refusal_is_the_right_error(name: str) -> None:
    response = refusals()[name]
    assert type(meaning(response["status"], json.dumps(response["body"]).encode())) is MEANINGS[name]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b"", UnexpectedResponseError),
        (404, b'{"message":"no Route matched with those values"}', UnexpectedResponseError),
        (400, b'{"statusCode":"404","error":"not_found","message":"Object not found"}', ObjectNotFoundError),
        (400, b'{"statusCode":"503","error":"SlowDown","message":"slow down"}', StoreUnavailableError),
        (400, b'{"statusCode":"423","code":"ResourceLocked","message":"locked"}', StoreUnavailableError),
        (503, b'{"statusCode":"404","code":"NoSuchKey","message":"Object not found"}', StoreUnavailableError),
        (400, b'{"statusCode":"400","code":"InvalidRequest","message":"what?"}', UnexpectedResponseError),
        (400, b'{"statusCode":{},"code":[],"message":3}', UnexpectedResponseError),
        (400, b"\xff", UnexpectedResponseError),
        (401, b"", AccessDeniedError),
        (413, b"", ObjectTooLargeError),
        (302, b"", UnexpectedResponseError),
        (525, b"", StoreUnavailableError),
    ],
)
def test_other_refusals_are_not_taken_for_what_they_are_not(
    status: int, body: bytes, expected: type[BridgeError]
) -> None:
    assert type(meaning(status, body)) is expected


RESTRICTED = (
    b'{"message":"Service for this project is restricted due to the following violations: exceed_egress_quota."}'
)


@pytest.mark.parametrize(
    ("status", "body", "remedy"),
    [
        (402, RESTRICTED, "billing"),
        (402, b"", "billing"),
        (400, b'{"statusCode":"402","error":"Payment Required","message":"exceeded"}', "billing"),
        (403, RESTRICTED, "billing"),
        (540, b'{"message":"Project paused"}', "the project is paused: restore it"),
        (
            400,
            b'{"statusCode":"544","error":"DatabaseTimeout","message":"The connection to the database timed out"}',
            "load",
        ),
        (544, b"", "load"),
        (500, b'{"statusCode":"500","error":"Internal","message":"ENOSPC: no space left on device, write"}', "disk"),
        (400, b'{"statusCode":"400","error":"ENOSPC","message":"ENOSPC: no space left on device, write"}', "disk"),
        (507, b"", "disk"),
    ],
)
def test_an_answer_that_a_person_can_end_outside_is_waited_for_and_names_the_remedy(
    status: int, body: bytes, remedy: str
) -> None:
    failure = classify(parse_refusal(httpx.Response(status), body, secret="s3cret"), REQUEST)
    assert isinstance(failure.error, StoreUnavailableError)
    assert failure.error.retryable
    assert failure.again == (remedy == "load")  # a slow database answers the next request as a rule
    assert remedy in str(failure.error)


def test_a_gateways_page_is_unavailability_whatever_its_status() -> None:
    assert type(meaning(403, b"<html>blocked</html>", {"content-type": "text/html"})) is StoreUnavailableError


# --- keys that are not accepted ---------------------------------------------------------------------------------------


@contextmanager
def opened(simulator: StorageSimulator, key: str) -> Iterator[SupabaseStore]:
    simulator.put_object(BUCKET, "m/a", b"content")
    store = supabase_store(simulator, key=key)
    try:
        yield store
    finally:
        store.close()


def test_a_wrong_key_may_write_nothing_and_sees_no_bucket(simulator: StorageSimulator) -> None:
    with opened(simulator, "eyJhbGciOi.no.key") as store:
        for put in (store.create, store.overwrite):
            with pytest.raises(AccessDeniedError, match="SUPABASE_SECRET_KEY"):
                put("m/b", b"1", PLAIN)
        with pytest.raises((AccessDeniedError, BucketNotFoundError)):
            store.read("m/a", limit_bytes=100)
        with pytest.raises((AccessDeniedError, BucketNotFoundError)):
            list(store.list(""))
        with pytest.raises(AccessDeniedError):
            store.ensure_bucket()


def test_the_anon_key_may_write_nothing_and_sees_nothing(simulator: StorageSimulator) -> None:
    with opened(simulator, simulator.anon_key) as store:
        for body in (b"1", BIG):
            with pytest.raises(AccessDeniedError):
                store.create("m/b", body, PLAIN)
        with pytest.raises(ObjectNotFoundError):
            store.read("m/a", limit_bytes=100)
        with pytest.raises((AccessDeniedError, BucketNotFoundError)):
            list(store.list(""))
        assert simulator.object_keys(BUCKET) == ["m/a"]


@pytest.mark.parametrize("key", ["line\nbreak", "umlaut-ü", "two words", "", "nul\0"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(simulator: StorageSimulator, key: str) -> None:
    with opened(simulator, key or "\t") as store:
        with pytest.raises(AccessDeniedError) as caught:
            store.stat("m/a")
        assert shown(caught.value).count(key or "\t") == 0


# --- the key is never shown -------------------------------------------------------------------------------------------


def shown(error: BaseException) -> str:
    """Return all that a log could show of an error and of its causes."""
    texts = ["".join(traceback.format_exception(error))]
    while error is not None:
        texts += [str(error), repr(error), repr(error.args)]
        following = error.__cause__ or error.__context__
        if following is None:
            break
        error = following
    return "\n".join(texts)


def test_the_key_is_in_no_error_repr_or_log(
    simulator: StorageSimulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = simulator.service_key
    file = tmp_path / "big"
    file.write_bytes(BIG)
    echo = {"statusCode": "400", "error": f"Bearer {key}", "code": key, "message": "x" * 150 + f"Bearer {key}"}
    actions = (
        Respond(400, json.dumps(echo).encode()),
        Respond(500, json.dumps(echo).encode()),
        Respond(502, f"<html>{key}</html>".encode(), {"content-type": "text/html"}),
        Respond(307, b"", {"location": f"http://elsewhere/{key}"}),
        CutBeforeHandling(),
    )
    with caplog.at_level(logging.DEBUG, logger="supabase_bridge"), opened(simulator, key) as store:
        assert key not in repr(store) + str(vars(store)) + store.name
        calls: tuple[Callable[[], object], ...] = (
            lambda: store.create("m/b", b"1", PLAIN),
            lambda: store.overwrite("m/a", file, PLAIN),
            lambda: store.read("m/a", limit_bytes=100),
            lambda: list(store.list("")),
            lambda: store.delete(["m/a"]),
            store.ensure_bucket,
        )
        for action in actions:
            simulator.clear_faults()
            simulator.inject(Fault(action=action))
            for call in calls:
                with pytest.raises(BridgeError) as caught:
                    call()
                # Not even a beginning of it, as a cut message would leave one.
                assert key[:20] not in shown(caught.value)
    assert caplog.records
    assert key[:20] not in str([vars(record) for record in caplog.records])


# --- how objects are stored -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_control", [NO_CACHE, IMMUTABLE, "max-age=60"])
@pytest.mark.parametrize("method", ["create", "overwrite"])
@pytest.mark.parametrize("body", [b"{}", BIG])
def test_headers_and_metadata_are_exactly_those_asked_for(
    simulator: StorageSimulator, cache_control: str, method: str, body: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "body"
    file.write_bytes(body)
    options = PutOptions(
        content_type=JSON_TYPE, cache_control=cache_control, sha256=None, metadata={"run": "ü", "sha256": "x" * 64}
    )
    headers = {"authorization": f"Bearer {simulator.legacy_service_key}"}
    with opened(simulator, simulator.service_key) as store:
        getattr(store, method)("m/b", file if body is BIG else body, options)
    answer = httpx.get(f"{simulator.url}/storage/v1/object/models/m/b", headers=headers)
    assert answer.headers["cache-control"] == cache_control
    assert answer.headers["content-type"] == JSON_TYPE
    assert simulator.object_metadata(BUCKET, "m/b")["run"] == "ü"
    bucket = httpx.get(f"{simulator.url}/storage/v1/bucket/models", headers=headers).json()
    assert bucket["public"] is False


def test_a_cache_directive_that_supabase_cannot_store_is_refused(simulator: StorageSimulator) -> None:
    with opened(simulator, simulator.service_key) as store, pytest.raises(SettingsError, match="private"):
        store.create("m/b", b"1", PutOptions(cache_control="private"))


def test_a_bucket_is_made_private(simulator: StorageSimulator) -> None:
    store = supabase_store(simulator, bucket="fresh")
    store.ensure_bucket()
    headers = {"authorization": f"Bearer {simulator.legacy_service_key}"}
    assert httpx.get(f"{simulator.url}/storage/v1/bucket/fresh", headers=headers).json()["public"] is False
    store.close()


@pytest.mark.parametrize(
    "body",
    [
        b"<html><head><title>413 Request Entity Too Large</title></head><body>nginx</body></html>",
        b'{"statusCode":"413","error":"Payload too large","message":"The object exceeded the maximum allowed size"}',
    ],
    ids=["nginx", "Supabase"],
)
def test_a_file_above_a_limit_is_not_sent_again_and_the_limits_are_named(body: bytes) -> None:
    failure = classify(
        parse_refusal(httpx.Response(413), body, secret="s3cret"), replace(REQUEST, size_bytes=54_000_000)
    )
    assert isinstance(failure.error, ObjectTooLargeError)
    assert (failure.again, failure.error.retryable) == (False, False)
    text = str(failure.error)
    assert f"object {REQUEST.key!r} of 54000000 bytes" in text
    for place in ("of the bucket (its settings)", "of the project (Storage settings)", "client_max_body_size"):
        assert place in text


def test_a_type_that_the_bucket_does_not_allow_names_the_buckets_setting() -> None:
    body = b'{"statusCode":"415","error":"invalid_mime_type","message":"mime type application/json is not supported"}'
    failure = classify(parse_refusal(httpx.Response(400), body, secret="s3cret"), REQUEST)
    assert not failure.again
    assert "mime type application/json is not supported" in str(failure.error)
    assert "the bucket's allowed MIME types" in str(failure.error)
