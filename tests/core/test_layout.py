"""The names in the bucket: run_ids, model keys, channels and object keys."""

from __future__ import annotations

import string
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supabase_bridge.core.errors import (
    InvalidNameError,
    InvalidObjectKeyError,
    NameKind,
)
from supabase_bridge.core.layout import (
    TEMPORARY_PREFIX,
    ChannelPaths,
    ReleasePaths,
    RunId,
    check_channel,
    check_model_key,
    check_object_key,
    escape_path,
    unescape_path,
)

TIME = datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc)
LATEST = ChannelPaths(model_key="two_tower", channel="latest")

times = st.datetimes(timezones=st.just(timezone.utc)).map(lambda time: time.replace(microsecond=0))
suffixes = st.none() | st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=64)
run_ids = st.builds(RunId, time=times, suffix=suffixes)


def test_a_run_id_is_the_time_of_training_in_utc() -> None:
    assert RunId.parse("20251031T093831Z") == RunId(time=TIME)
    assert str(RunId(time=TIME)) == "20251031T093831Z"


def test_a_run_id_may_carry_a_suffix() -> None:
    run_id = RunId.parse("20251031T093831Z-ci42.1_a")
    assert run_id == RunId(time=TIME, suffix="ci42.1_a")
    assert str(run_id) == "20251031T093831Z-ci42.1_a"


@given(run_ids)
def test_every_run_id_reads_back_as_itself(run_id: RunId) -> None:
    assert RunId.parse(str(run_id)) == run_id


@given(run_ids, st.integers(min_value=1, max_value=2**31 - 1))
def test_a_run_id_made_unique_reads_back_as_itself(run_id: RunId, version: int) -> None:
    unique = run_id.unique([run_id], version=version)
    assert unique != run_id
    assert RunId.parse(str(unique)) == unique


@pytest.mark.parametrize(
    "text",
    [
        "20251301T093831Z",
        "20250229T093831Z",
        "20251031T243831Z",
        "20251031T096031Z",
        "20251031T093860Z",
        "00000101T000000Z",
    ],
)
def test_a_time_that_does_not_exist_is_no_run_id(text: str) -> None:
    with pytest.raises(InvalidNameError):
        RunId.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "20251031T093831",
        "2025-10-31T09:38:31Z",
        "20251031T093831z",
        "20251031T093831Z-",
        "20251031T093831Z-a/b",
        "20251031T093831Z-a b",
        "20251031T093831Z\n",
        " 20251031T093831Z",
        "20251031T093831Z-" + "a" * 65,
        "٢٠٢٥١٠٣١T093831Z",
        "../20251031T093831Z",
    ],
)
def test_a_text_of_another_form_is_no_run_id(text: str) -> None:
    with pytest.raises(InvalidNameError) as refused:
        RunId.parse(text)
    assert refused.value.kind is NameKind.RUN_ID
    assert refused.value.name == text
    assert "YYYYMMDDTHHMMSSZ" in str(refused.value)


def test_a_moment_of_another_zone_becomes_the_run_id_of_its_second_in_utc() -> None:
    local = datetime(2025, 10, 31, 18, 38, 31, 999_999, tzinfo=timezone(timedelta(hours=9)))
    assert str(RunId.at(local)) == "20251031T093831Z"


@pytest.mark.parametrize(
    ("wanted", "given_instead"),
    [
        ("20251031T093831Z", "20251031T093831Z-v7"),
        ("20251031T093831Z-ci42", "20251031T093831Z-ci42-v7"),
    ],
)
def test_a_run_id_that_is_taken_gets_the_version_appended(wanted: str, given_instead: str) -> None:
    run_id = RunId.parse(wanted)
    assert str(run_id.unique([run_id], version=7)) == given_instead


def test_a_run_id_that_is_free_stays_as_it_is() -> None:
    taken = [RunId(time=TIME, suffix="ci42"), RunId(time=TIME + timedelta(seconds=1))]
    assert RunId(time=TIME).unique(taken, version=7) == RunId(time=TIME)


def test_the_keys_of_a_release_are_the_specifications() -> None:
    paths = ReleasePaths(model_key="two_tower", run_id=RunId(time=TIME))
    assert paths.onnx == "two_tower/20251031T093831Z/two_tower_20251031T093831Z.onnx"
    assert paths.file(paths.state_dict_name) == "two_tower/20251031T093831Z/two_tower_20251031T093831Z.pt"
    assert paths.meta == "two_tower/20251031T093831Z/model_meta.json"
    assert paths.metrics == "two_tower/20251031T093831Z/metrics.json"


def test_the_keys_of_a_channel_are_the_specifications() -> None:
    assert LATEST.manifest == "two_tower/latest/manifest.json"
    assert LATEST.history(1) == "two_tower/latest/history/00000001.json"


@pytest.mark.parametrize(
    "name", ["two_tower", "Two Tower", "reranker-v2.1", "7b", "a", "a" * 120, "it's (new)!", "a+b=c;d,e&f$g*"]
)
def test_a_name_that_supabase_takes_is_a_model_key(name: str) -> None:
    assert check_model_key(name) == name
    assert check_object_key(ReleasePaths(model_key=name, run_id=RunId(time=TIME, suffix="s" * 64)).onnx)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("a" * 121, "longer than 120 bytes"),
        ("a/b", "'/'"),
        ("..", "begin with a letter or digit"),
        (".hidden", "begin with a letter or digit"),
        ("_tmp", "begin with a letter or digit"),
        (" a", "begin with a letter or digit"),
        ("a ", "ends in a space or a dot"),
        ("a.", "ends in a space or a dot"),
        ("a@b", "'@'"),
        ("a:b", "':'"),
        ("a?b", "'?'"),
        ("a#b", "'#'"),
        ("a%b", "'%'"),
        ("a\\b", "\\\\"),
        ("a\nb", "\\n"),
        ("a\n", "\\n"),
        ("推薦", "it has '推'"),
        ("modèle", "it has 'è' in it"),
    ],
)
def test_a_name_that_cannot_be_a_folder_is_refused_with_its_reason_and_the_remedy(name: str, reason: str) -> None:
    with pytest.raises(InvalidNameError) as refused:
        check_model_key(name)
    assert reason in str(refused.value)
    assert "supabase.key" in str(refused.value)
    assert not refused.value.retryable


@given(st.text(max_size=130))
@settings(max_examples=200)
def test_whatever_is_a_model_key_makes_object_keys_outside_the_temporary_prefix(name: str) -> None:
    try:
        model_key = check_model_key(name)
    except InvalidNameError:
        return
    key = ReleasePaths(model_key=model_key, run_id=RunId(time=TIME)).meta
    assert check_object_key(key) == key
    assert not key.startswith(TEMPORARY_PREFIX)
    assert key.count("/") == 2


@pytest.mark.parametrize("name", ["latest", "staging", "production", "eu-west_1", "a", "a" * 63])
def test_a_lower_case_name_is_a_channel(name: str) -> None:
    assert check_channel(name) == name


@pytest.mark.parametrize("name", ["", "Latest", "1a", "-a", "_a", "a/b", "a.b", "a b", "..", "latest\n", "ä", "a" * 64])
def test_any_other_name_is_no_channel(name: str) -> None:
    with pytest.raises(InvalidNameError) as refused:
        check_channel(name)
    assert refused.value.kind is NameKind.CHANNEL
    assert refused.value.name == name


@given(run_ids)
def test_a_run_id_is_never_a_channel(run_id: RunId) -> None:
    with pytest.raises(InvalidNameError):
        check_channel(str(run_id))


@given(st.from_regex(r"[a-z][a-z0-9_-]{0,62}", fullmatch=True).map(check_channel))
def test_a_channel_is_never_a_run_id(channel: str) -> None:
    with pytest.raises(InvalidNameError):
        RunId.parse(channel)


@pytest.mark.parametrize("key", ["a", "a/b.c", "a/" + "b" * 255, "_tmp/x", "a!-_.*'()&$@=;:+,? b/c"])
def test_a_key_that_supabase_takes_is_accepted(key: str) -> None:
    assert check_object_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "a/./b",
        "a/../b",
        "..",
        "a#b",
        "a%2e",
        "a\\b",
        "a\x00",
        "a\n",
        "é",
        "a/" + "b" * 256,
        "b" * 256 + "/a",
    ],
)
def test_a_key_that_supabase_refuses_is_refused_first(key: str) -> None:
    with pytest.raises(InvalidObjectKeyError) as refused:
        check_object_key(key)
    assert refused.value.key == key


@given(st.lists(st.integers(min_value=1, max_value=99_999_999), unique=True, max_size=20))
def test_history_keys_sort_as_their_sequences_do(sequences: list[int]) -> None:
    in_order = [LATEST.history(sequence) for sequence in sorted(sequences)]
    assert sorted(map(LATEST.history, sequences)) == in_order


@given(st.integers(min_value=1, max_value=99_999_999))
def test_a_history_key_says_its_sequence(sequence: int) -> None:
    assert LATEST.sequence_of(LATEST.history(sequence)) == sequence


@pytest.mark.parametrize(
    "key",
    [
        "two_tower/latest/manifest.json",
        "two_tower/latest/history/",
        "two_tower/latest/history/1.json",
        "two_tower/latest/history/00000000.json",
        "two_tower/latest/history/000000001.json",
        "two_tower/latest/history/00000001.json.bak",
        "two_tower/latest/history/00000001.json\n",
        "two_tower/latest/history/old/00000001.json",
        "two_tower/staging/history/00000001.json",
        "00000001.json",
    ],
)
def test_a_key_that_is_no_log_entry_has_no_sequence(key: str) -> None:
    assert LATEST.sequence_of(key) is None


def test_a_run_id_of_which_the_versions_own_form_is_taken_too_gets_a_number() -> None:
    wanted = RunId.parse("20251031T093831Z")
    taken = [wanted, RunId.parse(f"{wanted}-v2"), RunId.parse(f"{wanted}-v2.2")]
    assert str(wanted.unique(taken, version=2)) == "20251031T093831Z-v2.3"
    longest = RunId.parse("20251031T093831Z-" + "x" * 64)
    second = longest.unique([longest], version=2)
    third = longest.unique([longest, second], version=2)
    assert (str(third)[-6:], RunId.parse(str(third))) == ("x-v2.2", third)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_an_escaped_path_is_an_object_key_and_reads_back_as_itself(path: str) -> None:
    escaped = escape_path(path)
    assert unescape_path(escaped) == path
    if set(path.split("/")).isdisjoint({"", ".", ".."}):
        check_object_key(escaped)


@given(st.from_regex(r"[a-z$%~A-Z0-9_-]{1,12}", fullmatch=True))
def test_a_path_that_looks_escaped_reads_back_as_itself(path: str) -> None:
    assert unescape_path(escape_path(path)) == path
