"""Verifying again what was verified before: one request, unless anything was written since."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.layout import METRICS_NAME
from supabase_bridge.releases.errors import ReleaseDamagedError, ReleaseNotFoundError
from supabase_bridge.releases.verify import VerifiedReleases
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.directory import DirectoryStore
from supabase_bridge.trust.signer import NO_SIGNING
from tests.support.simulators.storage import StorageSimulator
from tests.support.small_releases import PLAIN, keys_of, lay_out
from tests.support.stores import supabase_store

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
    releases = VerifiedReleases(NO_SIGNING)
    first = [releases.verify(store, keys_of(number)) for number in (1, 2)]
    simulator.reset_calls()
    assert [releases.verify(store, keys_of(number)) for number in (1, 2)] == first
    assert [call.path for call in simulator.calls()] == ["/storage/v1/object/list-v2/models"] * 2


@pytest.mark.parametrize("same_size", [True, False])
@pytest.mark.parametrize("name", [METRICS_NAME, "model_meta.json", keys_of(1).onnx_name])
def test_a_file_that_was_written_over_since_is_found_damaged(store: ObjectStore, name: str, same_size: bool) -> None:
    releases = VerifiedReleases(NO_SIGNING)
    releases.verify(store, keys_of(1))
    key = keys_of(1).file(name)
    data = store.read(key, limit_bytes=1_000_000)
    store.overwrite(key, data.replace(b"2025", b"2024").replace(b"1", b"3") if same_size else data + b"x", PLAIN)
    for _ in range(2):
        with pytest.raises(BridgeError):
            releases.verify(store, keys_of(1))


def test_a_file_that_was_removed_since_is_missed_and_one_put_back_is_compared(store: ObjectStore) -> None:
    releases = VerifiedReleases(NO_SIGNING)
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
    releases = VerifiedReleases(NO_SIGNING)
    releases.verify(store, keys_of(1))
    with closing(supabase_store(simulator, bucket="others")) as other:
        damage(filled(other))
        with pytest.raises(ReleaseDamagedError):
            releases.verify(other, keys_of(1))


def test_a_release_in_a_directory_is_verified_again_by_its_listing_until_a_file_changes(tmp_path: Path) -> None:
    root = tmp_path / "models"
    store, releases = filled(DirectoryStore(root)), VerifiedReleases(NO_SIGNING)
    release = releases.verify(store, keys_of(1))
    assert releases.verify(Unreadable(root), keys_of(1)) == release
    damage(store)
    with pytest.raises(ReleaseDamagedError):
        releases.verify(store, keys_of(1))


def test_a_file_that_is_changed_in_place_in_a_directory_is_found_damaged(tmp_path: Path) -> None:
    store, releases = filled(DirectoryStore(tmp_path / "models")), VerifiedReleases(NO_SIGNING)
    releases.verify(store, keys_of(1))
    path = tmp_path / "models" / keys_of(1).onnx
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:  # The file system's clock ticks every few milliseconds.
        path.write_bytes(b"onnx 2")
    with pytest.raises(ReleaseDamagedError):
        releases.verify(store, keys_of(1))


class Unreadable(DirectoryStore):
    """A directory of which only the listing can be read."""

    def read(self, key: str, *, limit_bytes: int) -> bytes:
        raise AssertionError(f"{key} is read, up to {limit_bytes} bytes")

    def stat(self, key: str) -> NoReturn:
        raise AssertionError(f"{key} is looked up")
