"""The documents' bytes, what of a document is kept, and what is refused."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from supabase_bridge.core.documents import (
    CurrentRelease,
    Document,
    FileRecord,
    Manifest,
    Metrics,
    ModelMeta,
    Origin,
    ReleasePointer,
)
from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.core.text import format_time

GOLDEN = Path(__file__).parent.parent / "golden"
KINDS: dict[str, type[Document]] = {
    "model_meta.json": ModelMeta,
    "metrics.json": Metrics,
    "manifest.json": Manifest,
    "manifest_signed.json": Manifest,
    "manifest_with_towers.json": Manifest,
    "manifest_of_whom.json": Manifest,
    "metrics_with_protocol.json": Metrics,
    "model_meta_with_features.json": ModelMeta,
    "model_meta_with_graph.json": ModelMeta,
}
SHA256 = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"

SPECIFIED_META: dict[str, Any] = {
    "model_name": "two_tower",
    "format": "two_tower.feature_mlp",
    "run_id": "20251031T093831Z",
    "trained_at": "2025-10-31T09:38:31Z",
    "git_commit": "<commit-hash>",
    "input_schema_version": 1,
    "embedding_dim": 256,
    "hidden_dim": 512,
    "user_feature_dim": 4099,
    "item_feature_dim": 21671,
    "tag_vocab_size": 4096,
    "performer_vocab_size": 1024,
    "preferred_tag_vocab_size": 4096,
    "use_price_feature": False,
    "data_snapshot": {
        "prep_run_id": "20251030T100538Z",
        "source_csv": "ml/data/raw/reviews/dmm_reviews_videoa_2025-10-04.csv",
    },
}
SPECIFIED_METRICS: dict[str, Any] = {
    "run_id": "20251031T093831Z",
    "evaluated_at": "2025-10-31T10:02:15Z",
    "metrics": {"recall@20": 0.695, "map@20": 0.421, "auc": 0.913},
    "validation_set": "ml/data/processed/two_tower/latest/interactions_val.parquet",
    "notes": "price feature turned off",
}
SPECIFIED_MANIFEST: dict[str, Any] = {
    "model_name": "two_tower",
    "current": {
        "run_id": "20251031T093831Z",
        "published_at": "2025-11-01T02:40:10Z",
        "onnx_path": "two_tower/20251031T093831Z/two_tower_20251031T093831Z.onnx",
        "meta_path": "two_tower/20251031T093831Z/model_meta.json",
        "metrics_path": "two_tower/20251031T093831Z/metrics.json",
    },
    "previous": [
        {
            "run_id": "20251015T112233Z",
            "onnx_path": "two_tower/20251015T112233Z/two_tower_20251015T112233Z.onnx",
        }
    ],
    "release_notes": "Recall@20 0.68 -> 0.70; price feature off.",
}
ENTRY = {**SPECIFIED_MANIFEST, "channel": "latest", "sequence": 1}

texts = st.text(st.characters(codec="utf-8"), max_size=10)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
unknown_fields = st.dictionaries(texts.map("x".__add__), json_values, max_size=4)


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def reversed_keys(value: Any) -> Any:
    """The same JSON value, every object's keys in the opposite order."""
    if isinstance(value, dict):
        return {name: reversed_keys(value[name]) for name in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.name)
def test_a_golden_document_is_written_again_byte_for_byte(path: Path) -> None:
    data = path.read_bytes()
    assert KINDS[path.name].parse(data).to_bytes() == data


def test_every_kind_of_document_has_a_golden_one() -> None:
    assert {path.name for path in GOLDEN.glob("*.json")} == set(KINDS)


@pytest.mark.parametrize(
    ("name", "specified"),
    [("model_meta.json", SPECIFIED_META), ("metrics.json", SPECIFIED_METRICS), ("manifest.json", SPECIFIED_MANIFEST)],
)
def test_the_golden_documents_have_every_field_of_the_specification(name: str, specified: dict[str, Any]) -> None:
    golden = json.loads((GOLDEN / name).read_bytes())
    assert list(golden)[: len(specified)] == list(specified)


def test_a_model_meta_of_the_specification_is_kept_as_it_is() -> None:
    assert json.loads(ModelMeta.parse(encoded(SPECIFIED_META)).to_bytes()) == {**SPECIFIED_META, "files": {}}


def test_metrics_of_the_specification_are_kept_as_they_are() -> None:
    assert json.loads(Metrics.parse(encoded(SPECIFIED_METRICS)).to_bytes()) == SPECIFIED_METRICS


def test_a_log_entry_is_a_manifest_of_the_specification_with_its_channel_and_sequence() -> None:
    written = json.loads(Manifest.parse(encoded(ENTRY)).to_bytes())
    assert written == {**ENTRY, "current": {**ENTRY["current"], "files": {}}}


@pytest.mark.parametrize("missing", ["channel", "sequence", "current", "model_name"])
def test_a_log_entry_without_one_of_its_fields_is_refused(missing: str) -> None:
    with pytest.raises(InvalidDocumentError, match=missing):
        Manifest.from_object({name: value for name, value in ENTRY.items() if name != missing})


@given(unknown_fields, unknown_fields)
@settings(max_examples=50)
def test_unknown_fields_are_kept_at_every_depth(outer: dict[str, Any], inner: dict[str, Any]) -> None:
    given_value = {**ENTRY, **outer, "current": {**ENTRY["current"], "files": {}, **inner}}
    parsed = Manifest.parse(encoded(given_value))
    assert json.loads(parsed.to_bytes()) == given_value
    assert Manifest.parse(parsed.to_bytes()) == parsed


def test_an_unknown_null_is_kept_while_a_known_one_is_left_out() -> None:
    value = {**SPECIFIED_METRICS, "notes": None, "note": None, "extra": {"a": None}}
    written = json.loads(Metrics.from_object(value).to_bytes())
    assert written["note"] is None
    assert written["extra"] == {"a": None}
    assert "notes" not in written


@given(unknown_fields)
@example({"xb": 1, "xa": {"d": [{"f": 1, "e": 2}], "c": 1.5}})
@settings(max_examples=50)
def test_equal_values_give_equal_bytes_whatever_the_order_of_their_keys(extra: dict[str, Any]) -> None:
    value = {**SPECIFIED_META, **extra, "data_snapshot": {**SPECIFIED_META["data_snapshot"], **extra}}
    forward, backward = (ModelMeta.parse(encoded(item)) for item in (value, reversed_keys(value)))
    assert forward.to_bytes() == backward.to_bytes()
    assert forward.to_bytes().endswith(b"}\n")


def test_the_bytes_are_utf_8_as_people_read_it() -> None:
    data = Metrics(run_id="r", notes="価格特徴なし").to_bytes()
    assert "価格特徴なし".encode() in data


def test_a_time_of_another_zone_is_written_in_utc() -> None:
    value = {**SPECIFIED_METRICS, "evaluated_at": "2025-10-31T19:02:15+09:00"}
    assert Metrics.from_object(value).to_bytes() == Metrics.from_object(SPECIFIED_METRICS).to_bytes()


def test_a_fraction_of_a_second_is_written_only_where_there_is_one() -> None:
    time = datetime(2025, 10, 31, 19, 2, 15, tzinfo=timezone(timedelta(hours=9)))
    assert format_time(time) == "2025-10-31T10:02:15Z"
    assert format_time(time.replace(microsecond=250_000)) == "2025-10-31T10:02:15.25Z"


def test_a_document_does_not_change() -> None:
    metrics = Metrics(run_id="r")
    with pytest.raises(ValueError, match="frozen"):
        setattr(metrics, "run_id", "s")  # noqa: B010 - mypy knows better than to allow the assignment


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b'{"run_id": "r"} x', "Extra data"),
        (b"[]", "expected a JSON object"),
        (b'"text"', "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b"\xff\xfe{}", "decode"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"run_id": "r", "x": NaN}', "NaN"),
        (b'{"run_id": "r", "x": -Infinity}', "-Infinity"),
        (b'{"run_id": "r", "x": 1e999}', "Out of range"),
        (b'{"run_id": "r", "metrics": {"a": -1e999}}', "Out of range"),
        (b'{"run_id": "r", "run_id": "s"}', "there twice"),
        (b'{"run_id": "r", "x": [{"a": 1, "a": 1}]}', "there twice"),
        (b'{"run_id": "r", "x": "\\ud800"}', "surrogates"),
        (b'{"run_id": "r", "x\\udfff": 1}', "surrogates"),
        (b'{"run_id": "r", "x": ' + b"[" * 65 + b"]" * 65 + b"}", "nested"),
        (b'{"run_id": "r", "x": ' + b'{"y":' * 65 + b"1" + b"}" * 66, "nested"),
        (b"[" * 400_000, "recursion"),
        (b'{"run_id": "r", "x": ' + b"9" * LIMIT_BYTES + b"}", "larger than 1000000 bytes"),
    ],
    ids=lambda part: part[:30].decode("latin-1") if isinstance(part, bytes) else "",
)
def test_what_is_no_plain_json_object_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidDocumentError, match=reason) as refused:
        Metrics.parse(data)
    assert refused.value.document == "metrics.json"
    assert not refused.value.retryable


@given(st.binary(max_size=60) | st.dictionaries(st.sampled_from(list(Metrics.model_fields)), json_values).map(encoded))
@settings(max_examples=200)
def test_any_bytes_are_refused_or_can_be_written_and_read_again(data: bytes) -> None:
    try:
        written = Metrics.parse(data).to_bytes()
    except InvalidDocumentError:
        return
    assert Metrics.parse(written).to_bytes() == written


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("evaluated_at", "2025-10-31T10:02:15"),
        ("evaluated_at", "2025-10-31"),
        ("evaluated_at", "yesterday"),
        ("evaluated_at", "2025-02-30T10:02:15Z"),
        ("evaluated_at", "0001-01-01T00:00:00+14:00"),
        ("run_id", 20251031),
        ("run_id", None),
        ("metrics", {"auc": "high"}),
        ("metrics", {"auc": True}),
        ("metrics", {"auc": None}),
        ("metrics", {"auc": float("nan")}),
        ("metrics", {"auc": 10**400}),
        ("metrics", [0.9]),
        ("threshold_passed", "perhaps"),
        ("baseline_diff", {"auc": float("inf")}),
    ],
)
def test_metrics_that_break_the_schema_are_refused_with_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidDocumentError, match=field):
        Metrics.from_object({**SPECIFIED_METRICS, field: value})


@pytest.mark.parametrize(
    "record",
    [
        {"size_bytes": -1, "sha256": SHA256},
        {"size_bytes": 1.5, "sha256": SHA256},
        {"sha256": SHA256},
        {"size_bytes": 1},
        {"size_bytes": 1, "sha256": SHA256[:-1]},
        {"size_bytes": 1, "sha256": SHA256 + "0"},
        {"size_bytes": 1, "sha256": SHA256.upper()},
        {"size_bytes": 1, "sha256": SHA256 + "\n"},
        {"size_bytes": 1, "sha256": "g" * 64},
    ],
)
def test_a_file_record_that_records_nothing_usable_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(InvalidDocumentError, match=r"files\.a\.onnx"):
        ModelMeta.from_object({**SPECIFIED_META, "files": {"a.onnx": record}})


@pytest.mark.parametrize("sequence", [0, -1, 100_000_000, 10**300, "one"])
def test_a_sequence_that_no_log_can_have_is_refused(sequence: object) -> None:
    with pytest.raises(InvalidDocumentError, match="sequence"):
        Manifest.from_object({**ENTRY, "sequence": sequence})


def test_a_document_too_large_to_be_read_back_is_not_written() -> None:
    meta = ModelMeta.parse(encoded({**SPECIFIED_META, "vocabulary": [1] * 300_000}))
    with pytest.raises(InvalidDocumentError, match="larger than"):
        meta.to_bytes()


def test_documents_made_of_values_are_those_made_of_json() -> None:
    record = FileRecord(size_bytes=1, sha256=SHA256)
    meta = ModelMeta(
        model_name="two_tower",
        run_id="20251031T093831Z",
        files={"a.onnx": record},
        mlflow=Origin(registered_model="two_tower", version=7),
    )
    assert ModelMeta.parse(meta.to_bytes()) == meta
    pointer = ReleasePointer(run_id="20251015T112233Z", onnx_path="two_tower/20251015T112233Z/a.onnx")
    current = CurrentRelease(
        run_id="20251031T093831Z",
        published_at=datetime(2025, 11, 1, 2, 40, 10, tzinfo=timezone.utc),
        onnx_path="two_tower/20251031T093831Z/a.onnx",
        meta_path="two_tower/20251031T093831Z/model_meta.json",
        metrics_path="two_tower/20251031T093831Z/metrics.json",
        files={"a.onnx": record},
    )
    manifest = Manifest(model_name="two_tower", channel="latest", sequence=2, current=current, previous=[pointer])
    assert Manifest.parse(manifest.to_bytes()) == manifest


# --- checks of a release's documents ----------------------------------------------------------------------------------


def meta(**changes: Any) -> ModelMeta:
    value = {"model_name": "two_tower", "run_id": "20251031T093831Z", "files": {}, **changes}
    return ModelMeta.from_object(value)


PATHS = ReleasePaths(model_key="two_tower", run_id=RunId.parse("20251031T093831Z"))


def test_the_meta_of_the_release_itself_passes() -> None:
    found = meta(files={"a/b.onnx": {"size_bytes": 1, "sha256": "0" * 64}})
    found.check_identity(PATHS)
    found.check_file_names(PATHS)


@pytest.mark.parametrize("changes", [{"model_name": "other"}, {"run_id": "20251031T093832Z"}])
def test_the_meta_of_another_release_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(InvalidDocumentError, match="another model or run_id"):
        meta(**changes).check_identity(PATHS)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", ".", "", "a\\b"])
def test_a_file_name_outside_the_directory_of_the_release_is_refused(name: str) -> None:
    with pytest.raises(InvalidDocumentError, match="files: "):
        meta(files={name: {"size_bytes": 1, "sha256": "0" * 64}}).check_file_names(PATHS)


def test_the_recorded_verdict_is_read_from_the_metrics() -> None:
    record = {"criterion": "auc >= 0.9", "value": 0.8, "passed": False, "finding": "auc 0.800 < 0.9"}
    found = Metrics.from_object({"run_id": "20251031T093831Z", "threshold_criteria": [record]}).verdict()
    assert str(found) == "failed: auc 0.800 < 0.9"
    assert Metrics.from_object({"run_id": "20251031T093831Z"}).verdict() is None
