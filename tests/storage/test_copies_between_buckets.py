"""Copies from another bucket of the same project: the copy is the described object, or there is none."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
from pydantic import SecretStr

from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.layout import TEMPORARY_PREFIX
from supabase_bridge.storage.base import Digests, ObjectInfo, PutOptions
from supabase_bridge.storage.errors import (
    AccessDeniedError,
    CorruptObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreUnavailableError,
)
from supabase_bridge.storage.hashing import hash_body
from supabase_bridge.storage.supabase.client import DigestAuthenticator
from supabase_bridge.storage.supabase.store import SupabaseStore
from tests.support.simulators.faults import Action, CutAfterHandling, CutBeforeHandling, Delay, Fault, Hang, Respond
from tests.support.simulators.storage import StorageSimulator
from tests.support.simulators.storage_tokens import DIGEST_KEY
from tests.support.stores import ARTIFACTS, BUCKET, Bench, supabase_store

EVERYWHERE = pytest.mark.parametrize("bench", ["directory", "supabase", "memory"], indirect=True)
DATA = bytes(range(251)) * 4001
DIGESTS = hash_body(DATA)
LIMIT = 2_000_000


def put(bench: Bench, data: bytes = DATA) -> ObjectInfo:
    """Log an artifact as our repository does; return its description by the store."""
    bench.artifacts.overwrite("run/model.onnx", data, options(hash_body(data)))
    return bench.artifacts.stat("run/model.onnx")


def options(digests: Digests = DIGESTS) -> PutOptions:
    return PutOptions(sha256=digests.sha256, md5=digests.md5)


def keys(bench: Bench) -> list[str]:
    return [info.key for prefix in ("", TEMPORARY_PREFIX) for info in bench.store.list(prefix)]


@EVERYWHERE
def test_a_copy_has_the_sources_bytes_and_our_record(bench: Bench) -> None:
    info = put(bench)
    bench.store.copy_in(ARTIFACTS, info, "m/r/m.onnx", options())
    assert bench.store.read("m/r/m.onnx", limit_bytes=LIMIT) == DATA
    assert bench.store.stat("m/r/m.onnx").sha256 in {DIGESTS.sha256, None if not bench.records_sha256 else ""}
    assert bench.artifacts.stat("run/model.onnx") == info
    assert keys(bench) == ["m/r/m.onnx"]


@EVERYWHERE
def test_a_copy_leaves_an_object_that_is_there_as_it_is(bench: Bench) -> None:
    info = put(bench)
    bench.store.create("m/a", b"first", PutOptions())
    with pytest.raises(ObjectExistsError):
        bench.store.copy_in(ARTIFACTS, info, "m/a", options())
    assert bench.store.read("m/a", limit_bytes=LIMIT) == b"first"
    assert keys(bench) == ["m/a"]


@EVERYWHERE
@pytest.mark.parametrize("change", ["deleted", "replaced", "replaced by the same"])
def test_a_source_that_changed_since_it_was_looked_at_is_not_copied(bench: Bench, change: str) -> None:
    info = put(bench)
    if change == "deleted":
        bench.artifacts.delete([info.key])
    else:
        put(bench, DATA[::-1] if change == "replaced" else DATA)
    with pytest.raises(StoreUnavailableError, match=r"deleted|replaced"):
        bench.store.copy_in(ARTIFACTS, info, "m/a", options())
    # Supabase copies what is there now; the release is never completed with it.
    assert keys(bench) == (["m/a"] if isinstance(bench.store, SupabaseStore) and change != "deleted" else [])


@EVERYWHERE
def test_of_many_concurrent_copies_exactly_one_wins(bench: Bench) -> None:
    info = put(bench)
    ready = threading.Barrier(6)

    def attempt(_: int) -> bool:
        ready.wait()
        try:
            bench.store.copy_in(ARTIFACTS, info, "m/a", options())
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(attempt, range(6)))
    assert won.count(True) == 1
    assert keys(bench) == ["m/a"]


@pytest.mark.parametrize("bench", ["directory", "memory"], indirect=True)
def test_a_store_that_reads_what_it_copies_compares_it(bench: Bench) -> None:
    info = put(bench)
    with pytest.raises(CorruptObjectError):
        bench.store.copy_in(ARTIFACTS, info, "m/a", options(hash_body(b"other")))
    assert keys(bench) == []


@EVERYWHERE
def test_parts_are_read_wherever_they_are(bench: Bench) -> None:
    info = put(bench)
    for start, size in ((0, 10), (700_000, 400), (len(DATA) - 5, 100), (len(DATA), 1), (0, LIMIT)):
        assert bench.artifacts.read_part(info, start=start, size_bytes=size) == DATA[start : start + size]


@EVERYWHERE
def test_the_parts_of_an_object_are_read_alone(bench: Bench) -> None:
    info = put(bench)
    for start, size in ((len(DATA) - 300, 300), (5, 3), (0, len(DATA))):
        assert bench.artifacts.read_part(info, start=start, size_bytes=size) == DATA[start : start + size]


@EVERYWHERE
def test_parts_of_two_contents_are_never_put_together(bench: Bench) -> None:
    info = put(bench)
    put(bench, DATA[::-1])
    with pytest.raises(StoreUnavailableError):
        bench.artifacts.read_part(info, start=0, size_bytes=10)
    bench.artifacts.delete([info.key])
    with pytest.raises(ObjectNotFoundError):
        bench.artifacts.read_part(info, start=0, size_bytes=10)


# --- seals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bench", ["supabase"], indirect=True)
def test_what_is_stored_with_its_digests_is_sealed_in_one_request_and_in_chunks(bench: Bench, tmp_path: Path) -> None:
    assert put(bench).digest_authenticated
    path = tmp_path / "file"
    path.write_bytes(DATA)
    bench.artifacts.overwrite("posted", path, options())
    assert bench.artifacts.stat("posted").digest_authenticated


@pytest.mark.parametrize("bench", ["supabase"], indirect=True)
def test_only_who_holds_the_key_can_seal_and_only_what_the_content_is(
    bench: Bench, simulator: StorageSimulator
) -> None:
    info = put(bench)
    sealed = simulator.object_metadata(ARTIFACTS, info.key)
    wrong = hash_body(b"something else")
    forged: dict[str, dict[str, object]] = {
        "no seal": {"sha256": wrong.sha256},
        "another key's": {
            "sha256": wrong.sha256,
            "seal": DigestAuthenticator(SecretStr("mine")).mac(
                Digests(size_bytes=len(DATA), md5=DIGESTS.md5, sha256=wrong.sha256)
            ),
        },
        "another content's": {**sealed, "sha256": wrong.sha256},
        "no text": {**sealed, "seal": 7},
        "not ascii": {**sealed, "seal": "é"},
    }
    for name, metadata in forged.items():
        simulator.put_object(ARTIFACTS, "a", DATA, metadata)
        assert not bench.artifacts.stat("a").digest_authenticated, name
    simulator.put_object(ARTIFACTS, "a", DATA[::-1], sealed)
    assert not bench.artifacts.stat("a").digest_authenticated
    simulator.put_object(ARTIFACTS, "a", DATA, sealed)
    assert bench.artifacts.stat("a").digest_authenticated
    assert simulator.service_key not in str(sealed)


def test_digests_depend_on_a_secret_of_their_own_and_not_on_the_api_key(simulator: StorageSimulator) -> None:
    def logs(bucket: str, digest_key: str | None) -> SupabaseStore:
        store = supabase_store(simulator, bucket=bucket, digest_key=digest_key)
        store.ensure_bucket()
        return store

    with closing(logs(ARTIFACTS, DIGEST_KEY)) as keyed, closing(logs(ARTIFACTS, None)) as unkeyed:
        keyed.overwrite("a", DATA, options())
        unkeyed.overwrite("b", DATA, options())
        assert keyed.stat("a").digest_authenticated
        assert not unkeyed.stat("a").digest_authenticated
        assert not keyed.stat("b").digest_authenticated
        assert "seal" not in simulator.object_metadata(ARTIFACTS, "b")
        under_api_key = DigestAuthenticator(SecretStr(simulator.service_key)).mac(DIGESTS)
        simulator.put_object(ARTIFACTS, "c", DATA, {"sha256": DIGESTS.sha256, "seal": under_api_key})
        assert not any(store.stat("c").digest_authenticated for store in (keyed, unkeyed))


# --- what goes wrong on the way ---------------------------------------------------------------------------------------

UNHARMED: list[tuple[str, Action]] = [
    (path, action)
    for path in ("/object/copy", "/object/move")
    for action in (CutBeforeHandling(), CutAfterHandling(), Respond(500, b"{}"), Respond(503, b"<html>"))
]


@pytest.mark.parametrize("bench", ["supabase"], indirect=True)
@pytest.mark.parametrize(("path", "action"), UNHARMED)
def test_a_failure_that_passes_does_no_harm(
    bench: Bench, simulator: StorageSimulator, path: str, action: Action
) -> None:
    info = put(bench)
    simulator.inject(Fault(action=action, path_contains=path, times=1))
    bench.store.copy_in(ARTIFACTS, info, "m/a", options())
    assert bench.store.read("m/a", limit_bytes=LIMIT) == DATA
    assert keys(bench) == ["m/a"]


@pytest.mark.parametrize("bench", ["supabase"], indirect=True)
@pytest.mark.parametrize("path", ["/object/copy", "/object/info"])
def test_a_failure_that_stays_has_its_name_and_the_next_attempt_finds_what_was_copied(
    bench: Bench, simulator: StorageSimulator, path: str
) -> None:
    info = put(bench)
    simulator.inject(Fault(action=Respond(500, b"{}"), path_contains=path))
    with pytest.raises(StoreUnavailableError):
        bench.store.copy_in(ARTIFACTS, info, "m/a", options())
    simulator.clear_faults()
    with pytest.raises(ObjectExistsError) if path == "/object/info" else nullcontext():
        bench.store.copy_in(ARTIFACTS, info, "m/a", options())
    assert bench.store.read("m/a", limit_bytes=LIMIT) == DATA


@pytest.mark.parametrize("bench", ["supabase"], indirect=True)
def test_a_source_replaced_between_the_look_and_the_copy_is_not_published(
    bench: Bench, simulator: StorageSimulator
) -> None:
    """The server copies the current object; only its version shows a replacement."""
    info = put(bench)
    same = simulator.object_metadata(ARTIFACTS, info.key)
    simulator.put_object(ARTIFACTS, info.key, DATA[::-1], same)
    with pytest.raises(StoreUnavailableError, match="replaced"):
        bench.store.copy_in(ARTIFACTS, info, "m/a", options())


@pytest.mark.parametrize("bench", ["supabase"], indirect=True)
def test_a_copy_by_who_may_not_is_refused_by_name(bench: Bench, simulator: StorageSimulator) -> None:
    info = put(bench)
    body = b'{"statusCode": "403", "error": "Unauthorized", "message": "row-level security", "code": "AccessDenied"}'
    simulator.inject(Fault(action=Respond(400, body), path_contains="/object/copy"))
    with pytest.raises(AccessDeniedError):
        bench.store.copy_in(ARTIFACTS, info, "m/a", options())
    anonymous = supabase_store(simulator, key=simulator.anon_key)
    simulator.clear_faults()
    with pytest.raises(BridgeError):
        anonymous.copy_in(ARTIFACTS, info, "m/a", options())
    anonymous.close()
    assert simulator.object_keys(BUCKET) == []


@pytest.mark.parametrize("bench", ["supabase"], indirect=True)
def test_a_copy_costs_no_byte_on_the_wire(bench: Bench, simulator: StorageSimulator) -> None:
    info = put(bench)
    simulator.reset_calls()
    bench.store.copy_in(ARTIFACTS, info, "m/a", options())
    assert [(call.method, call.path.split("/")[4]) for call in simulator.calls()] == [
        ("POST", "copy"),
        ("GET", "info"),
        ("GET", "info"),
    ]


def test_a_copy_that_takes_the_server_longer_than_a_request_may_is_waited_for_and_made_once(
    simulator: StorageSimulator,
) -> None:
    """The server responds after the last byte is copied."""
    large = bytes(60_000_000)
    simulator.put_object(BUCKET, "other", b"")
    simulator.put_object(ARTIFACTS, "a", large)
    artifacts, hasty = supabase_store(simulator, bucket=ARTIFACTS), supabase_store(simulator, timeout=0.5)
    info = artifacts.stat("a")
    simulator.reset_calls()
    copied = threading.Event()
    simulator.inject(Fault(action=Delay(60, over=copied), path_contains="/object/copy", times=1))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hasty.copy_in, ARTIFACTS, info, "m/a", options(hash_body(large)))
        while simulator.count("GET", f"/info/{BUCKET}/m/a") <= 1 and not waiting.done():
            pass
        copied.set()
        waiting.result()
    assert simulator.object_keys(BUCKET) == ["m/a", "other"]
    assert simulator.count("POST", "/object/copy") == 1
    artifacts.close()
    hasty.close()


def test_a_copy_that_never_comes_is_given_up(simulator: StorageSimulator) -> None:
    simulator.put_object(BUCKET, "other", b"")
    simulator.put_object(ARTIFACTS, "a", DATA)
    artifacts, hasty = supabase_store(simulator, bucket=ARTIFACTS), supabase_store(simulator, timeout=0.3)
    simulator.inject(Fault(action=Hang(), path_contains="/object/copy"))
    with pytest.raises(StoreUnavailableError, match="no answer in time"):
        hasty.copy_in(ARTIFACTS, artifacts.stat("a"), "m/a", options())
    artifacts.close()
    hasty.close()
