"""Documents, names and MLmodel files of any kind: what is not understood is an error of ours, soon, in few words."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML has no annotations
from hypothesis import example, given
from hypothesis import strategies as st

from supabase_bridge.client.resolution import reference_in_path
from supabase_bridge.core.documents import Document, Manifest, Metrics, ModelMeta, Origin
from supabase_bridge.core.errors import BridgeError, InvalidDocumentError
from supabase_bridge.core.json_objects import LIMIT_BYTES, parse_object
from supabase_bridge.core.layout import (
    ChannelPaths,
    ReleasePaths,
    RunId,
    check_channel,
    check_model_key,
    check_object_key,
)
from supabase_bridge.mirror.metadata import RunInfo, complete_meta, complete_metrics, wanted_run_id
from supabase_bridge.mirror.mlmodel import model_files, parse_mlmodel, requirements
from supabase_bridge.mirror.onnx_file import Structure
from supabase_bridge.trust.verify import check_paths
from tests.attacks.fuzzing import JUNK, fuzzed, json_value, junk, mixed, text

MESSAGE_LIMIT = 1_000
KEYS = ReleasePaths(model_key="two_tower", run_id=RunId.parse("20251031T093831Z"))
LATEST = ChannelPaths(model_key="two_tower", channel="latest")
FACTS = RunInfo(ended_at=datetime(2025, 10, 31, tzinfo=timezone.utc))
ORIGIN = Origin(registered_model="two_tower", version=1)

sha256 = st.sampled_from(["0" * 64, "0" * 63, "0" * 64 + "\n", "G" * 64])
files = st.dictionaries(text, mixed(size_bytes=st.integers(-1, 10), sha256=sha256), max_size=3)
time = st.sampled_from(
    ["2025-10-31T00:00:00Z", "2025-10-31", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", 0]
)
pointer = mixed(run_id=text, onnx_path=text, meta_path=text, metrics_path=text, published_at=time, files=files)
documents: dict[type[Document], st.SearchStrategy[dict[str, Any]]] = {
    Manifest: mixed(
        model_name=text,
        channel=text,
        sequence=st.integers(-1, 10),
        current=pointer,
        previous=st.lists(pointer, max_size=2),
    ),
    ModelMeta: mixed(
        model_name=text, run_id=text, files=files, trained_at=time, embedding_dim=st.integers(), mlflow=json_value
    ),
    Metrics: mixed(
        run_id=text, metrics=st.dictionaries(text, st.floats() | st.integers(), max_size=3), evaluated_at=time
    ),
}


def ours(call: Callable[[], object]) -> BridgeError | None:
    """The error of ours that a call ends with; any other one comes out, and fails the test."""
    failed: BridgeError | None = None
    try:
        call()
    except BridgeError as error:
        failed = error
    assert failed is None or len(str(failed)) <= MESSAGE_LIMIT
    return failed


@fuzzed()
@given(data=junk)
def test_any_bytes_are_a_json_object_or_an_error_of_ours(data: bytes) -> None:
    ours(lambda: parse_object(data, "x"))
    for kind in documents:
        ours(lambda kind=kind: kind.parse(data))  # type: ignore[misc]  # mypy cannot infer a lambda's default


PARSERS: dict[str, Callable[[bytes], object]] = {
    "object": lambda data: parse_object(data, "x"),
    **{kind.__name__: kind.parse for kind in documents},
    "requirements": lambda data: requirements(data, ()),
    "path": lambda data: reference_in_path(data.decode("latin-1")),
}


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("data", [*JUNK, b"[" + b"0," * 200_000 + b"0]", b'{"metrics": {' + b'"\\u0000": ' * 50_000])
def test_no_parser_takes_more_memory_than_the_size_of_its_input_allows(parser: str, data: bytes) -> None:
    """200 bytes for each byte: small objects in Python take dozens, and a message may quote what it is about."""
    ours(lambda: PARSERS[parser](data))  # What is made once is there.
    tracemalloc.start()
    try:
        ours(lambda: PARSERS[parser](data))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes <= 1_000_000 + 200 * len(data)


@fuzzed()
@given(value=json_value)
def test_any_json_is_read_and_written_back_or_an_error_of_ours(value: object) -> None:
    data = json.dumps(value, ensure_ascii=True).encode()
    if ours(lambda: parse_object(data, "x")) is None:
        found = parse_object(data, "x")
        assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("kind", documents, ids=lambda kind: kind.__name__)
@fuzzed()
@given(data=st.data())
def test_a_document_with_any_fields_is_refused_or_written_so_that_it_reads_back(
    kind: type[Document], data: st.DataObject
) -> None:
    value = data.draw(documents[kind])
    raw = json.dumps(value).encode()
    if ours(lambda: kind.parse(raw)) is not None:
        return
    document = kind.parse(raw)
    if ours(document.to_bytes) is None:
        again = document.to_bytes()
        assert len(again) <= LIMIT_BYTES
        assert kind.parse(again).to_bytes() == again
    if isinstance(document, Manifest):
        ours(lambda: check_paths(document, LATEST))


@fuzzed()
@given(
    given_meta=documents[ModelMeta], given_metrics=documents[Metrics], params=st.dictionaries(text, text, max_size=3)
)
def test_a_release_is_completed_from_any_documents_of_a_job_or_refused(
    given_meta: dict[str, Any], given_metrics: dict[str, Any], params: dict[str, str]
) -> None:
    facts = RunInfo(ended_at=FACTS.ended_at, params=params, tags=params)
    for value in (given_meta, given_metrics):
        if ours(lambda value=value: parse_object(json.dumps(value).encode(), "x")):  # type: ignore[misc]  # as above
            return
    ours(lambda: wanted_run_id(given_meta, facts))
    ours(lambda: complete_metrics(given_metrics, facts, run_id=KEYS.run_id, baseline=None).to_bytes())

    def complete() -> None:
        meta = complete_meta(given_meta, facts, paths=KEYS, origin=ORIGIN, release_notes="better")
        meta.to_bytes()
        assert (meta.model_name, meta.run_id, meta.files) == ("two_tower", "20251031T093831Z", {})

    ours(complete)


@fuzzed()
@given(name=text)
def test_any_text_as_a_name_is_one_segment_of_a_key_or_refused(name: str) -> None:
    checks: list[Callable[[str], object]] = [check_model_key, check_channel, RunId.parse]
    for check in checks:
        if ours(lambda check=check: check(name)) is None:  # type: ignore[misc]  # mypy cannot infer a lambda's default
            assert check_object_key(f"{name}/x").count("/") == 1
            assert name.isascii()


@fuzzed()
@given(path=st.one_of(text, st.lists(text, max_size=4).map("/".join), st.builds("{}@{}/{}".format, text, text, text)))
def test_any_path_behind_a_supabase_uri_leads_into_a_release_nowhere_or_is_refused(path: str) -> None:
    found: list[Any] = []
    if ours(lambda: found.append(reference_in_path(path))) is None and found[0] is not None:
        assert found[0][1] in path


yaml_text = st.one_of(
    st.builds(
        lambda value: yaml.safe_dump(value).encode("utf-8", "replace"),
        mixed(
            flavors=mixed(
                onnx=mixed(data=text, providers=json_value, onnx_session_options=json_value),
                python_function=mixed(loader_module=text, data=text, python_version=text),
            ),
            signature=mixed(inputs=text, outputs=text),
            utc_time_created=text,
        ),
    ),
    st.text(alphabet="&*!<>:-?[]{}'\"|%@ \nab01.,#", max_size=120).map(str.encode),
    st.lists(
        st.sampled_from(
            [
                "flavors: {onnx: {data: x}}",
                "a: &a {x: 1}",
                "b: {<<: *a}",
                "c: !!float ''",
                "d: !!bool x",
                "e: !!timestamp y",
                "? [x]",
                "f: *f",
                "g: !!binary =",
                "h: 0x",
                "i: 1:99",
                "j: !!set {a}",
                "k: !!omap [a]",
                "l: !!pairs [[1, 2, 3]]",
                "m: &m [*m]",
                "n: 9999-99-99",
                "o: !!int ''",
                "%YAML 3.0",
                "---",
                "...",
            ]
        ),
        max_size=5,
    )
    .map("\n".join)
    .map(str.encode),
    junk,
)


@fuzzed(deadline=timedelta(seconds=20))
@given(data=yaml_text)
@example(data=b"flavors: null")
def test_any_mlmodel_gives_model_files_without_anything_to_run_or_an_error_of_ours(data: bytes) -> None:
    found: list[dict[str, Any]] = []
    if ours(lambda: found.append(parse_mlmodel(data))) is not None:
        return
    made: list[dict[str, bytes]] = []
    empty = Structure(inputs=(), outputs=())
    environment = {"requirements.txt": data, "python_env.yaml": data}
    if ours(lambda: made.append(model_files(found[0], environment, empty, paths=KEYS, facts=FACTS))) is None:
        flavors = yaml.safe_load(made[0]["MLmodel"])["flavors"]
        assert set(flavors) == {"onnx", "python_function"}
        assert flavors["python_function"]["loader_module"] == "mlflow.onnx"


@fuzzed()
@given(
    data=st.one_of(
        junk,
        st.text(max_size=200).map(lambda value: value.encode("utf-8", "replace")),
        st.lists(
            st.sampled_from(
                [
                    "onnx",
                    "==1.0",
                    "--index-url x",
                    " ",
                    "\n",
                    "\r",
                    "\x0b",
                    "\\",
                    "#",
                    ";",
                    "@",
                    "numpy",
                    ">=1,<2",
                    "[x]",
                ]
            ),
            max_size=8,
        )
        .map("".join)
        .map(str.encode),
    )
)
def test_any_requirements_are_cut_down_to_names_and_versions(data: bytes) -> None:
    for line in requirements(data, []):
        assert not set(line) & set("@#;/\\[]'\"$`")
        assert not line.startswith("-")
        assert " -" not in line


def test_a_message_about_a_huge_document_stays_short() -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        Manifest.parse(json.dumps({"x" * 900_000: 1}).encode())
    assert len(str(caught.value)) <= MESSAGE_LIMIT
