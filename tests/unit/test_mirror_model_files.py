"""The mirror's own part in making a release an MLflow model."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
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
from supabase_bridge.errors import LocalFileError, ReleaseConflictError
from supabase_bridge.layout import ReleaseKeys, RunId
from supabase_bridge.mirror import Mirror
from supabase_bridge.model_file import ModelFile
from supabase_bridge.object_store import PutOptions
from supabase_bridge.object_store.digest import file_record
from supabase_bridge.onnx_file import read_graph
from supabase_bridge.registry import RegisteredVersion
from supabase_bridge.source import VersionSource
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


NOTHING: Any = None
"""Neither the registry nor the sources are asked for a draft, or before there is a place for one."""


def mirror_to(store: MemoryStore) -> Mirror:
    checks = Checks(timeout=timedelta(minutes=1), memory_bytes=10**9)
    return Mirror(NOTHING, NOTHING, store, baseline_channel="latest", checks=checks)


def upload(store: MemoryStore, draft: Draft) -> None:
    mirror_to(store)._upload(draft, KEYS, FACTS, Origin(registered_model="two_tower", version=1), None)


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


@pytest.mark.parametrize("below", ["absent", "file/below"])
def test_a_machine_without_room_for_the_files_is_named(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "file").touch()
    version = RegisteredVersion(
        workspace="default",
        model="two_tower",
        version=1,
        stage="None",
        aliases=frozenset(),
        tags={},
        run_id=None,
        description="",
        created_at=FACTS.ended_at,
    )
    source = VersionSource(model_folder=NOTHING, run_folder=None, facts=FACTS, running=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / below))
    with pytest.raises(LocalFileError, match=f"{tmp_path / below}.*director"):
        mirror_to(store).run(version, model_key="two_tower", source=source)
