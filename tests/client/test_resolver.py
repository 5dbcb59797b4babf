"""The consumer, on every way to a bucket: what it resolves, what it asks for, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from supabase_bridge import Resolver
from supabase_bridge.client.errors import ReleaseUnsignedError, StateCorruptedError
from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError, LocalFileError, NameKind, SettingsError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.releases.errors import ChannelNotFoundError, ReleaseNotFoundError
from supabase_bridge.storage.errors import AccessDeniedError, CorruptObjectError, DeadlineExceededError
from supabase_bridge.trust import model_signature
from supabase_bridge.trust.errors import Refusal
from supabase_bridge.trust.keys import PrivateKey
from supabase_bridge.trust.verify import TrustPolicy
from tests.support.consumers import (
    BUCKET,
    FIRST,
    LATEST,
    MODEL,
    PUBLISHED,
    SECOND,
    Bucket,
    Clock,
    new_signer,
    record,
    trusting,
)
from tests.support.signatures import refused_because
from tests.support.simulators.storage import CutResponseAfter, Fault, Hang, Respond, StorageSimulator

ONNX = f"{MODEL}_{FIRST}.onnx"
BUSY = """
import errno, os, pathlib, sys
from supabase_bridge import Resolver
def hook(event, arguments):
    if event == "os.rename" and os.fspath(arguments[0]) == sys.argv[2]:
        raise OSError(errno.EBUSY, "Device or resource busy")
sys.addaudithook(hook)
try:
    Resolver(directory=pathlib.Path(sys.argv[1])).pull("two_tower", sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
"""
WITHOUT_EXTRA = """
import pathlib, sys
sys.modules["model_signing"] = None
from supabase_bridge import Resolver
from supabase_bridge.trust.keys import TrustedKeys
from supabase_bridge.trust.verify import TrustPolicy
directory = pathlib.Path(sys.argv[1])
keys = TrustedKeys.from_pem([(directory / "public.pem").read_bytes()])
resolver = Resolver(directory=directory / "models", policy=TrustPolicy(keys=keys))
for run_id in sys.argv[2:]:
    try:
        release = resolver.resolve("two_tower/" + run_id)
        print(release.run_id, release.signed)
    except Exception as error:
        print(type(error).__name__, error)
"""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A bucket to fill, and how a consumer comes to it."""

    bucket: Bucket
    arguments: dict[str, Any]
    directory: Path

    def resolver(self, **more: Any) -> Resolver:
        return Resolver(**{**self.arguments, "cache_dir": self.directory / "cache", **more})


@pytest.fixture(params=["directory", "service key", "anon key", "public bucket", "signed URLs"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Way]:
    if request.param == "directory":
        root = tmp_path / "supabase" / BUCKET
        yield Way(bucket=Bucket.of_directory(root), arguments={"directory": root}, directory=tmp_path)
        return
    with StorageSimulator() as simulator:
        bucket = Bucket.of_simulator(simulator)
        bucket.put("_tmp/made", b"")
        arguments: dict[str, Any] = {"url": simulator.url}
        match request.param:
            case "service key":
                arguments["key"] = simulator.service_key
            case "anon key":
                simulator.let_anon_read(BUCKET)
                arguments["key"] = simulator.anon_key
            case "public bucket":
                simulator.make_public(BUCKET)
            case _:
                arguments["signed_urls"] = lambda key: simulator.sign(BUCKET, key)
        yield Way(bucket=bucket, arguments=arguments, directory=tmp_path)


@pytest.fixture
def simulator() -> Iterator[StorageSimulator]:
    with StorageSimulator() as running:
        yield running


def test_a_channel_resolves_to_what_it_names_now(way: Way) -> None:
    way.bucket.promote(FIRST)
    way.bucket.promote(SECOND, channel="staging")
    with way.resolver() as resolver:
        release = resolver.resolve(MODEL)
        assert (release.model, release.channel, release.run_id, release.sequence) == (MODEL, "latest", FIRST, 1)
        assert (release.published_at, release.model_version, release.release_notes) == (PUBLISHED, 7, "better")
        assert release.onnx_path == f"{MODEL}/{FIRST}/{ONNX}"
        assert release.files[ONNX].size_bytes == len(way.bucket.files(FIRST)[ONNX])
        assert not release.signed
        assert resolver.resolve(f"{MODEL}@staging").run_id == SECOND
        assert resolver.resolve(MODEL, channel="staging").run_id == SECOND
        way.bucket.promote(SECOND)
        assert resolver.resolve(MODEL).run_id == SECOND


def test_a_release_resolves_by_its_run_id(way: Way) -> None:
    way.bucket.release(FIRST)
    with way.resolver() as resolver:
        release = resolver.resolve(f"{MODEL}/{FIRST}")
        assert release == resolver.resolve(MODEL, run_id=FIRST)
        assert (release.run_id, release.channel, release.sequence) == (FIRST, None, None)
        assert set(release.files) == set(way.bucket.files(FIRST))
        assert resolver.pull(release).onnx.read_bytes() == way.bucket.files(FIRST)[ONNX]


def test_a_manifest_without_records_resolves_by_the_releases_own(way: Way) -> None:
    way.bucket.release(FIRST)
    way.bucket.put(LATEST.manifest, way.bucket.manifest(FIRST, sequence=1, files={}).to_bytes())
    with way.resolver() as resolver:
        assert set(resolver.resolve(MODEL).files) == set(way.bucket.files(FIRST))


def test_what_is_missing_is_named(way: Way) -> None:
    way.bucket.promote(FIRST)
    with way.resolver() as resolver:
        with pytest.raises(ChannelNotFoundError):
            resolver.resolve(f"{MODEL}@staging")
        with pytest.raises(ReleaseNotFoundError):
            resolver.resolve(f"{MODEL}/{SECOND}")


def test_a_pull_brings_the_recorded_bytes(way: Way) -> None:
    more = {"notes/more.txt": b"nested", "model.sig": b"{}"}
    way.bucket.promote(FIRST, more=more)
    with way.resolver() as resolver:
        pulled = resolver.pull(MODEL)
        wanted = way.bucket.files(FIRST, more=more)
        assert {name: path.read_bytes() for name, path in pulled.files.items()} == wanted
        dest = resolver.pull(MODEL, way.directory / "dest").directory
        assert {path.relative_to(dest).as_posix() for path in dest.rglob("*") if path.is_file()} == set(wanted)
        assert resolver.meta(pulled.release).embedding_dim == 256
        assert resolver.metrics(pulled.release).metrics == {"auc": 0.9}


def test_a_file_that_differs_from_its_record_is_not_pulled(way: Way) -> None:
    way.bucket.promote(FIRST)
    data = bytearray(way.bucket.files(FIRST)[ONNX])
    data[100] ^= 1
    way.bucket.put(f"{MODEL}/{FIRST}/{ONNX}", bytes(data))
    with way.resolver() as resolver:
        with pytest.raises(CorruptObjectError):
            resolver.pull(MODEL, way.directory / "dest")
        assert not (way.directory / "dest").exists()
        verdicts = {verdict.name: verdict.problem for verdict in resolver.verify(resolver.resolve(MODEL))}
        assert [name for name, problem in verdicts.items() if problem is not None] == [ONNX]


def test_an_older_manifest_than_one_seen_is_refused_by_this_process_and_the_next(way: Way) -> None:
    old = way.bucket.promote(FIRST).to_bytes()
    way.bucket.promote(SECOND)
    with way.resolver() as resolver, way.resolver() as other:
        resolver.resolve(MODEL)
        way.bucket.put(LATEST.manifest, old)
        for reading in (resolver, other):
            with refused_because(Refusal.ROLLBACK):
                reading.resolve(MODEL)


def test_another_manifest_with_a_sequence_seen_before_is_refused(way: Way) -> None:
    way.bucket.promote(FIRST)
    with way.resolver() as resolver:
        resolver.resolve(MODEL)
        way.bucket.put(LATEST.manifest, way.bucket.manifest(SECOND, sequence=1).to_bytes())
        with refused_because(Refusal.FORK):
            resolver.resolve(MODEL)


def test_channels_and_buckets_are_remembered_apart(way: Way) -> None:
    way.bucket.promote(SECOND)
    way.bucket.promote(SECOND)
    with way.resolver() as resolver:
        assert resolver.resolve(MODEL).sequence == 2
        way.bucket.put(f"{MODEL}/staging/manifest.json", way.bucket.manifest(sequence=1, channel="staging").to_bytes())
        assert resolver.resolve(f"{MODEL}@staging").sequence == 1
    other = Bucket.of_directory(way.directory / "other")
    other.promote(FIRST)
    with Resolver(directory=way.directory / "other", cache_dir=way.directory / "cache") as resolver:
        assert resolver.resolve(MODEL).sequence == 1


def test_an_unchanged_manifest_costs_one_request_that_is_answered_304(
    simulator: StorageSimulator, tmp_path: Path
) -> None:
    Bucket.of_simulator(simulator).promote(FIRST)
    for statuses in ([200, 304, 304], [304, 304, 304]):
        simulator.reset_calls()
        with Resolver(url=simulator.url, key=simulator.service_key, cache_dir=tmp_path) as resolver:
            releases = [resolver.resolve(MODEL) for _ in range(3)]
        assert [call.status for call in simulator.calls()] == statuses
        assert len(set(map(repr, releases))) == 1


def test_a_manifest_that_is_unchanged_grows_old_all_the_same(simulator: StorageSimulator) -> None:
    Bucket.of_simulator(simulator).promote(FIRST)
    clock, policy = Clock(), TrustPolicy(max_age=timedelta(days=3))
    with Resolver(url=simulator.url, key=simulator.service_key, policy=policy, clock=clock) as resolver:
        resolver.resolve(MODEL)
        clock.now += timedelta(days=3)
        with refused_because(Refusal.EXPIRED):
            resolver.resolve(MODEL)
    assert [call.status for call in simulator.calls()] == [200, 304]


def test_a_second_pull_reads_no_file_over_the_network(simulator: StorageSimulator, tmp_path: Path) -> None:
    Bucket.of_simulator(simulator).promote(FIRST)
    with Resolver(url=simulator.url, key=simulator.service_key, cache_dir=tmp_path / "cache") as resolver:
        resolver.pull(MODEL)
        simulator.reset_calls()
        resolver.pull(MODEL)
        resolver.pull(MODEL, tmp_path / "dest")
    assert [(call.path.rpartition("/")[2], call.status) for call in simulator.calls()] == [("manifest.json", 304)] * 2


def test_a_pull_goes_on_where_the_connection_broke(simulator: StorageSimulator, tmp_path: Path) -> None:
    data = bytes(range(251)) * 4001
    Bucket.of_simulator(simulator).promote(FIRST, onnx=data)
    simulator.inject(Fault(action=CutResponseAfter(300_000), path_contains=".onnx", times=2))
    with Resolver(url=simulator.url, key=simulator.service_key, cache_dir=tmp_path) as resolver:
        assert resolver.pull(MODEL).onnx.read_bytes() == data
    assert [call.status for call in simulator.calls() if ".onnx" in call.path] == [200, 206, 206]


def test_a_resolve_asks_again_where_the_server_fails_now_and_then(simulator: StorageSimulator) -> None:
    Bucket.of_simulator(simulator).promote(FIRST)
    simulator.inject(Fault(action=Respond(500), times=1))
    with Resolver(url=simulator.url, key=simulator.service_key) as resolver:
        assert resolver.resolve(MODEL).run_id == FIRST


@pytest.mark.parametrize("key", [None, "anon", "another-projects-key"])
def test_a_consumer_that_may_not_read_is_told_so(simulator: StorageSimulator, key: str | None) -> None:
    Bucket.of_simulator(simulator).promote(FIRST)
    with Resolver(url=simulator.url, key=simulator.anon_key if key == "anon" else key) as resolver:
        with pytest.raises((AccessDeniedError, ChannelNotFoundError)) as caught:
            resolver.resolve(MODEL)
        assert "another-projects-key" not in str(caught.value)


def test_an_expired_signed_url_is_told_apart_from_a_missing_release(simulator: StorageSimulator) -> None:
    Bucket.of_simulator(simulator).promote(FIRST)
    expired = Resolver(signed_urls=lambda key: simulator.sign(BUCKET, key, lifetime_seconds=-1))
    with expired, pytest.raises(AccessDeniedError):
        expired.resolve(MODEL)


def test_a_release_far_back_in_a_slow_log_is_vouched_for_by_its_model_signature(simulator: StorageSimulator) -> None:
    signer = new_signer()
    bucket = Bucket.of_simulator(simulator, signer=signer)
    bucket.promote(FIRST)
    bucket.promote(SECOND)
    bucket.promote(SECOND)
    arguments: dict[str, Any] = {"url": simulator.url, "key": simulator.service_key}
    simulator.inject(Fault(action=Hang(), path_contains="/history/"))
    arguments["policy"] = TrustPolicy(keys=trusting(signer))
    hurried = Resolver(**arguments, timeout=timedelta(seconds=1))
    with hurried, pytest.raises(DeadlineExceededError):
        hurried.resolve(f"{MODEL}/{FIRST}")
    files = sign_release(bucket, FIRST)
    with Resolver(**arguments) as resolver:
        assert set(resolver.resolve(f"{MODEL}/{FIRST}").files) == files


def test_without_the_library_for_model_signatures_the_log_vouches_and_the_refusal_says_what_is_missing(
    tmp_path: Path,
) -> None:
    """In a process of its own, since this one has imported the library."""
    signer = new_signer()
    (tmp_path / "public.pem").write_bytes(signer.public.pem)
    bucket = Bucket.of_directory(tmp_path / "models", signer=signer)
    bucket.promote(FIRST)
    sign_release(bucket, FIRST)
    sign_release(bucket, SECOND)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA, tmp_path, FIRST, SECOND], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[0] == f"{FIRST} True", done.stderr
    assert "ReleaseUnsignedError" in done.stdout
    assert "mlflow-supabase-bridge[signing]" in done.stdout


def sign_release(bucket: Bucket, run_id: str, *, key: PrivateKey | None = None) -> set[str]:
    """Write a release, and its model.sig by a key, the bucket's own unless another is given; the files' names."""
    assert bucket.signer is not None
    bucket.release(run_id)
    records = {name: record(data) for name, data in bucket.files(run_id).items()}
    signature = model_signature.sign(records, name=run_id, key=key or bucket.signer.key)
    bucket.put(ReleasePaths(model_key=MODEL, run_id=RunId.parse(run_id)).signature, signature)
    return {*records, "model.sig"}


class TestSignatures:
    """With keys that are trusted; every manifest of `bucket` is signed by `signer`."""

    @pytest.fixture
    def signed(self, tmp_path: Path) -> tuple[Bucket, Callable[..., Resolver]]:
        signer = new_signer()
        policy = TrustPolicy(keys=trusting(signer))

        def resolver(**more: Any) -> Resolver:
            return Resolver(**{"directory": tmp_path / "models", "policy": policy, **more})

        return Bucket.of_directory(tmp_path / "models", signer=signer), resolver

    def test_a_signed_manifest_resolves_and_says_so(self, signed: tuple[Bucket, Callable[..., Resolver]]) -> None:
        bucket, resolver = signed
        bucket.promote(FIRST)
        assert resolver().resolve(MODEL).signed

    def test_an_unsigned_one_or_one_of_another_key_is_refused(
        self, signed: tuple[Bucket, Callable[..., Resolver]]
    ) -> None:
        bucket, resolver = signed
        bucket.signer = None
        bucket.promote(FIRST)
        with refused_because(Refusal.UNSIGNED):
            resolver().resolve(MODEL)
        bucket.signer = new_signer()
        bucket.promote(FIRST)
        with refused_because(Refusal.UNKNOWN_KEY):
            resolver().resolve(MODEL)

    def test_a_release_by_its_run_id_is_vouched_for_by_the_signed_log(
        self, signed: tuple[Bucket, Callable[..., Resolver]]
    ) -> None:
        bucket, resolver = signed
        bucket.promote(FIRST)
        bucket.promote(SECOND)
        release = resolver().resolve(f"{MODEL}/{FIRST}")
        assert (release.run_id, release.signed, release.channel) == (FIRST, True, None)

    def test_a_release_that_only_its_own_document_records_is_refused(
        self, signed: tuple[Bucket, Callable[..., Resolver]]
    ) -> None:
        bucket, resolver = signed
        bucket.promote(SECOND)
        bucket.release(FIRST)
        with pytest.raises(ReleaseUnsignedError):
            resolver().resolve(f"{MODEL}/{FIRST}")

    def test_a_release_that_was_never_promoted_is_vouched_for_by_its_model_signature(
        self, signed: tuple[Bucket, Callable[..., Resolver]]
    ) -> None:
        bucket, resolver = signed
        bucket.promote(SECOND)
        files = sign_release(bucket, FIRST)
        release = resolver().resolve(f"{MODEL}/{FIRST}")
        assert (release.signed, set(release.files)) == (True, files)
        sign_release(bucket, FIRST, key=new_signer().key)
        with pytest.raises(ReleaseUnsignedError, match="not trusted"):
            resolver().resolve(f"{MODEL}/{FIRST}")

    def test_a_model_signature_vouches_for_a_release_of_a_model_that_nothing_was_promoted_of(
        self, signed: tuple[Bucket, Callable[..., Resolver]], tmp_path: Path
    ) -> None:
        bucket, resolver = signed
        files = sign_release(bucket, FIRST)
        reading = resolver()
        release = reading.resolve(f"{MODEL}/{FIRST}")
        assert (release.run_id, release.signed) == (FIRST, True)
        assert set(reading.pull(release, tmp_path / "dest").files) == files
        assert [verdict.problem for verdict in reading.verify(release)] == [None] * len(files)

    def test_a_release_without_signature_of_a_model_that_nothing_was_promoted_of_is_refused_as_unsigned(
        self, signed: tuple[Bucket, Callable[..., Resolver]]
    ) -> None:
        bucket, resolver = signed
        bucket.release(FIRST)
        with pytest.raises(ReleaseUnsignedError):
            resolver().resolve(f"{MODEL}/{FIRST}")

    def test_damaged_entries_of_the_log_are_passed_over(self, signed: tuple[Bucket, Callable[..., Resolver]]) -> None:
        bucket, resolver = signed
        damaged = [b"{}", b"\xff", b" " * (LIMIT_BYTES + 1), b"[" * 100_000]
        bucket.promote(FIRST)
        for _ in (*damaged, None):
            bucket.promote(SECOND)
        for sequence, data in enumerate(damaged, start=2):
            bucket.put(LATEST.history(sequence), data)
        release = resolver().resolve(f"{MODEL}/{FIRST}")
        assert (release.run_id, release.signed) == (FIRST, True)

    @pytest.mark.parametrize("damage", ["not there", "another key's", "too large", "no signature", "no document"])
    def test_a_release_whose_model_signature_says_nothing_is_vouched_for_by_the_log(
        self, signed: tuple[Bucket, Callable[..., Resolver]], damage: str
    ) -> None:
        bucket, resolver = signed
        bucket.promote(FIRST)
        bucket.promote(SECOND)
        paths = ReleasePaths(model_key=MODEL, run_id=RunId.parse(FIRST))
        if damage == "another key's":
            sign_release(bucket, FIRST, key=new_signer().key)
        elif damage == "no document":
            sign_release(bucket, FIRST)
            bucket.put(paths.meta, b"{")
        elif damage != "not there":
            bucket.put(paths.signature, b" " * (LIMIT_BYTES + 1) if damage == "too large" else b"{}")
        release = resolver().resolve(f"{MODEL}/{FIRST}")
        assert (release.signed, "model.sig" in release.files) == (True, False)

    def test_a_document_that_was_changed_after_its_release_was_signed_is_not_believed(
        self, signed: tuple[Bucket, Callable[..., Resolver]]
    ) -> None:
        bucket, resolver = signed
        bucket.promote(FIRST)
        paths = ReleasePaths(model_key=MODEL, run_id=RunId.parse(FIRST))
        bucket.put(paths.meta, bucket.files(FIRST, onnx=b"other bytes")["model_meta.json"])
        bucket.put(paths.onnx, b"other bytes")
        release = resolver().resolve(f"{MODEL}/{FIRST}")
        with pytest.raises(CorruptObjectError):
            resolver().meta(release)


@pytest.mark.parametrize(
    "text",
    ["", "@latest", "two_tower@", "two_tower/", "two_tower@latest/x", "../x", "two_tower/latest", "a@b@c", "a/b/c"],
)
def test_what_is_no_reference_is_refused_before_anything_is_asked(tmp_path: Path, text: str) -> None:
    with Resolver(directory=tmp_path / "missing") as resolver, pytest.raises(InvalidNameError):
        resolver.resolve(text)


def test_a_reference_does_not_say_twice_which_release_is_meant(tmp_path: Path) -> None:
    with Resolver(directory=tmp_path) as resolver:
        with pytest.raises(InvalidNameError) as of_channel:
            resolver.resolve(f"{MODEL}@latest", channel="staging")
        with pytest.raises(InvalidNameError) as of_run:
            resolver.resolve(f"{MODEL}/{FIRST}", run_id=SECOND)
    assert of_channel.value.kind is of_run.value.kind is NameKind.REFERENCE


def test_what_was_seen_must_be_readable_to_be_believed(tmp_path: Path) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    resolver = Resolver(directory=tmp_path / "models", cache_dir=tmp_path / "cache")
    resolver.resolve(MODEL)
    (found,) = (tmp_path / "cache" / "seen").glob("*.json")
    found.write_text(found.read_text()[:-30])
    with pytest.raises(StateCorruptedError):
        resolver.resolve(MODEL)


def test_a_release_whose_own_document_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    bucket = Bucket.of_directory(tmp_path / "models")
    bucket.release(FIRST, more={"x": b""})
    paths = ReleasePaths(model_key=MODEL, run_id=RunId.parse(FIRST))
    meta = bucket.files(FIRST, more={"x": b""})["model_meta.json"]
    bucket.put(paths.meta, meta.replace(b'"x"', b'"../../../x"'))
    with pytest.raises(InvalidDocumentError):
        Resolver(directory=tmp_path / "models").resolve(f"{MODEL}/{FIRST}")


def test_without_a_cache_a_pull_needs_a_destination(tmp_path: Path) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    resolver = Resolver(directory=tmp_path / "models")
    with pytest.raises(SettingsError):
        resolver.pull(MODEL)
    assert resolver.pull(MODEL, tmp_path / "dest").onnx.exists()


@pytest.mark.parametrize("limit", [0, 10_000_000])
def test_a_destination_holds_one_release_after_another_and_never_foreign_files(tmp_path: Path, limit: int) -> None:
    bucket = Bucket.of_directory(tmp_path / "models")
    bucket.promote(FIRST)
    resolver = Resolver(directory=tmp_path / "models", cache_dir=tmp_path / "cache", cache_limit_bytes=limit)
    dest = tmp_path / "deep" / "dest"
    resolver.pull(MODEL, dest)
    bucket.promote(SECOND)
    resolver.pull(MODEL, dest)
    resolver.pull(MODEL, dest)
    assert {path.name for path in dest.iterdir()} == set(bucket.files(SECOND))
    assert [path.name for path in dest.parent.iterdir()] == ["dest"]
    (dest / "mine.txt").write_text("keep me")
    bucket.promote(FIRST)
    with pytest.raises(LocalFileError, match="mine"):
        resolver.pull(MODEL, dest)
    assert (dest / "mine.txt").read_text() == "keep me"
    assert f"{MODEL}_{SECOND}.onnx" in {path.name for path in dest.iterdir()}


@pytest.mark.parametrize("limit", [0, 10_000_000])
def test_a_destination_with_features_is_replaced_and_a_foreign_file_among_them_is_not(
    tmp_path: Path, limit: int
) -> None:
    bucket = Bucket.of_directory(tmp_path / "models")
    bucket.promote(FIRST, more={"features/tags.json": b"{}", f"{MODEL}_{FIRST}.user.onnx": b"tower"})
    resolver = Resolver(directory=tmp_path / "models", cache_dir=tmp_path / "cache", cache_limit_bytes=limit)
    pulled = resolver.pull(MODEL, tmp_path / "dest")
    assert (pulled.release.user_onnx_name, pulled.release.item_onnx_name) == (f"{MODEL}_{FIRST}.user.onnx", None)
    assert resolver.pull(MODEL, tmp_path / "dest").files["features/tags.json"].read_bytes() == b"{}"
    (tmp_path / "dest" / "features" / "mine.json").write_text("keep me")
    with pytest.raises(LocalFileError, match="features/mine"):
        resolver.pull(MODEL, tmp_path / "dest")


@pytest.mark.parametrize("kind", ["file", "link", "foreign"])
def test_a_destination_that_is_something_else_is_left_alone(tmp_path: Path, kind: str) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    dest = tmp_path / "dest"
    if kind == "file":
        dest.write_text("mine")
    elif kind == "link":
        dest.symlink_to(tmp_path)
    else:
        dest.mkdir()
        (dest / "thesis.tex").write_text("mine")
    with pytest.raises(LocalFileError):
        Resolver(directory=tmp_path / "models").pull(MODEL, dest)
    assert dest.is_symlink() or (dest if kind == "file" else dest / "thesis.tex").read_text() == "mine"


def test_a_destination_that_is_a_mount_point_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test has no right to mount anything, so the system's answer is put in its mouth."""
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    dest = tmp_path / "volume"
    dest.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == dest)
    resolver = Resolver(directory=tmp_path / "models")
    with pytest.raises(LocalFileError, match=r"mounted there.* name a directory below it"):
        resolver.pull(MODEL, dest)
    assert list(dest.iterdir()) == []
    assert resolver.pull(MODEL, dest / "model").onnx.exists()


def test_a_destination_that_turns_out_to_be_mounted_when_it_is_renamed_is_refused_with_advice(tmp_path: Path) -> None:
    """A bind mount of the same file system is not told from a directory before."""
    bucket = Bucket.of_directory(tmp_path / "models")
    bucket.promote(FIRST)
    Resolver(directory=tmp_path / "models").pull(MODEL, tmp_path / "dest")
    bucket.promote(SECOND)
    done = subprocess.run(
        [sys.executable, "-c", BUSY, tmp_path / "models", tmp_path / "dest"], capture_output=True, text=True, timeout=60
    )
    assert "LocalFileError" in done.stdout, done.stderr
    assert "name a directory below it" in done.stdout
    assert {path.name for path in (tmp_path / "dest").iterdir()} == set(bucket.files(FIRST))
    assert {path.name for path in tmp_path.iterdir()} == {"models", "dest"}


@pytest.mark.parametrize("name", ["a**b", "a[b", "[!a]", "*", "?"])
def test_a_destination_may_have_any_name_and_only_its_own_leftovers_are_removed(tmp_path: Path, name: str) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    leftovers = [tmp_path / "to" / f".{whose}.{'0' * 32}.part" for whose in (name, "b")]
    for path in leftovers:
        path.mkdir(parents=True)
        os.utime(path, (1, 1))
    assert Resolver(directory=tmp_path / "models").pull(MODEL, tmp_path / "to" / name).onnx.exists()
    assert [path.exists() for path in leftovers] == [False, True]
