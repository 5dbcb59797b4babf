"""Copying from another bucket of the same place: what comes is what was looked at, once, or nothing comes."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from supabase_bridge.errors import (
    AccessDeniedError,
    BridgeError,
    CorruptObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreUnavailableError,
)
from supabase_bridge.layout import TEMPORARY_PREFIX
from supabase_bridge.object_store import Digests, ObjectInfo, PutOptions
from supabase_bridge.object_store.digest import digests_of
from supabase_bridge.object_store.reader import open_object
from supabase_bridge.object_store.sealing import Sealer
from supabase_bridge.secret import Secret
from tests.conformance.conftest import ARTIFACTS, BUCKET, Bench, supabase_store
from tests.simulators.faults import Action, CutAfterHandling, CutBeforeHandling, Delay, Fault, Hang, Respond
from tests.simulators.storage import StorageSimulator

EVERYWHERE = pytest.mark.parametrize("bench", ["directory", "supabase", "memory"], indirect=True)
DATA = bytes(range(251)) * 4001
DIGESTS = digests_of(DATA)
LIMIT = 2_000_000


def put(bench: Bench, data: bytes = DATA) -> ObjectInfo:
    """Log an artifact as our repository does; what the store then says of it."""
    bench.artifacts.overwrite("run/model.onnx", data, options(digests_of(data)))
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
    assert [key for key in keys(bench) if not key.startswith(TEMPORARY_PREFIX)] == []


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
        bench.store.copy_in(ARTIFACTS, info, "m/a", options(digests_of(b"other")))
    assert keys(bench) == []


@EVERYWHERE
def test_parts_are_read_wherever_they_are(bench: Bench) -> None:
    info = put(bench)
    for start, size in ((0, 10), (700_000, 400), (len(DATA) - 5, 100), (len(DATA), 1), (0, LIMIT)):
        assert bench.artifacts.read_part(info, start=start, size_bytes=size) == DATA[start : start + size]


@EVERYWHERE
def test_an_object_reads_like_a_file(bench: Bench) -> None:
    with open_object(bench.artifacts, put(bench)) as file:
        assert (file.seek(-300, io.SEEK_END), file.read()) == (len(DATA) - 300, DATA[-300:])
        assert (file.seek(5), file.read(3), file.tell()) == (5, DATA[5:8], 8)
        assert file.seek(0) == 0
        assert file.read() == DATA


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
    assert put(bench).sealed
    path = tmp_path / "file"
    path.write_bytes(DATA)
    bench.artifacts.overwrite("posted", path, options())
    assert bench.artifacts.stat("posted").sealed


@pytest.mark.parametrize("bench", ["supabase"], indirect=True)
def test_only_who_holds_the_key_can_seal_and_only_what_the_content_is(
    bench: Bench, simulator: StorageSimulator
) -> None:
    info = put(bench)
    sealed = simulator.object_metadata(ARTIFACTS, info.key)
    wrong = digests_of(b"something else")
    forged = {
        "no seal": {"sha256": wrong.sha256},
        "another key's": {
            "sha256": wrong.sha256,
            "seal": Sealer(Secret("mine")).seal(Digests(size_bytes=len(DATA), md5=DIGESTS.md5, sha256=wrong.sha256)),
        },
        "another content's": {**sealed, "sha256": wrong.sha256},
        "no text": {**sealed, "seal": 7},
        "not ascii": {**sealed, "seal": "é"},
    }
    for name, metadata in forged.items():
        simulator.put_object(ARTIFACTS, "a", DATA, metadata)
        assert not bench.artifacts.stat("a").sealed, name
    simulator.put_object(ARTIFACTS, "a", DATA[::-1], sealed)
    assert not bench.artifacts.stat("a").sealed
    simulator.put_object(ARTIFACTS, "a", DATA, sealed)
    assert bench.artifacts.stat("a").sealed
    assert simulator.service_key not in str(sealed)


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
@pytest.mark.parametrize("path", ["/object/copy", "/object/info", "/object/move"])
def test_a_failure_that_stays_has_its_name_and_nothing_is_published(
    bench: Bench, simulator: StorageSimulator, path: str
) -> None:
    info = put(bench)
    simulator.inject(Fault(action=Respond(500, b"{}"), path_contains=path))
    with pytest.raises(StoreUnavailableError):
        bench.store.copy_in(ARTIFACTS, info, "m/a", options())
    simulator.clear_faults()
    assert [info.key for info in bench.store.list("")] == []
    bench.store.copy_in(ARTIFACTS, info, "m/a", options())


@pytest.mark.parametrize("bench", ["supabase"], indirect=True)
def test_a_source_replaced_between_the_look_and_the_copy_is_not_published(
    bench: Bench, simulator: StorageSimulator
) -> None:
    """The server copies what is there now; only the version, looked at once more, tells."""
    info = put(bench)
    same = simulator.object_metadata(ARTIFACTS, info.key)
    simulator.put_object(ARTIFACTS, info.key, DATA[::-1], same)
    with pytest.raises(StoreUnavailableError, match="replaced"):
        bench.store.copy_in(ARTIFACTS, info, "m/a", options())
    assert simulator.object_keys(BUCKET, "m/") == []


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
        ("GET", "info"),
        ("POST", "copy"),
        ("GET", "info"),
        ("GET", "info"),
        ("POST", "move"),
    ]


@pytest.mark.parametrize("path", ["/object/copy", "/object/move"])
def test_a_copy_that_takes_the_server_longer_than_a_request_may_is_waited_for_and_made_once(
    simulator: StorageSimulator, path: str
) -> None:
    """The server answers when every byte is copied, also for a move."""
    large = bytes(60_000_000)
    simulator.put_object(BUCKET, "other", b"")
    simulator.put_object(ARTIFACTS, "a", large)
    artifacts, hasty = supabase_store(simulator, bucket=ARTIFACTS), supabase_store(simulator, timeout=0.5)
    info = artifacts.stat("a")
    simulator.reset_calls()
    looked_at = f"/info/{BUCKET}/{TEMPORARY_PREFIX}" if path == "/object/copy" else f"/info/{BUCKET}/m/a"
    # One look at `m/a` comes first of all.
    looks = 1 if path == "/object/copy" else 2
    copied = threading.Event()
    simulator.inject(Fault(action=Delay(60, over=copied), path_contains=path, times=1))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hasty.copy_in, ARTIFACTS, info, "m/a", options(digests_of(large)))
        while simulator.count("GET", looked_at) <= looks and not waiting.done():
            pass
        copied.set()
        waiting.result()
    assert simulator.object_keys(BUCKET) == ["m/a", "other"]
    assert simulator.count("POST", "/object/copy") == 1
    artifacts.close()
    hasty.close()


@pytest.mark.parametrize("path", ["/object/copy", "/object/move"])
def test_a_copy_that_never_comes_is_given_up(simulator: StorageSimulator, path: str) -> None:
    simulator.put_object(BUCKET, "other", b"")
    simulator.put_object(ARTIFACTS, "a", DATA)
    artifacts, hasty = supabase_store(simulator, bucket=ARTIFACTS), supabase_store(simulator, timeout=0.3)
    simulator.inject(Fault(action=Hang(), path_contains=path))
    with pytest.raises(StoreUnavailableError, match="no answer in time"):
        hasty.copy_in(ARTIFACTS, artifacts.stat("a"), "m/a", options())
    artifacts.close()
    hasty.close()
