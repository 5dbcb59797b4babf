"""Somebody who can write to the bucket, or answers for it, changes what is signed; consumers trust another key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from supabase_bridge import Resolver
from supabase_bridge.client.errors import ReleaseUnsignedError
from supabase_bridge.core.documents import FileRecord, Manifest, ModelMeta
from supabase_bridge.core.errors import BridgeError, InvalidDocumentError, LocalFileError
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.storage.errors import CorruptObjectError
from supabase_bridge.trust import model_signature
from supabase_bridge.trust.errors import ManifestRefusedError, Refusal
from supabase_bridge.trust.verify import TrustPolicy
from tests.support.consumers import FIRST, LATEST, MODEL, SECOND, Bucket, record
from tests.support.signatures import key, refused_because, signer, trusting, with_signature

STRICT = TrustPolicy(keys=trusting("first"))
GOLDEN = Manifest.parse((Path(__file__).parents[1] / "golden/manifest.json").read_bytes())
KEYS = ReleasePaths(model_key=MODEL, run_id=RunId.parse(FIRST))
ONNX = KEYS.onnx_name

Resolving = Callable[..., Resolver]


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """A bucket in a directory, whose manifests the trusted key signs."""
    return Bucket.of_directory(tmp_path / "models", signer=signer("first"))


@pytest.fixture
def resolving(tmp_path: Path) -> Iterator[Resolving]:
    """Makes consumers of one cache, each as another process would have it."""
    made: list[Resolver] = []

    def resolver(policy: TrustPolicy = STRICT) -> Resolver:
        made.append(Resolver(directory=tmp_path / "models", cache_dir=tmp_path / "cache", policy=policy))
        return made[-1]

    yield resolver
    for one in made:
        one.close()


# --- every field, every file ------------------------------------------------------------------------------------------


def unassigns(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of everything in a JSON value that has nothing in it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for name, item in inner for leaf in unassigns(item, (*path, name))]
    return found or [path]


def forgeries(value: object) -> list[object]:
    """What somebody would have in place of a value, some of it as valid as the value was."""
    if isinstance(value, bool) or value is None:
        return [not value, "x"]
    if isinstance(value, (int, float)):
        return [value + 1, -value, str(value), None]
    if isinstance(value, str):
        return [value + " ", value[:-1], value.swapcase() + "x", "", None, value.replace("2025", "2026") + "\0"]
    return [{"x": 1}, [1], None]


@pytest.mark.parametrize("path", unassigns(GOLDEN.to_object()), ids=lambda path: ascii(".".join(map(str, path)))[:60])
def test_no_field_of_a_signed_manifest_can_be_changed_or_taken_away(
    bucket: Bucket, resolving: Resolving, path: tuple[str | int, ...]
) -> None:
    signed = signer("first").sign(GOLDEN)
    original = signed.to_object()

    def with_place(change: Callable[[Any, str | int], None]) -> bytes:
        value = deepcopy(original)
        place: Any = value
        for name in path[:-1]:
            place = place[name]
        change(place, path[-1])
        return json.dumps(value).encode()

    resolver = resolving()
    before = [with_place(lambda place, name: place.__delitem__(name))]
    for forged in forgeries(_at(original, path)):
        before.append(with_place(lambda place, name, forged=forged: place.__setitem__(name, forged)))  # type: ignore[misc]  # mypy cannot infer a lambda's default
    for data in before:
        assert json.loads(data) != original
        bucket.put(LATEST.manifest, data)
        with pytest.raises((ManifestRefusedError, InvalidDocumentError)) as caught:
            resolver.resolve(MODEL)
        assert getattr(caught.value, "reason", Refusal.WRONG_SIGNATURE) is Refusal.WRONG_SIGNATURE
    bucket.put(LATEST.manifest, signed.to_bytes())
    assert resolver.resolve(MODEL).sequence == GOLDEN.sequence


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


@pytest.mark.parametrize("name", [ONNX, "metrics.json", "model_meta.json", "model.sig", "notes/more.txt"])
@pytest.mark.parametrize("change", ["first byte", "last byte", "one more", "one less", "none left", "gone"])
def test_a_changed_file_of_a_signed_release_reaches_no_consumer(
    bucket: Bucket, resolving: Resolving, tmp_path: Path, name: str, change: str
) -> None:
    more = {"model.sig": b'{"a": 1}', "notes/more.txt": b"notes"}
    bucket.promote(FIRST, more=more)
    data = bucket.files(FIRST, more=more)[name]
    changed = {
        "first byte": bytes([data[0] ^ 1]) + data[1:],
        "last byte": data[:-1] + bytes([data[-1] ^ 1]),
        "one more": data + b"\n",
        "one less": data[:-1],
        "none left": b"",
    }
    if change == "gone":
        (tmp_path / "models" / KEYS.file(name)).unlink()
    else:
        bucket.put(KEYS.file(name), changed[change])
    resolver = resolving()
    with pytest.raises(BridgeError, match=name):
        resolver.pull(MODEL, tmp_path / "dest")
    assert not (tmp_path / "dest").exists()
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name == Path(name).name]
    assert kept == []
    problems = [verdict.name for verdict in resolver.verify(resolver.resolve(MODEL)) if verdict.problem is not None]
    assert problems == [name]


# --- right signatures in the wrong place ------------------------------------------------------------------------------


def test_the_signature_of_one_manifest_does_not_fit_another_one_of_the_same_channel(
    bucket: Bucket, resolving: Resolving
) -> None:
    first, second = bucket.promote(FIRST), bucket.promote(SECOND)
    for one, other in ((first, second), (second, first)):
        bucket.put(LATEST.manifest, with_signature(one, other.signature))
        with refused_because(Refusal.WRONG_SIGNATURE):
            resolving().resolve(MODEL)


def test_a_signed_manifest_of_another_channel_or_model_is_none_of_this_one(
    bucket: Bucket, resolving: Resolving
) -> None:
    latest = bucket.promote(FIRST)
    bucket.put(ChannelPaths(model_key=MODEL, channel="staging").manifest, latest.to_bytes())
    with refused_because(Refusal.WRONG_MANIFEST):
        resolving().resolve(f"{MODEL}@staging")
    bucket.put(ChannelPaths(model_key="other", channel="latest").manifest, latest.to_bytes())
    with refused_because(Refusal.WRONG_MANIFEST):
        resolving().resolve("other")
    renamed = latest.model_copy(update={"model_name": "other"})
    bucket.put(ChannelPaths(model_key="other", channel="latest").manifest, renamed.to_bytes())
    with refused_because(Refusal.WRONG_SIGNATURE):
        resolving().resolve("other")


def test_a_signed_log_entry_of_another_sequence_vouches_for_no_release(bucket: Bucket, resolving: Resolving) -> None:
    bucket.promote(FIRST)
    bucket.promote(SECOND)
    bucket.promote(SECOND)
    stranger = signer("stranger").sign(bucket.manifest(FIRST, sequence=1))
    for forged in (stranger.to_bytes(), b"{}", b"\xff", stranger.model_copy(update={"signature": None}).to_bytes()):
        bucket.put(LATEST.history(1), forged)
        with pytest.raises(ReleaseUnsignedError):
            resolving().resolve(f"{MODEL}/{FIRST}")
    bucket.put(LATEST.history(1), bucket.manifest(SECOND, sequence=1).to_bytes())
    bucket.put(LATEST.history(2), bucket.manifest(FIRST, sequence=1).to_bytes())
    with pytest.raises(ReleaseUnsignedError):
        resolving().resolve(f"{MODEL}/{FIRST}")
    bucket.put(LATEST.history(1), bucket.manifest(FIRST, sequence=1).to_bytes())
    assert resolving().resolve(f"{MODEL}/{FIRST}").signed


# --- which manifest is the newest -------------------------------------------------------------------------------------


def test_a_forged_sequence_is_refused_and_not_remembered(bucket: Bucket, resolving: Resolving) -> None:
    first = bucket.promote(FIRST)
    resolving().resolve(MODEL)
    for sequence in (2, 10**7 - 1, 2**53 - 1):
        ahead = first.model_copy(update={"sequence": sequence})
        for forged in (ahead, ahead.model_copy(update={"signature": None}), signer("stranger").sign(ahead)):
            bucket.put(LATEST.manifest, forged.to_bytes())
            with pytest.raises(ManifestRefusedError):
                resolving().resolve(MODEL)
    bucket.promote(SECOND)
    assert resolving().resolve(MODEL).run_id == SECOND


def test_a_log_that_was_cut_short_is_refused_by_whoever_has_seen_more(bucket: Bucket, resolving: Resolving) -> None:
    first = bucket.promote(FIRST)
    bucket.promote(SECOND)
    resolving().resolve(MODEL)
    bucket.put(LATEST.manifest, first.to_bytes())
    with refused_because(Refusal.ROLLBACK):
        resolving().resolve(MODEL)
    bucket.sequence = 1
    another = signer("first").sign(bucket.manifest(FIRST, sequence=2))
    bucket.put(LATEST.manifest, another.to_bytes())
    with refused_because(Refusal.FORK):
        resolving().resolve(MODEL)


# --- names that lead elsewhere ----------------------------------------------------------------------------------------

OUTSIDE = [
    *("../evil", "../../evil", "a/../../evil", "/evil", "//evil", "./evil", "a//evil", "a/./evil", "..", ".", ""),
    *("..\\evil", "a\\evil", "%2e%2e/evil", "a\0evil", "a\nevil", "evil\x1b[2J", "\u202eevil", "é", "~/evil/.."),
]


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
def test_a_file_name_that_leads_out_of_a_release_writes_nothing_anywhere(
    bucket: Bucket, resolving: Resolving, tmp_path: Path, name: str, signed: bool
) -> None:
    """Signed by a worker that was deceived, or not at all; by channel, and by the release's own document."""
    bucket.signer = signer("first") if signed else None
    files = {**bucket.files(FIRST), name: b"evil"}
    bucket.release(FIRST)
    bucket.put(LATEST.manifest, bucket.manifest(FIRST, sequence=1, files=files).to_bytes())
    records = {name: record(data) for name, data in files.items() if name != "model_meta.json"}
    meta = ModelMeta.parse(files["model_meta.json"]).model_copy(update={"files": records})
    bucket.put(KEYS.meta, meta.to_bytes())
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    policy = STRICT if signed else TrustPolicy()
    with refused_because(Refusal.PATH):
        resolving(policy).pull(MODEL, tmp_path / "dest")
    with pytest.raises(BridgeError):
        resolving(policy).pull(f"{MODEL}/{FIRST}", tmp_path / "dest")
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "seen" not in path.parts]


@pytest.mark.parametrize(
    "names", [("a", "a/b"), ("a/b", "a"), ("x" * 300,), ("/".join(["x" * 100] * 9),), (".part", "latest.lock")], ids=len
)
def test_file_names_that_no_directory_can_hold_together_are_an_error_with_a_name_or_harmless(
    bucket: Bucket, resolving: Resolving, tmp_path: Path, names: tuple[str, ...]
) -> None:
    files = {**bucket.files(FIRST), **{name: name.encode() for name in names}}
    bucket.put(LATEST.manifest, bucket.manifest(FIRST, sequence=1, files=files).to_bytes())
    for name, data in bucket.files(FIRST).items():
        bucket.put(KEYS.file(name), data)
    with suppress(OSError):  # Nor can a bucket in a directory; then the file is missing.
        for name in names:
            bucket.put(KEYS.file(name), name.encode())
    with suppress(BridgeError):
        resolving().pull(MODEL, tmp_path / "dest")
    if (tmp_path / "dest").exists():
        assert all((tmp_path / "dest" / name).read_bytes() == name.encode() for name in names)


@pytest.mark.parametrize("size_bytes", [10**13, 2**53 - 1, 10**30, 10**400])
def test_a_record_of_more_bytes_than_any_disk_has_is_an_error_of_ours(
    bucket: Bucket, resolving: Resolving, tmp_path: Path, size_bytes: int
) -> None:
    """An unsigned document may say any size; waiting for so many bytes must not end in an overflow."""
    bucket.release(FIRST)
    files = {**{name: record(data) for name, data in bucket.files(FIRST).items()}}
    files[ONNX] = FileRecord(size_bytes=size_bytes, sha256="0" * 64)
    meta = ModelMeta.parse(bucket.files(FIRST)["model_meta.json"])
    bucket.put(KEYS.meta, meta.model_copy(update={"files": {ONNX: files[ONNX]}}).to_bytes())
    resolver = resolving(TrustPolicy())
    with pytest.raises((CorruptObjectError, InvalidDocumentError, LocalFileError)):
        resolver.pull(f"{MODEL}/{FIRST}", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


# --- model.sig --------------------------------------------------------------------------------------------------------


def signature_of(files: dict[str, bytes], name: str = "first") -> bytes:
    return model_signature.sign({one: record(data) for one, data in files.items()}, name=FIRST, key=key(name))


def test_a_model_signature_of_other_or_more_or_fewer_files_vouches_for_nothing(
    bucket: Bucket, resolving: Resolving
) -> None:
    bucket.promote(SECOND)
    bucket.release(FIRST)
    files = bucket.files(FIRST)
    wrong = {
        "another release's": signature_of(bucket.files(SECOND)),
        "one file more": signature_of({**files, "more.txt": b"more"}),
        "one file less": signature_of({name: data for name, data in files.items() if name != "metrics.json"}),
        "names exchanged": signature_of({**files, ONNX: files["metrics.json"], "metrics.json": files[ONNX]}),
        "a stranger's": signature_of(files, "stranger"),
        "none": b"{}",
    }
    for data in wrong.values():
        bucket.put(KEYS.signature, data)
        with pytest.raises(ReleaseUnsignedError):
            resolving().resolve(f"{MODEL}/{FIRST}")
    bucket.put(KEYS.signature, signature_of(files))
    assert resolving().resolve(f"{MODEL}/{FIRST}").signed


def test_a_release_cannot_be_swapped_together_with_its_record_and_keep_its_model_signature(
    bucket: Bucket, resolving: Resolving
) -> None:
    bucket.promote(SECOND)
    right = bucket.files(FIRST)
    bucket.put(KEYS.signature, signature_of(right))
    bucket.release(FIRST, onnx=b"another model")
    with pytest.raises(ReleaseUnsignedError):
        resolving().resolve(f"{MODEL}/{FIRST}")
