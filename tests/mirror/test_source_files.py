"""Copy files from a bucket of artifacts to a release: the record matches the object at the release's key."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from supabase_bridge.mirror.source_files import BucketFolder, ModelFile
from supabase_bridge.mirror.upload import put_file
from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.errors import CorruptObjectError
from supabase_bridge.storage.hashing import hash_body
from tests.support.simulators.faults import CorruptResponse, Fault, Respond
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import ARTIFACTS, BUCKET, Bench

DATA = bytes(range(251)) * 4001
SHA256 = hashlib.sha256(DATA).hexdigest()
KEY, TARGET = "run/model.onnx", "m/r/m.onnx"
READING = f"object/{ARTIFACTS}/"
ON_SUPABASE = pytest.mark.parametrize("bench", ["supabase"], indirect=True)
SEALED, CLAIMED, UNRECORDED = "sealed", "claimed", "not recorded"


def lay(bench: Bench, simulator: StorageSimulator, by: str = SEALED, data: bytes = DATA) -> None:
    """Log an artifact; the digests in its metadata are those of DATA."""
    if by == SEALED:
        bench.artifacts.overwrite(KEY, data, PutOptions(sha256=SHA256, md5=hash_body(data).md5))
    else:
        simulator.put_object(ARTIFACTS, KEY, data, {"sha256": SHA256} if by == CLAIMED else {})


def take(bench: Bench, directory: Path) -> ModelFile:
    return BucketFolder(bench.artifacts, ARTIFACTS, "run").snapshot("model.onnx", directory, whole=True)


def etags_in_parts(bench: Bench, simulator: StorageSimulator, key: str, bucket: str) -> None:
    """Have the server give the object an ETag such as S3 gives to what came in several parts."""
    version = bench.artifacts.stat(KEY).version
    facts = {"size": len(DATA), "etag": f'"{"0" * 32}-3"', "last_modified": "2026-11-22T16:55:19Z", "version": version}
    answer = Respond(200, json.dumps(facts).encode(), {"content-type": "application/json"})
    simulator.inject(Fault(action=answer, path_contains=f"info/{bucket}/{key}"))


@ON_SUPABASE
@pytest.mark.parametrize("by", [SEALED, CLAIMED, UNRECORDED])
def test_a_byte_that_is_flipped_on_its_way_here_is_read_again(
    bench: Bench, simulator: StorageSimulator, tmp_path: Path, by: str
) -> None:
    lay(bench, simulator, by)
    simulator.inject(Fault(action=CorruptResponse(500_000), path_contains=READING, times=1))
    taken = take(bench, tmp_path)
    assert (taken.record.sha256, taken.local.read_bytes() == DATA) == (SHA256, True)
    put_file(bench.store, TARGET, taken, None)
    assert bench.store.read(TARGET, limit_bytes=len(DATA)) == DATA


@ON_SUPABASE
@pytest.mark.parametrize("by", [SEALED, CLAIMED, UNRECORDED])
def test_a_file_that_comes_damaged_twice_is_an_error_and_not_a_release(
    bench: Bench, simulator: StorageSimulator, tmp_path: Path, by: str
) -> None:
    lay(bench, simulator, by)
    simulator.inject(Fault(action=CorruptResponse(500_000), path_contains=READING))
    with pytest.raises(CorruptObjectError):
        take(bench, tmp_path)
    assert list(tmp_path.iterdir()) == []


@ON_SUPABASE
def test_a_file_that_was_damaged_on_its_way_up_is_not_taken(
    bench: Bench, simulator: StorageSimulator, tmp_path: Path
) -> None:
    lay(bench, simulator, CLAIMED, DATA[::-1])
    with pytest.raises(CorruptObjectError, match=SHA256):
        take(bench, tmp_path)


@ON_SUPABASE
@pytest.mark.parametrize("etag_of_the_copy", ["an MD5", "in parts"])
def test_what_cannot_be_compared_when_it_is_read_is_compared_when_it_is_copied(
    bench: Bench, simulator: StorageSimulator, tmp_path: Path, etag_of_the_copy: str
) -> None:
    lay(bench, simulator, UNRECORDED)
    etags_in_parts(bench, simulator, KEY, ARTIFACTS)
    if etag_of_the_copy == "in parts":
        etags_in_parts(bench, simulator, TARGET, BUCKET)
    whole = take(bench, tmp_path)
    simulator.inject(Fault(action=CorruptResponse(500_000), path_contains=READING, times=1))
    damaged = take(bench, tmp_path)
    assert damaged.record.sha256 != SHA256
    with pytest.raises(CorruptObjectError):
        put_file(bench.store, TARGET, damaged, None)
    bench.store.delete([TARGET])
    put_file(bench.store, TARGET, whole, None)
    assert bench.store.read(TARGET, limit_bytes=len(DATA)) == DATA
    assert simulator.count("POST", "/object/copy") == 2


@pytest.mark.parametrize("bench", ["directory", "supabase"], indirect=True)
def test_a_file_of_a_bucket_is_placed_as_it_is(bench: Bench, tmp_path: Path) -> None:
    bench.artifacts.overwrite(KEY, DATA, PutOptions())
    taken = take(bench, tmp_path)
    put_file(bench.store, TARGET, taken, None)
    assert bench.store.read(TARGET, limit_bytes=len(DATA)) == DATA
