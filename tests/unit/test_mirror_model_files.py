"""The mirror's own part in making a release an MLflow model."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from supabase_bridge.activate import verify_release
from supabase_bridge.checks import Checks
from supabase_bridge.completion import TrainingFacts
from supabase_bridge.documents import Origin
from supabase_bridge.draft import Draft
from supabase_bridge.errors import ReleaseConflictError
from supabase_bridge.layout import ReleaseKeys, RunId
from supabase_bridge.mirror import Mirror
from supabase_bridge.model_file import ModelFile
from supabase_bridge.object_store import PutOptions
from supabase_bridge.object_store.digest import file_record
from supabase_bridge.onnx_file import read_graph
from tests.simulators.memory_store import MemoryStore

KEYS = ReleaseKeys(model_key="two_tower", run_id=RunId.parse("20251031T093831Z"))
FACTS = TrainingFacts(ended_at=datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc))
NAMES = ["MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"]


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    made.ensure_bucket()
    return made


def draft_in(directory: Path) -> Draft:
    """A release of one small ONNX file, drafted."""
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in ("given", "made")]
    graph = helper.make_graph([helper.make_node("Relu", ["given"], ["made"])], "graph", rows[:1], rows[1:])
    path = directory / "model.onnx"
    onnx.save(helper.make_model(graph), path)
    return Draft(
        onnx=ModelFile(record=file_record(path), path=path),
        tensors=read_graph(path).tensors,
        state_dict=None,
        meta={},
        metrics={},
        summary=None,
        mlmodel={},
        environment={},
    )


@pytest.fixture
def draft(tmp_path: Path) -> Draft:
    return draft_in(tmp_path)


def upload(store: MemoryStore, draft: Draft) -> None:
    nothing: Any = None  # Neither the registry nor the sources are asked when a draft is uploaded.
    checks = Checks(timeout=timedelta(minutes=1), memory_bytes=10**9)
    mirror = Mirror(nothing, nothing, store, baseline_channel="latest", checks=checks)
    mirror._upload(draft, KEYS, FACTS, Origin(registered_model="two_tower", version=1), None)


def test_the_files_are_recorded_before_the_release_is_complete(store: MemoryStore, draft: Draft) -> None:
    upload(store, draft)
    files = verify_release(store, KEYS).files
    assert set(NAMES) < set(files)
    for name in NAMES:
        found = store.read(KEYS.file(name), limit_bytes=10_000)
        assert files[name].sha256 == hashlib.sha256(found).hexdigest()


def test_what_an_earlier_attempt_made_elsewhere_stays_and_is_what_is_recorded(store: MemoryStore, draft: Draft) -> None:
    elsewhere = dataclasses.replace(draft, environment={"requirements.txt": b"onnxruntime==1.0"})
    upload(store, elsewhere)
    before = {name: store.read(KEYS.file(name), limit_bytes=10_000) for name in NAMES}
    store.delete([KEYS.meta])
    upload(store, draft)
    assert {name: store.read(KEYS.file(name), limit_bytes=10_000) for name in NAMES} == before
    verify_release(store, KEYS)


def test_an_mlmodel_of_something_else_in_its_place_is_a_conflict(store: MemoryStore, draft: Draft) -> None:
    store.create(KEYS.file("MLmodel"), b"flavors: {onnx: {data: other.onnx}}", PutOptions())
    with pytest.raises(ReleaseConflictError):
        upload(store, draft)
