"""A trainer logs weights that run code when they are loaded, and promotes the version; a real worker handles it."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from supabase_bridge.core.events import EventState
from tests.support.scene import MLMODEL, MODEL, Scene, tiny_onnx
from tests.support.torch_save import torch_save, zip_archive

pytestmark = pytest.mark.exhaustive

PYTORCH = b"flavors:\n  pytorch:\n    model_data: data\n  onnx:\n    data: model.onnx\n"


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._proof),)


def two_directories(evil: bytes) -> bytes:
    """An archive whose end names one directory, and lies behind another one.

    Python's zipfile takes the directory right before the end, and moves every offset accordingly; PyTorch's reader
    takes the one that the end names.
    """
    first, second = (zip_archive({"archive/data.pkl": data}) for data in (evil, pickle.dumps({}, protocol=2)))
    begins = [struct.unpack_from("<L", data, len(data) - 6)[0] for data in (first, second)]
    directories = [data[begin:-22] for data, begin in zip((first, second), begins, strict=True)]
    harmless = bytearray(directories[1])
    struct.pack_into("<L", harmless, 42, begins[0] - begins[1])
    end = bytearray(second[-22:])
    struct.pack_into("<L", end, 16, begins[0])
    return first[: begins[0]] + directories[0] + second[: begins[1]] + bytes(harmless) + bytes(end)


def test_the_archive_with_two_directories_is_one_that_pythons_reader_finds_harmless() -> None:
    with zipfile.ZipFile(io.BytesIO(two_directories(b"evil" * 50))) as found:
        assert found.read("archive/data.pkl") == pickle.dumps({}, protocol=2)


PLACES: Mapping[str, Callable[[bytes], dict[str, bytes]]] = {
    "a bare pickle": lambda evil: {"two_tower_latest.pt": evil},
    "torch.save": lambda evil: {"two_tower_latest.pt": torch_save(evil)},
    "an archive in an archive": lambda evil: {
        "two_tower_latest.pt2": zip_archive({"m/data/sample_inputs/model.pt": torch_save(evil), "m/x.json": b"{}"})
    },
    "an archive in an archive in an archive": lambda evil: {
        "two_tower_latest.pt": zip_archive(
            {"archive/data.pkl": pickle.dumps({}, protocol=2), "archive/x": zip_archive({"y": torch_save(evil)})}
        )
    },
    "behind a state_dict": lambda evil: {"two_tower_latest.pt": pickle.dumps({"a": 1}, protocol=2) + evil},
    "after the archive": lambda evil: {"two_tower_latest.pt": torch_save(pickle.dumps({}, protocol=2)) + evil},
    "before the archive": lambda evil: {"two_tower_latest.pt": evil + torch_save(pickle.dumps({}, protocol=2))},
    "a second pickle": lambda evil: {
        "two_tower_latest.pt": zip_archive({"archive/data.pkl": pickle.dumps({}, protocol=2), "archive/more.PKL": evil})
    },
    "an archive with two directories": lambda evil: {"two_tower_latest.pt": two_directories(evil)},
    "mlflow.pytorch": lambda evil: {"model/MLmodel": PYTORCH, "model/data/model.pth": torch_save(evil)},
}


def tar_as_well(evil: bytes) -> bytes:
    """A pickle of one string that is a tar archive as well, of the kind that torch.load unpickles before all else."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(evil)
            tar.addfile(entry, io.BytesIO(evil))
    # The first member's name may be anything: torch.load looks for the others by theirs.
    first = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    rest = first[100:] + made.getvalue()
    begin = b"\x80\x04B" + struct.pack("<L", 100 - 7 + len(rest))
    data = bytearray(begin.ljust(100, b"\0") + rest)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data) + b"."


def test_the_tar_archive_is_a_pickle_of_one_harmless_string() -> None:
    data = tar_as_well(b"evil")
    assert isinstance(pickle.loads(data), bytes)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        assert tar.getnames()[1:] == ["storages", "tensors", "pickle"]


def exported(**members: bytes) -> dict[str, bytes]:
    written = {"archive_format": b"pt2", "archive_version": b"0", "data/weights/weight_0": b"\0" * 8}
    return {"two_tower_latest.pt2": zip_archive({f"m/{name}": data for name, data in {**written, **members}.items()})}


def described(**files: bool) -> bytes:
    payloads = {file: {"path_name": file, "use_pickle": use_pickle} for file, use_pickle in files.items()}
    return json.dumps({"config": payloads}).encode()


EXPORTED: Mapping[str, Callable[[bytes], dict[str, bytes]]] = {
    "a state_dict of an older PyTorch": lambda evil: {
        "two_tower_latest.pt2": zip_archive({"serialized_state_dict.pt": evil, "version": b"8.2"})
    },
    "sample inputs": lambda evil: exported(
        **{"data/sample_inputs/model.pt": evil, "data/weights/model_weights_config.json": described(weight_0=False)}
    ),
    "an opaque object": lambda evil: exported(
        **{"data/constants/opaque_obj_0": evil, "data/weights/model_weights_config.json": described(weight_0=False)}
    ),
    "a weight that its description has unpickled": lambda evil: exported(
        **{"data/weights/weight_0": evil, "data/weights/model_weights_config.json": described(weight_0=True)}
    ),
    "an archive behind a pickle": lambda evil: {
        "two_tower_latest.pt2": pickle.dumps(zip_archive({"serialized_state_dict.pt": evil}), protocol=4)
    },
}


def is_refused(scene: Scene, files: Mapping[str, bytes], proof: Path, place: str) -> None:
    """Promote a version with such files: nothing runs, the weights are not released, and its tags say why."""
    version = scene.train(files={"model/MLmodel": MLMODEL, "model/model.onnx": tiny_onnx(), **files})
    scene.promote(version)
    handled = scene.work()
    assert not proof.exists(), place
    tags = scene.tags(version)
    assert not [key for key in scene.objects() if key.endswith((".pt", ".pth", ".pt2"))], place
    if {item.state for item in handled} == {EventState.DONE}:
        # A file of another form than torch.save's is left out of the release.
        assert "the PyTorch file is left out: " in tags["note"], place
        return
    assert {item.state for item in handled} == {EventState.DEAD}, place
    assert (tags["status"], tags["error"]) == ("rejected", handled[-1].outcome), place


def test_an_exported_program_that_runs_code_when_it_is_loaded_never_reaches_a_release(
    directory_scene: Scene, tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    evil = pickle.dumps({"weights": Payload(proof)}, protocol=2)
    for place, put in EXPORTED.items():
        is_refused(directory_scene, put(evil), proof, place)


def test_an_exported_program_with_python_in_a_size_never_reaches_a_release(
    directory_scene: Scene, tmp_path: Path
) -> None:
    program = json.dumps({"expr_str": f"__import__('os').mkdir('{tmp_path / 'proof'}')"}).encode()
    files = exported(
        **{"models/model.json": program, "data/weights/model_weights_config.json": described(weight_0=False)}
    )
    is_refused(directory_scene, files, tmp_path / "proof", "size")


def test_a_pickle_that_is_also_a_tar_archive_never_reaches_a_release(directory_scene: Scene, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    evil = pickle.dumps({"weights": Payload(proof)}, protocol=2)
    is_refused(directory_scene, {"two_tower_latest.pt": tar_as_well(evil)}, proof, "tar")


def test_weights_that_run_code_never_reach_a_release_and_never_run(directory_scene: Scene, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    evil = pickle.dumps({"weights": Payload(proof)}, protocol=2)
    for place, put in PLACES.items():
        is_refused(directory_scene, put(evil), proof, place)
    pickle.loads(evil)
    assert proof.exists()


def test_pickles_beside_the_weights_are_left_behind(directory_scene: Scene, tmp_path: Path) -> None:
    """mlflow.pytorch names a module to unpickle with; a Python model has its own. Neither is part of a release."""
    evil = pickle.dumps(Payload(tmp_path / "proof"))
    beside = ("model/python_model.pkl", "model/data/pickle_module_info.txt", "model/code/evil.pkl", "evil.joblib")
    files = {"model/MLmodel": PYTORCH, "model/model.onnx": tiny_onnx(), **dict.fromkeys(beside, evil)}
    directory_scene.promote(directory_scene.train(files=files))
    assert directory_scene.work()[-1].state is EventState.DONE
    assert not (tmp_path / "proof").exists()
    head = directory_scene.head()
    assert head is not None
    assert not [name for name in head.current.files if name.endswith((".pkl", ".txt.", ".joblib", ".pt"))]
    assert not [key for key, data in directory_scene.objects(MODEL).items() if b"proof" in data]
