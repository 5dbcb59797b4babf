"""Releases with a model signature: made while mirroring, held against the files before a pointer moves."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from supabase_bridge.core.documents import FileRecord, Manifest, ModelMeta, Origin
from supabase_bridge.mirror.assemble import AssembledRelease
from supabase_bridge.mirror.checks.sandbox import Checks
from supabase_bridge.mirror.job import Mirror
from supabase_bridge.releases.errors import ReleaseDamagedError, ReleaseTakenError
from supabase_bridge.releases.manual import sign_release
from supabase_bridge.releases.verify import VerifiedRelease, verify_release
from supabase_bridge.storage.base import ObjectInfo, PutOptions
from supabase_bridge.storage.errors import StoreUnavailableError
from supabase_bridge.trust.errors import ReleaseSignatureError, SigningError
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy
from tests.mirror.test_mirror_model_files import FACTS, KEYS, draft_in
from tests.support.activation import activate
from tests.support.commands import clean_environment
from tests.support.signatures import key, sealed
from tests.support.simulators.memory_store import MemoryStore
from tests.support.small_releases import LATEST, NOON, PLAIN, event, keys_of, lay_out, run_id

FIRST = sealed("first")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def draft(tmp_path: Path) -> AssembledRelease:
    return draft_in(tmp_path)


class PassingChecks(Checks):
    """Checks that pass without a process of their own, where a test needs many uploads."""

    def onnx(self, *_: Any, **__: Any) -> tuple[str, ...]:
        return ()


CHECKS = Checks(timeout=timedelta(minutes=1), memory_bytes=10**9)


def upload(
    store: MemoryStore, drafted: AssembledRelease, signing: SigningPolicy = FIRST, checks: Checks = CHECKS
) -> VerifiedRelease:
    nothing: Any = None  # Neither the registry nor the sources are asked when a draft is uploaded.
    mirror = Mirror(nothing, nothing, store, baseline_channel="latest", checks=checks, signing=signing)
    mirror.put_release(drafted, KEYS, FACTS, Origin(registered_model="two_tower", version=1))
    return verify_release(store, KEYS, signing=signing)


def content(store: MemoryStore, prefix: str = KEYS.prefix) -> dict[str, bytes]:
    return {info.key: store.read(info.key, limit_bytes=10**7) for info in store.list(prefix)}


def replace_file(store: MemoryStore, number: int, name: str, data: bytes) -> None:
    """What somebody who can write to the bucket does: another file, and a model_meta.json that records it."""
    keys = keys_of(number)
    digest = hashlib.sha256(data).hexdigest()
    meta = ModelMeta.parse(store.read(keys.meta, limit_bytes=10**6))
    files = {**meta.files, name: FileRecord(size_bytes=len(data), sha256=digest)}
    store.overwrite(keys.file(name), data, PutOptions(sha256=digest))
    store.overwrite(keys.meta, meta.model_copy(update={"files": files}).to_bytes(), PLAIN)


def switch_to(store: MemoryStore, number: int, signing: SigningPolicy = FIRST) -> Manifest:
    return activate(store, LATEST, run_id(number), cause=event(number), published_at=NOON, signing=signing).entry


# --- mirroring --------------------------------------------------------------------------------------------------------


def test_a_mirrored_release_is_verified_by_the_openssf_projects_own_command(
    store: MemoryStore,
    draft: AssembledRelease,
    tmp_path: Path,
) -> None:
    upload(store, draft)
    directory = tmp_path / str(KEYS.run_id)
    directory.mkdir()
    for name, data in content(store).items():
        (directory / name.removeprefix(KEYS.prefix)).write_bytes(data)
    public = tmp_path / "public.pem"
    public.write_bytes(key("first").public.pem)
    command: list[str | Path] = [Path(sys.executable).with_name("model_signing"), "verify", "key", directory]
    command += ["--signature", directory / "model.sig", "--public_key", public]
    done = subprocess.run(
        command, env=clean_environment(tmp_path), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_manifest_records_the_signature_and_the_commit_record_does_not(
    store: MemoryStore, draft: AssembledRelease
) -> None:
    release = upload(store, draft)
    assert "model.sig" in release.files
    assert "model.sig" not in release.meta.files


def test_with_signing_off_there_is_no_signature_and_nobody_asks_for_one(draft: AssembledRelease) -> None:
    asked: list[str] = []
    store = MemoryStore(before=lambda _, name: asked.append(name))
    assert "model.sig" not in upload(store, draft, NO_SIGNING).files
    assert KEYS.signature not in asked


@pytest.mark.exhaustive
def test_a_mirror_that_is_broken_off_anywhere_is_finished_by_the_next_attempt(draft: AssembledRelease) -> None:
    """Before each operation on the store, one after the other. Some failures disturb no attempt."""
    undisturbed, checks = MemoryStore(), PassingChecks(timeout=timedelta(minutes=1), memory_bytes=0)
    upload(undisturbed, draft, checks=checks)
    wanted = set(content(undisturbed))
    broken = 0
    while True:
        operations = 0

        def fail_at(_: str, __: str, place: int = broken) -> None:
            nonlocal operations
            operations += 1
            if operations == place + 1:
                raise StoreUnavailableError("memory", "the operation", "broken off")

        store = MemoryStore(before=fail_at)
        try:
            upload(store, draft, checks=checks)
        except StoreUnavailableError:
            upload(store, draft, checks=checks)
        if operations <= broken:
            break
        assert set(content(store)) == wanted
        broken += 1
    assert broken > 15


def test_a_signature_that_an_earlier_attempt_made_of_the_same_files_stays(
    store: MemoryStore, draft: AssembledRelease
) -> None:
    upload(store, draft)
    before = content(store)
    store.delete([KEYS.meta])
    upload(store, draft)
    assert content(store) == before


def test_a_signature_of_other_files_in_an_unfinished_release_is_replaced(
    store: MemoryStore, draft: AssembledRelease
) -> None:
    store.create(KEYS.signature, b"{}", PLAIN)
    upload(store, draft)
    assert store.read(KEYS.signature, limit_bytes=10**6) != b"{}"


@pytest.mark.parametrize("name", ["requirements.txt", "conda.yaml", "MLmodel", "metrics.json", "summary.md"])
def test_what_somebody_put_where_a_release_will_be_is_not_signed(
    store: MemoryStore, draft: AssembledRelease, name: str
) -> None:
    undisturbed = MemoryStore()
    upload(undisturbed, draft)
    planted = undisturbed.read(KEYS.file(name), limit_bytes=10**6) + b"\n"
    store.create(KEYS.file(name), planted, PLAIN)
    with pytest.raises(ReleaseTakenError):
        upload(store, draft)
    assert content(store) == {KEYS.file(name): planted}


def test_a_complete_release_of_other_documents_stays_and_the_other_ones_need_another_run_id(
    store: MemoryStore, draft: AssembledRelease
) -> None:
    upload(store, dataclasses.replace(draft, environment={"requirements.txt": b"onnxruntime==1.0"}), NO_SIGNING)
    before = content(store)
    with pytest.raises(ReleaseTakenError):
        upload(store, draft)
    assert content(store) == before


def test_without_a_signing_key_nothing_is_mirrored_where_keys_are_trusted(
    store: MemoryStore, draft: AssembledRelease
) -> None:
    with pytest.raises(SigningError):
        upload(store, draft, sealed(None, "first"))
    assert content(store, "") == {}


# --- activating -------------------------------------------------------------------------------------------------------


@pytest.fixture
def signed_store(store: MemoryStore) -> MemoryStore:
    for number in (1, 2):
        lay_out(store, number)
        sign_release(store, keys_of(number), signing=FIRST)
    return store


def test_a_file_swapped_together_with_its_record_is_noticed_before_the_pointer_moves(signed_store: MemoryStore) -> None:
    switch_to(signed_store, 1)
    before = content(signed_store, "two_tower/latest/")
    for name in (keys_of(2).onnx_name, "metrics.json", "more.txt"):
        replace_file(signed_store, 2, name, b"swapped")
        with pytest.raises(ReleaseSignatureError, match="not of the files"):
            switch_to(signed_store, 2)
    assert content(signed_store, "two_tower/latest/") == before


def test_any_other_change_of_the_commit_record_is_noticed(signed_store: MemoryStore) -> None:
    keys = keys_of(2)
    meta = ModelMeta.parse(signed_store.read(keys.meta, limit_bytes=10**6))
    signed_store.overwrite(keys.meta, meta.model_copy(update={"embedding_dim": 7}).to_bytes(), PLAIN)
    with pytest.raises(ReleaseSignatureError):
        switch_to(signed_store, 2)


def test_the_signature_of_another_release_is_refused(signed_store: MemoryStore) -> None:
    other = signed_store.read(keys_of(1).signature, limit_bytes=10**6)
    signed_store.overwrite(keys_of(2).signature, other, PLAIN)
    with pytest.raises(ReleaseSignatureError):
        switch_to(signed_store, 2)


@pytest.mark.parametrize("planted", [b"", b"{}", b"x" * 1_000_001], ids=["empty", "no signature", "too large"])
def test_what_is_no_model_signature_is_refused(signed_store: MemoryStore, planted: bytes) -> None:
    signed_store.overwrite(keys_of(2).signature, planted, PLAIN)
    with pytest.raises(ReleaseSignatureError):
        switch_to(signed_store, 2)


def test_a_release_that_a_stranger_signed_is_refused(signed_store: MemoryStore) -> None:
    signed_store.delete([keys_of(2).signature])
    sign_release(signed_store, keys_of(2), signing=sealed("stranger"))
    with pytest.raises(ReleaseSignatureError, match="not trusted"):
        switch_to(signed_store, 2)


def test_a_release_from_before_signing_waits_until_somebody_vouches_for_it(store: MemoryStore) -> None:
    lay_out(store, 1)
    with pytest.raises(ReleaseSignatureError, match=f"keys sign-release two_tower {run_id(1)}"):
        switch_to(store, 1)
    sign_release(store, keys_of(1), signing=FIRST)
    assert "model.sig" in switch_to(store, 1).current.files


class RecordedStore(MemoryStore):
    """A store in which somebody wrote a digest beside a file that is not the file's, as whoever may upload can."""

    def stat(self, key: str) -> ObjectInfo:
        found = super().stat(key)
        return dataclasses.replace(found, sha256=hashlib.sha256(b"onnx 1").hexdigest()) if ".onnx" in key else found


def test_vouching_reads_every_byte_whatever_the_store_recorded() -> None:
    store = RecordedStore()
    lay_out(store, 1)
    store.overwrite(keys_of(1).onnx, b"onnx X", PLAIN)
    verify_release(store, keys_of(1))
    with pytest.raises(ReleaseDamagedError, match="differs"):
        sign_release(store, keys_of(1), signing=FIRST)


def test_vouching_twice_keeps_the_first_signature(signed_store: MemoryStore) -> None:
    before = content(signed_store, keys_of(1).prefix)
    sign_release(signed_store, keys_of(1), signing=FIRST)
    assert content(signed_store, keys_of(1).prefix) == before


def test_a_key_that_is_trusted_no_longer_is_replaced_by_vouching(signed_store: MemoryStore) -> None:
    second = sealed("second")
    with pytest.raises(ReleaseSignatureError):
        verify_release(signed_store, keys_of(1), signing=second)
    sign_release(signed_store, keys_of(1), signing=second)
    assert verify_release(signed_store, keys_of(1), signing=second).files
