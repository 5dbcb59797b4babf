"""PyTorch files: a state_dict of torch.save passes, every other file is refused, and none is ever loaded."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supabase_bridge.demo.model import Hyperparameters, generate_interactions, train
from supabase_bridge.demo.training import write_state_dict
from supabase_bridge.mirror.checks.pickle import GLOBALS_FILE, TooFewBytesError, check_state_dict
from supabase_bridge.mirror.errors import Fault, ModelRejectedError
from supabase_bridge.mirror.source_files import FileEnds
from tests.mirror.torch_globals import FILES, missing
from tests.support.torch_save import torch_save, zip_archive

MAGIC = 0x1950A86A20F9469CFC6C
PLAIN = pickle.dumps(OrderedDict(weights=1.0), protocol=2)


class Call:
    """Calls something when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self._call


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """A file that a payload writes when it is run."""
    return tmp_path / "proof"


def accepted(data: bytes, *, name: str = "m.pt", allowed: tuple[str, ...] = ()) -> None:
    check_state_dict(FileEnds(size_bytes=len(data), head=data, tail=b""), name, allowed=allowed)


def refused(data: bytes, *, name: str = "m.pt", allowed: tuple[str, ...] = ()) -> str:
    with pytest.raises(ModelRejectedError) as caught:
        accepted(data, name=name, allowed=allowed)
    assert caught.value.fault in {Fault.UNSAFE, Fault.OTHER_FORM}
    assert "Save torch.save(model.state_dict(), path) instead" in caught.value.problem
    return caught.value.problem


def large_end(data: bytes, *, move: int = 0, place: int = 0) -> bytes:
    """The same archive with a zip64 end as well, which PyTorch writes always; off by so much, where given."""
    size, begin = struct.unpack_from("<LL", data, len(data) - 10)
    end = len(data) - 22
    large = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, begin + move)
    return data[:end] + large + struct.pack("<4sLQL", b"PK\x06\x07", 0, end + place, 1) + data[end:]


def legacy(pickled: bytes) -> bytes:
    """Return the bytes that torch.save wrote before 1.6: five pickles, then the storages' bytes."""
    small = [pickle.dumps(item, protocol=2) for item in (MAGIC, 1001, {"little_endian": True})]
    return b"".join([*small, pickled, pickle.dumps(["0"], protocol=2)]) + struct.pack("<Q", 2) + b"\x80\x02c\xff"


def tarred(header: bytes = b"") -> bytes:
    """A legacy file, or a pickle, that begins as a tar archive does: its first string holds the rest of the header."""
    data = bytearray((header + b"\x80\x04B" + struct.pack("<L", 1_000)).ljust(1_024, b"\0"))
    for at, size in ((100, 8), (108, 8), (116, 8), (124, 12), (136, 12)):
        data[at : at + size] = b"0" * (size - 1) + b"\0"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data[: len(header) + 7 + 1_000]) + b"."


def exported(**members: bytes) -> bytes:
    """Return what torch.export.save of PyTorch 2.13 writes for a small module, with other members where given."""
    written = {
        "data/weights/weight_0": b"\x80\x02cposix\nsystem\n",
        "data/weights/model_weights_config.json": b"{}",
        "models/model.json": json.dumps({"target": "torch.ops.aten.linear.default"}).encode(),
        "data/sample_inputs/model.pt": torch_save(PLAIN),
        "archive_format": b"pt2",
        "archive_version": b"0",
    }
    return zip_archive({f"m/{name}": data for name, data in {**written, **members}.items()})


def before_2_8(**members: bytes) -> bytes:
    """Return the archive that torch.export.save wrote before PyTorch 2.8."""
    written = {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": torch_save(PLAIN)}
    return zip_archive({**written, **members})


def scripted() -> bytes:
    """Return the archive that torch.jit.save writes: TorchScript."""
    return zip_archive({"m/data.pkl": PLAIN, "m/code/__torch__.py": b"class M: pass", "m/constants.pkl": PLAIN})


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(FILES.glob("*.pt")), ids=lambda path: path.stem)
def test_what_pytorch_itself_wrote_passes(path: Path) -> None:
    accepted(path.read_bytes(), name=path.name)


def test_there_are_files_of_pytorch_with_quantised_float8_meta_and_sparse_tensors() -> None:
    kinds = {path.stem for path in FILES.glob("*.pt")}
    assert kinds >= {"linear", "per_tensor_affine", "per_channel_affine", "float8", "meta", "sparse", "subclass"}


def test_the_list_of_imports_is_that_of_pytorchs_restricted_reader() -> None:
    """The list was generated from PyTorch; `python -m tests.mirror.torch_globals --check` compares it with another."""
    record = json.loads(GLOBALS_FILE.read_text())
    assert record["torch"]
    assert missing(record["globals"], {"torch": ["qint8", "per_tensor_affine", "float8_e4m3fn"]}) == []
    assert missing(record["globals"], {"torch": ["hub"], "os": ["system"]}) == ["torch.hub", "os.system"]
    assert set(record["globals"]["builtins"]) == {"bytearray", "complex", "set"}


@pytest.mark.parametrize("data", [torch_save(PLAIN, [b"\x80\x02c"]), large_end(torch_save(PLAIN))])
def test_a_state_dict_as_torch_save_lays_it_out_passes(data: bytes) -> None:
    accepted(data)


def test_what_the_demonstration_writes_passes(tmp_path: Path) -> None:
    data = generate_interactions(np.random.default_rng(1), users=9, items=9, tag_vocab_size=5, performer_vocab_size=3)
    small = Hyperparameters(
        embedding_dim=2, hidden_dim=3, epochs=1, learning_rate=0.01, batch_size=16, use_price_feature=False, seed=7
    )
    write_state_dict(tmp_path / "m.pt", train(data, small))
    accepted((tmp_path / "m.pt").read_bytes())


def test_the_tensors_of_a_state_dict_are_bytes_whatever_they_hold() -> None:
    accepted(torch_save(PLAIN, [b"cposix\nsystem\n(S'x'\ntR.", torch_save(pickle.dumps(Call(os.system, "x")))]))


def test_the_ends_of_a_file_suffice_and_too_short_ends_are_told() -> None:
    data = torch_save(PLAIN, [b"\0" * 10_000])
    for head, tail in ((1_000, 1_000), (len(data), 0)):
        ends = FileEnds(size_bytes=len(data), head=data[:head], tail=data[len(data) - tail :])
        check_state_dict(ends, "m.pt", allowed=())
    for head, tail in ((60, 1_000), (1_000, 60)):
        ends = FileEnds(size_bytes=len(data), head=data[:head], tail=data[-tail:])
        with pytest.raises(TooFewBytesError):
            check_state_dict(ends, "m.pt", allowed=())


# --- other forms ------------------------------------------------------------------------------------------------------

OTHER_FORMS: Mapping[str, bytes] = {
    "a bare pickle": PLAIN,
    "torch.save before 1.6": legacy(PLAIN),
    "torch.export": exported(),
    "torch.export before 2.8": before_2_8(),
    "TorchScript": scripted(),
    "compressed": zip_archive({"archive/data.pkl": PLAIN}, compressed=True),
    "a second pickle": zip_archive({"archive/data.pkl": PLAIN, "archive/more.PKL": PLAIN}),
    "capitals": zip_archive({"archive/DATA.PKL": PLAIN}),
    "two folders": zip_archive({"archive/data.pkl": PLAIN, "other/data/0": b""}),
    "the pickle last": zip_archive({"archive/data/0": b"", "archive/data.pkl": PLAIN}),
    "an archive in an archive": zip_archive({"archive/data.pkl": PLAIN, "archive/x.pt": torch_save(PLAIN)}),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_file_of_another_form_is_refused_with_what_to_save_instead(form: str) -> None:
    refused(OTHER_FORMS[form])
    refused(OTHER_FORMS[form], name="m.pt2", allowed=("collections.*",))


SHAPES: Mapping[str, Callable[[bytes], bytes]] = {
    "torch.save": torch_save,
    "with a zip64 end": lambda pickled: large_end(torch_save(pickled)),
    "compressed": lambda pickled: zip_archive({"archive/data.pkl": pickled}, compressed=True),
    "before 1.6": legacy,
    "pickle": lambda pickled: pickled,
    "torch.export": lambda pickled: exported(**{"data/sample_inputs/model.pt": torch_save(pickled)}),
    "an older torch.export": lambda pickled: before_2_8(**{"serialized_state_dict.pt": pickled}),
    "capitals": lambda pickled: zip_archive({"archive/DATA.PKL": pickled}),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("shape", SHAPES)
def test_a_payload_is_refused_in_every_form_and_never_run(proof: Path, shape: str, protocol: int) -> None:
    data = SHAPES[shape](pickle.dumps({"weights": Call(os.system, f"touch {proof}")}, protocol=protocol))
    said = refused(data)
    if shape in {"torch.save", "with a zip64 end"}:
        assert "loading it would import 'posix.system'" in said
    assert not proof.exists()


@pytest.mark.parametrize(
    "member", ["serialized_state_dict.pt", "serialized_constants.pt", "serialized_state_dict.json"]
)
@pytest.mark.parametrize("form", ["bare", "legacy"])
def test_a_bare_pickle_is_refused_wherever_a_reader_would_unpickle_it(proof: Path, form: str, member: str) -> None:
    evil = pickle.dumps(Call(os.system, f"touch {proof}"))
    evil = legacy(evil) if form == "legacy" else evil
    for data in (before_2_8(**{member: evil}), exported(**{"data/weights/weight_0": evil}), evil):
        refused(data, name="m.pt2")
    assert not proof.exists()


@pytest.mark.parametrize("config", [b"", b"[]", b'{"config": {"a": {"path_name": "a", "use_pickle": true}}}'])
def test_weights_whose_description_is_open_to_two_readings_are_refused(config: bytes) -> None:
    refused(exported(**{"data/weights/model_weights_config.json": config}), name="m.pt2")


@pytest.mark.parametrize("part", [{"expr_str": "__import__('os').system('x')"}, {"guards_code": ["L.__class__"]}])
def test_a_program_that_smuggles_python_into_what_is_evaluated_is_refused(part: dict[str, object]) -> None:
    data = json.dumps(part).encode()
    for made in (exported(**{"models/model.json": data}), before_2_8(**{"serialized_exported_program.json": data})):
        refused(made, name="m.pt2")


def test_a_compiled_model_is_refused_with_its_sources() -> None:
    for member in ("data/aotinductor/model/wrapper.cpp", "data/aotinductor/model.so"):
        refused(exported(**{member: b"int main;"}), name="m.pt2")
        refused(zip_archive({"m/data.pkl": PLAIN, f"m/{member}": b"int main;"}))


def test_a_pickle_that_is_a_tar_archive_as_well_is_refused() -> None:
    first = pickle.dumps(MAGIC, protocol=2)
    for data in (tarred(), tarred(first)):
        assert pickle.loads(data) in (MAGIC, data[7:-1])
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:"):
            refused(data)


def test_an_archive_behind_a_pickle_is_refused_since_other_readers_begin_at_the_end(proof: Path) -> None:
    evil = before_2_8(**{"serialized_state_dict.pt": pickle.dumps(Call(os.system, f"touch {proof}"))})
    for data in (legacy(PLAIN) + evil, pickle.dumps(evil, protocol=4), PLAIN + torch_save(PLAIN)):
        with zipfile.ZipFile(io.BytesIO(data)) as found:
            assert found.namelist()
        refused(data)


# --- imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (eval, ".eval"),
        (exec, ".exec"),
        (getattr, ".getattr"),
        (__import__, ".__import__"),
        (subprocess.Popen, "subprocess.Popen"),
        (Path.write_text, "Path.write_text"),
        (zipfile.ZipFile, "zipfile.ZipFile"),
        (os.path.join, "posixpath.join"),
        (pickle.loads, "_pickle.loads"),
        (np.dtype, "numpy.dtype"),
    ],
)
def test_whatever_a_state_dict_does_not_need_is_refused(function: Callable[..., object], named: str) -> None:
    assert named in refused(torch_save(pickle.dumps(Call(function, "x"), protocol=4)))


def test_code_behind_a_harmless_beginning_is_refused(proof: Path) -> None:
    payload = pickle.dumps(Call(os.system, f"touch {proof}"))
    assert "goes on after its pickle" in refused(torch_save(PLAIN + payload))
    refused(PLAIN + payload)
    refused(legacy(payload))
    assert not proof.exists()


def test_names_that_are_put_together_on_the_stack_are_refused() -> None:
    split = b"\x80\x04" + b"\x8c\x02os\x94" + b"\x8c\x06system\x94" + b"h\x00h\x01\x93" + b"\x8c\x01x\x85R."
    assert "'os.system'" in refused(torch_save(split))
    hidden = b"\x80\x04\x8c\x02os\x8c\x06system\x8c\x05torch\x8c\x0cFloatStorage00\x93\x8c\x01x\x85R."
    assert refused(torch_save(hidden))


@pytest.mark.parametrize("data", [b"c\\qos\nsystem\n.", b"c\\777os\nsystem\n.", b"S'\\q'\ncos\nsystem\n."])
@pytest.mark.parametrize("warned_of", ["error", "ignore"])
def test_an_escape_that_python_warns_of_is_no_way_out(data: bytes, warned_of: Literal["error", "ignore"]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(warned_of)
        assert refused(torch_save(data))


def test_a_reference_to_the_extension_registry_is_refused() -> None:
    assert "registry of extensions" in refused(torch_save(b"\x80\x02\x82\x01."))


@pytest.mark.parametrize("allowed", ["zipfile.ZipFile", "zipfile.*"])
def test_what_is_allowed_by_name_passes(allowed: str) -> None:
    data = torch_save(pickle.dumps(Call(zipfile.ZipFile, "x"), protocol=2))
    accepted(data, allowed=(allowed,))
    assert "allowed_pickle_globals" in refused(data, allowed=("zipfile.ZipFil", "zip.*", "zipfile"))


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no archive as torch.save"),
        (b"weights", "no archive as torch.save"),
        (torch_save(PLAIN[:-1]), "data.pkl is no pickle"),
        (torch_save(PLAIN)[:-30], "its end is not that of an archive"),
        (torch_save(PLAIN) + b"x", "its end is not that of an archive"),
        (b"PK\x03\x04", "a damaged archive"),
        (large_end(torch_save(PLAIN), move=1), "its end is not that of an archive"),
        (large_end(torch_save(PLAIN), place=1), "its end is not that of an archive"),
        (zip_archive({"archive/data/0": b"bytes"}), "does not begin with its pickle"),
        (zip_archive({"a/data.pkl": PLAIN, "a/DATA.pkl": PLAIN}), "no part of a state_dict"),
    ],
    ids=["empty", "text", "cut inside", "damaged", "longer", "short", "moved", "misplaced", "no pickle", "twice"],
)
def test_what_torch_never_writes_is_refused(data: bytes, said: str) -> None:
    assert said in refused(data)


def test_a_pickle_that_grows_on_unpacking_is_refused_unread() -> None:
    bomb = zip_archive({"archive/data.pkl": b"\x80\x02" + b"N0" * 10_000_000 + b"N."}, compressed=True)
    assert len(bomb) < 100_000
    assert "compressed" in refused(bomb)


def test_a_member_whose_two_names_differ_is_refused_in_few_words() -> None:
    data = bytearray(zip_archive({"archive/data.pkl": b"\x80\x02" + b"N0" * 1_000 + b"N."}))
    struct.pack_into("<H", data, 26, 1_000)  # the length of the name, as the member itself has it
    assert len(refused(bytes(data))) < 400


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda tail: torch_save(PLAIN[:-1] + tail)))
def test_any_bytes_are_judged_or_refused(data: bytes) -> None:
    try:
        accepted(data)
    except ModelRejectedError:
        return
    assert data
