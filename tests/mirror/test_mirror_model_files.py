"""The mirror's own part in making a release an MLflow model."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NoReturn

import onnx
import pytest
from onnx import TensorProto, helper

from supabase_bridge.core.documents import Origin
from supabase_bridge.core.errors import LocalFileError
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.mirror.assemble import AssembledRelease
from supabase_bridge.mirror.checks.sandbox import Checks
from supabase_bridge.mirror.errors import CheckInterruptedError, ModelRejectedError
from supabase_bridge.mirror.job import Mirror
from supabase_bridge.mirror.metadata import RunInfo
from supabase_bridge.mirror.onnx_file import read_structure
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.mirror.sources import VersionSource
from supabase_bridge.registry.client import RegisteredVersion
from supabase_bridge.releases.errors import ReleaseTakenError
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.hashing import hash_file
from tests.support.simulators.memory_store import MemoryStore

KEYS = ReleasePaths(model_key="two_tower", run_id=RunId.parse("20251031T093831Z"))
FACTS = RunInfo(ended_at=datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc))
NAMES = ["MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"]


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    made.ensure_bucket()
    return made


def draft_in(directory: Path) -> AssembledRelease:
    """A release of one small ONNX file, drafted."""
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in ("given", "made")]
    graph = helper.make_graph([helper.make_node("Relu", ["given"], ["made"])], "graph", rows[:1], rows[1:])
    path = directory / "model.onnx"
    onnx.save(helper.make_model(graph), path)
    return AssembledRelease(
        onnx=ModelFile(record=hash_file(path), path=path),
        structure=read_structure(path),
        state_dict=None,
        meta={},
        metrics={},
        summary=None,
        mlmodel={},
        environment={},
    )


@pytest.fixture
def draft(tmp_path: Path) -> AssembledRelease:
    return draft_in(tmp_path)


NOTHING: Any = None
"""Neither the registry nor the sources are asked for a draft, or before there is a place for one."""


class InterruptedChecks(Checks):
    """Checks that another process stops."""

    def onnx(self, *_: Any, **__: Any) -> NoReturn:
        raise CheckInterruptedError("model.onnx")


CHECKS = Checks(timeout=timedelta(minutes=1), memory_bytes=10**9)


def mirror_to(store: MemoryStore, checks: Checks = CHECKS) -> Mirror:
    return Mirror(NOTHING, NOTHING, store, baseline_channel="latest", checks=checks)


def upload(store: MemoryStore, draft: AssembledRelease, checks: Checks = CHECKS) -> None:
    mirror_to(store, checks).put_release(draft, KEYS, FACTS, Origin(registered_model="two_tower", version=1))


def test_the_files_are_recorded_before_the_release_is_complete(store: MemoryStore, draft: AssembledRelease) -> None:
    upload(store, draft)
    files = verify_release(store, KEYS).files
    assert set(NAMES) < set(files)
    for name in NAMES:
        found = store.read(KEYS.file(name), limit_bytes=10_000)
        assert files[name].sha256 == hashlib.sha256(found).hexdigest()


def test_an_attempt_with_other_files_leaves_the_folder_of_an_earlier_one_as_it_is(
    store: MemoryStore, draft: AssembledRelease
) -> None:
    upload(store, dataclasses.replace(draft, environment={"requirements.txt": b"onnxruntime==1.0"}))
    store.delete([KEYS.meta])
    before = {info.key: store.read(info.key, limit_bytes=10**6) for info in store.list(KEYS.prefix)}
    with pytest.raises(ReleaseTakenError, match="other bytes"):
        upload(store, draft)
    assert {info.key: store.read(info.key, limit_bytes=10**6) for info in store.list(KEYS.prefix)} == before


@pytest.mark.parametrize("data", [b"flavors: {onnx: {data: other.onnx}}", b""])
def test_a_folder_that_holds_other_bytes_is_not_filled(
    store: MemoryStore, draft: AssembledRelease, data: bytes
) -> None:
    store.create(KEYS.file("MLmodel"), data, PutOptions())
    with pytest.raises(ReleaseTakenError, match="MLmodel has other bytes"):
        upload(store, draft)
    assert [info.key for info in store.list(KEYS.prefix)] == [KEYS.file("MLmodel")]


def test_the_files_of_a_rejected_version_are_deleted_and_its_folder_is_never_filled_again(
    store: MemoryStore, draft: AssembledRelease
) -> None:
    broken = dataclasses.replace(draft, meta={"embedding_dim": 3, "user_feature_dim": 7, "item_feature_dim": 7})
    inputs = helper.make_tensor_value_info("user_features", TensorProto.FLOAT, ["rows", 2])
    output = helper.make_tensor_value_info("user_embedding", TensorProto.FLOAT, ["rows", 2])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["user_features"], ["user_embedding"])], "graph", [inputs], [output]
    )
    onnx.save(helper.make_model(graph), draft.onnx.local)
    record = hash_file(draft.onnx.local)
    broken = dataclasses.replace(broken, onnx=ModelFile(record=record, path=draft.onnx.local))
    for error in (ModelRejectedError, ReleaseTakenError):
        with pytest.raises(error):
            upload(store, broken)
        assert [info.key for info in store.list(KEYS.prefix)] == []


def test_a_check_that_is_cut_off_leaves_what_the_next_attempt_finishes(
    store: MemoryStore, draft: AssembledRelease
) -> None:
    with pytest.raises(CheckInterruptedError):
        upload(store, draft, InterruptedChecks(timeout=timedelta(minutes=1), memory_bytes=10**9))
    assert KEYS.onnx in [info.key for info in store.list(KEYS.prefix)]
    upload(store, draft)
    verify_release(store, KEYS)


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
