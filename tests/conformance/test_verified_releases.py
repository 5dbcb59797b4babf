"""Verifying again what was verified before: one request, unless anything was written since."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from supabase_bridge.errors import BridgeError, ReleaseDamagedError, ReleaseNotFoundError
from supabase_bridge.layout import METRICS_NAME
from supabase_bridge.object_store import ObjectStore, PutOptions
from supabase_bridge.object_store.directory import DirectoryStore
from supabase_bridge.signing import UNSEALED
from supabase_bridge.verified_releases import VerifiedReleases
from tests.conformance.conftest import supabase_store
from tests.simulators.storage import StorageSimulator
from tests.unit.test_activate import keys_of, lay_out

PLAIN = PutOptions()
Store = TypeVar("Store", bound=ObjectStore)


def filled(store: Store) -> Store:
    """A store with releases 1 and 2."""
    store.ensure_bucket()
    for number in (1, 2):
        lay_out(store, number)
    return store


def damage(store: ObjectStore) -> None:
    """Another content for release 1's ONNX file, as long as the right one."""
    store.overwrite(keys_of(1).onnx, b"onnx 2", PLAIN)


@pytest.fixture
def store(simulator: StorageSimulator) -> Iterator[ObjectStore]:
    with closing(supabase_store(simulator)) as made:
        yield filled(made)


def test_a_release_that_nobody_touched_is_verified_again_with_one_request(
    store: ObjectStore, simulator: StorageSimulator
) -> None:
    releases = VerifiedReleases(UNSEALED)
    first = [releases.verify(store, keys_of(number)) for number in (1, 2)]
    simulator.reset_calls()
    assert [releases.verify(store, keys_of(number)) for number in (1, 2)] == first
    assert [call.path for call in simulator.calls()] == ["/storage/v1/object/list-v2/models"] * 2


@pytest.mark.parametrize("same_size", [True, False])
@pytest.mark.parametrize("name", [METRICS_NAME, "model_meta.json", keys_of(1).onnx_name])
def test_a_file_that_was_written_over_since_is_found_damaged(store: ObjectStore, name: str, same_size: bool) -> None:
    releases = VerifiedReleases(UNSEALED)
    releases.verify(store, keys_of(1))
    key = keys_of(1).file(name)
    data = store.read(key, limit_bytes=1_000_000)
    store.overwrite(key, data.replace(b"2025", b"2024").replace(b"1", b"3") if same_size else data + b"x", PLAIN)
    for _ in range(2):
        with pytest.raises(BridgeError):
            releases.verify(store, keys_of(1))


def test_a_file_that_was_removed_since_is_missed_and_one_put_back_is_compared(store: ObjectStore) -> None:
    releases = VerifiedReleases(UNSEALED)
    release = releases.verify(store, keys_of(1))
    onnx = store.read(keys_of(1).onnx, limit_bytes=1_000)
    store.delete([keys_of(1).onnx])
    with pytest.raises(ReleaseDamagedError, match="missing"):
        releases.verify(store, keys_of(1))
    store.create(keys_of(1).onnx, onnx, PLAIN)
    assert releases.verify(store, keys_of(1)) == release
    store.delete([keys_of(1).meta])
    with pytest.raises(ReleaseNotFoundError):
        releases.verify(store, keys_of(1))


def test_two_buckets_are_not_taken_for_each_other(store: ObjectStore, simulator: StorageSimulator) -> None:
    releases = VerifiedReleases(UNSEALED)
    releases.verify(store, keys_of(1))
    with closing(supabase_store(simulator, bucket="others")) as other:
        damage(filled(other))
        with pytest.raises(ReleaseDamagedError):
            releases.verify(other, keys_of(1))


def test_a_directory_is_looked_through_each_time(tmp_path: Path) -> None:
    store = filled(DirectoryStore(tmp_path / "models"))
    releases = VerifiedReleases(UNSEALED)
    releases.verify(store, keys_of(1))
    damage(store)
    with pytest.raises(ReleaseDamagedError):
        releases.verify(store, keys_of(1))
