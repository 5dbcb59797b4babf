"""Make the MLflow model files of a release: keep safe fields of the version's own files, and generate the others."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML has no annotations
from mlflow.models import Model

from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.mirror.metadata import RunInfo
from supabase_bridge.mirror.mlmodel import model_files, parse_mlmodel
from supabase_bridge.mirror.onnx_file import Structure, Tensor

KEYS = ReleasePaths(model_key="two_tower", run_id=RunId.parse("20251031T093831Z"))
FACTS = RunInfo(ended_at=datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc), mlflow_run_id="0af7")
NAMES = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}


def rows(name: str, kind: str = "float32") -> Tensor:
    return Tensor(name=name, dtype=kind, shape=(-1, 4))


TWO = Structure(inputs=(rows("user"), rows("item")), outputs=(rows("score"),))
OWN: dict[str, Any] = {
    "artifact_path": "model",
    "flavors": {
        "onnx": {
            "code": "code",
            "data": "model.onnx",
            "onnx_version": "1.17.0",
            "providers": ["CUDAExecutionProvider"],
        },
        "python_function": {
            "code": "code",
            "data": "model.onnx",
            "env": {"conda": "c.yaml", "virtualenv": "v.yaml"},
            "loader_module": "mlflow.onnx",
            "python_version": "3.9.1",
        },
        "custom": {"data": "x"},
    },
    "model_id": "m-1",
    "model_size_bytes": 7,
    "model_uuid": "u1",
    "run_id": "r1",
    "saved_input_example_info": {"artifact_path": "input_example.json"},
    "signature": {"inputs": '[{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]', "outputs": None},
    "utc_time_created": "2025-10-31 09:38:31",
}


def made(
    own: dict[str, Any], tensors: Structure = TWO, environment: Mapping[str, bytes] = MappingProxyType({})
) -> dict[str, bytes]:
    return model_files(own, environment, tensors, paths=KEYS, facts=FACTS)


def mlmodel(files: dict[str, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(files["MLmodel"])
    return found


def test_of_its_own_mlmodel_everything_is_kept_but_paths_and_what_a_release_does_not_have() -> None:
    found = mlmodel(made(OWN))
    assert found["flavors"] == {
        "onnx": {
            "code": None,
            "data": KEYS.onnx_name,
            "onnx_version": "1.17.0",
            "providers": ["CUDAExecutionProvider"],
        },
        "python_function": {
            "data": KEYS.onnx_name,
            "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
            "loader_module": "mlflow.onnx",
            "python_version": "3.9.1",
        },
    }
    same = ("artifact_path", "model_uuid", "run_id", "signature", "utc_time_created")
    assert {name: found[name] for name in same} == {name: OWN[name] for name in same}
    assert set(found) == {*same, "flavors"}


def test_of_its_own_environment_the_versions_of_python_and_of_what_runs_onnx_are_kept() -> None:
    own = {
        "conda.yaml": b"name: own\nchannels: [theirs]\n",
        "python_env.yaml": b"python: 3.9.1\nbuild_dependencies:\n- pip==23.0\n",
        "requirements.txt": b"mlflow==2.22.0\nOnnxRuntime >=1.17, <2\nnumpy~=1.26\ntheirs==1.0\nonnx==1.17.0",
    }
    found = made(OWN, environment=own)
    lines = ["mlflow==2.22.0", "OnnxRuntime >=1.17, <2", "onnx==1.17.0"]
    assert found["requirements.txt"].decode().splitlines() == lines
    assert yaml.safe_load(found["conda.yaml"])["dependencies"] == ["python=3.9.1", "pip", {"pip": lines}]
    assert yaml.safe_load(found["python_env.yaml"]) == {
        "python": "3.9.1",
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }


def test_requirements_that_name_no_runtime_get_one() -> None:
    lines = made(OWN, environment={"requirements.txt": b"onnx==1.17.0\n"})["requirements.txt"].decode().splitlines()
    assert lines[0] == "onnx==1.17.0"
    assert sorted(line.partition("==")[0] for line in lines) == ["mlflow", "onnx", "onnxruntime"]


def test_session_options_that_are_numbers_or_words_are_kept() -> None:
    options = {"inter_op_num_threads": 2, "execution_mode": "parallel", "graph_optimization_level": 99}
    onnx_flavor = {**OWN["flavors"]["onnx"], "onnx_session_options": options}
    found = mlmodel(made({**OWN, "flavors": {**OWN["flavors"], "onnx": onnx_flavor}}))
    assert found["flavors"]["onnx"]["onnx_session_options"] == options


@pytest.mark.parametrize("own", [{}, {"flavors": {"pytorch": {"model_data": "data"}}, "run_id": "r1"}])
def test_a_bare_onnx_file_gets_a_model_that_mlflow_reads(own: dict[str, Any]) -> None:
    found = made(own)
    assert set(found) == NAMES
    model = Model.from_dict(mlmodel(found))
    assert set(model.flavors) == {"onnx", "python_function"}
    assert model.run_id == FACTS.mlflow_run_id
    assert [spec.name for spec in model.signature.inputs] == ["user", "item"]
    requirements = found["requirements.txt"].decode().splitlines()
    assert [line.partition("==")[0] for line in requirements] == ["mlflow", "onnx", "onnxruntime"]
    assert yaml.safe_load(found["conda.yaml"])["dependencies"][-1] == {"pip": requirements}
    assert yaml.safe_load(found["python_env.yaml"])["dependencies"] == ["-r requirements.txt"]


def test_another_flavors_environment_is_not_taken_for_that_of_onnx() -> None:
    found = made({"flavors": {"pytorch": {}}}, environment={"requirements.txt": b"torch==2.0"})
    assert b"torch" not in found["requirements.txt"]
    found = made({}, environment={"requirements.txt": b"# ours\nonnxruntime-gpu\n"})
    assert yaml.safe_load(found["conda.yaml"])["dependencies"][-1] == {"pip": ["onnxruntime-gpu"]}


def test_code_of_the_training_is_never_loaded() -> None:
    evil = {"onnx": {"data": "m.onnx"}, "python_function": {"loader_module": "evil", "code": "code", "data": "x"}}
    found = mlmodel(made({"flavors": evil}))
    assert found["flavors"]["python_function"]["loader_module"] == "mlflow.onnx"
    assert "code" not in found["flavors"]["python_function"]


@pytest.mark.parametrize("own", [{}, OWN])
def test_equal_versions_give_equal_bytes(own: dict[str, Any]) -> None:
    assert made(own) == made(dict(reversed(own.items())))


def test_the_graph_gives_the_signature_that_a_version_does_not_have() -> None:
    one = Structure(inputs=(rows("only", "int64"),), outputs=(rows("score"), rows("other")))
    signature = Model.from_dict(mlmodel(made({}, one))).signature
    assert [(spec.name, str(spec.type)) for spec in signature.inputs] == [(None, "int64")]
    assert [spec.name for spec in signature.outputs] == ["score", "other"]
    for strange in (None, "object"):
        tensors = Structure(inputs=(Tensor(name="text", dtype=strange, shape=(-1,)),), outputs=())
        assert "signature" not in mlmodel(made({}, tensors))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\tno: yaml", b"flavors: []", b"flavors: {onnx: 1}", b"!!python/object/apply:os.getcwd []"]
)
def test_what_is_no_mlmodel_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidDocumentError, match="MLmodel"):
        parse_mlmodel(data)


def test_both_flavors_of_an_mlmodel_name_the_onnx_file() -> None:
    data = made(OWN)["MLmodel"]
    flavors = parse_mlmodel(data)["flavors"]
    assert [flavors[name]["data"] for name in ("onnx", "python_function")] == [KEYS.onnx_name, KEYS.onnx_name]
