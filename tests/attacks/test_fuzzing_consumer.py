"""References, memories and cached files of any kind: understood, made good, or an error of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supabase_bridge import Resolver
from supabase_bridge.client.errors import StateCorruptedError
from supabase_bridge.client.release import Release
from supabase_bridge.client.resolution import Reference
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.layout import check_object_key
from supabase_bridge.trust.errors import ManifestRefusedError, Refusal
from tests.attacks.fuzzing import fuzzed, json_value, junk, text
from tests.support.consumers import FIRST, MODEL, SECOND, Bucket

MESSAGE_LIMIT = 1_500


def told(call: Callable[[], object], kind: type[BridgeError] | tuple[type[BridgeError], ...]) -> str | None:
    """What an error of ours said, in few words; None where there was none."""
    said: str | None = None
    try:
        call()
    except kind as error:
        said = str(error)
    assert len(said or "") <= MESSAGE_LIMIT
    return said


@fuzzed(100)
@given(
    reference=st.one_of(
        text,
        st.text(alphabet="two_tower@/.%20251031T093831Z\0\\", max_size=40),
        st.builds("{}{}{}".format, text, st.sampled_from(["@", "/", ""]), text),
    ),
    channel=st.none() | text,
    run_id=st.none() | text,
)
def test_any_text_is_a_reference_below_one_model_or_an_error_of_ours(
    reference: str, channel: str | None, run_id: str | None
) -> None:
    parsed: list[Reference] = []
    said = told(lambda: parsed.append(Reference.parse(reference, channel=channel, run_id=run_id)), BridgeError)
    if said is not None:
        return
    found = parsed[0]
    keys = [found.channel.manifest, *([] if found.release is None else [found.release.meta])]
    assert [check_object_key(key).count("/") for key in keys] == [2] * len(keys)
    assert {key.partition("/")[0] for key in keys} == {found.channel.model_key}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bucket with a release, and a consumer's cache that has pulled it."""
    made = tmp_path_factory.mktemp("consumer")
    Bucket.of_directory(made / "models").promote(FIRST)
    with Resolver(directory=made / "models", cache_dir=made / "cache") as resolver:
        resolver.pull(MODEL)
    return made


@fuzzed(60)
@given(
    data=st.data(),
    kind=st.sampled_from(["junk", "json", "field", "cut", "manifest"]),
)
def test_a_damaged_memory_is_an_error_of_ours_and_no_older_release(home: Path, data: st.DataObject, kind: str) -> None:
    (memory,) = (home / "cache" / "seen").glob("*.json")
    right = memory.read_bytes()
    value: dict[str, Any] = json.loads(right)
    if kind == "junk":
        damaged = data.draw(junk)
    elif kind == "cut":
        damaged = right[: data.draw(st.integers(0, len(right) - 1))]
    elif kind == "json":
        damaged = json.dumps(data.draw(json_value)).encode()
    elif kind == "manifest":
        manifest = data.draw(st.one_of(text, json_value.map(json.dumps)))
        damaged = json.dumps({**value, "manifest": manifest}).encode()
    else:
        damaged = json.dumps({**value, data.draw(st.sampled_from(sorted(value))): data.draw(json_value)}).encode()
    memory.write_bytes(damaged)
    try:
        with Resolver(directory=home / "models", cache_dir=home / "cache") as resolver:
            resolved: list[Release] = []
            reasons: list[Refusal] = []

            def resolve() -> None:
                try:
                    resolved.append(resolver.resolve(MODEL))
                except ManifestRefusedError as error:
                    reasons.append(error.reason)
                    raise

            told(resolve, (StateCorruptedError, ManifestRefusedError))
            assert set(reasons) <= {Refusal.ROLLBACK, Refusal.FORK}
    finally:
        memory.write_bytes(right)
    assert [release.run_id for release in resolved] in ([], [FIRST])


@fuzzed(30)
@given(data=st.data())
def test_a_damaged_file_of_the_cache_is_never_given_out(home: Path, data: st.DataObject) -> None:
    release = Bucket(lambda _key, _data: None).files(FIRST)
    cached = [path for path in (home / "cache" / "releases").rglob("*") if path.is_file() and path.suffix != ".lock"]
    path = data.draw(st.sampled_from(sorted(cached)))
    path.chmod(0o600)
    path.write_bytes(data.draw(junk))
    with Resolver(directory=home / "models", cache_dir=home / "cache") as resolver:
        pulled = resolver.pull(MODEL)
    assert {name: found.read_bytes() for name, found in pulled.files.items()} == release


def test_a_memory_of_another_channel_or_bucket_in_its_place_is_not_believed(tmp_path: Path) -> None:
    """Two memories exchanged: each is well-formed, and of something else."""
    for name in ("one", "two"):
        bucket = Bucket.of_directory(tmp_path / name)
        bucket.promote(FIRST)
        bucket.promote(SECOND, channel="staging")
        with Resolver(directory=tmp_path / name, cache_dir=tmp_path / "cache") as resolver:
            resolver.resolve(MODEL)
            resolver.resolve(f"{MODEL}@staging")
    memories = sorted((tmp_path / "cache" / "seen").glob("*.json"))
    contents = [path.read_bytes() for path in memories]
    for path, content in zip(memories, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)
    for reference in (MODEL, f"{MODEL}@staging"):
        consumer = Resolver(directory=tmp_path / "one", cache_dir=tmp_path / "cache")
        with consumer, pytest.raises(StateCorruptedError, match="another channel"):
            consumer.resolve(reference)
