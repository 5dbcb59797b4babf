"""PyTorch files: what is a state_dict passes, what could run code is refused, and nothing is ever loaded."""

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

from supabase_bridge.demo.interactions import generate_interactions
from supabase_bridge.demo.state_dict import write_state_dict
from supabase_bridge.demo.two_tower import Hyperparameters, train
from supabase_bridge.errors import UnsafePickleError
from supabase_bridge.pickle_scan import scan as scan_file

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


def archive(members: Mapping[str, bytes], *, compressed: bool = False) -> bytes:
    """A zip as torch.save and torch.export write them."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return data.getvalue()


def large_end(data: bytes, *, move: int = 0, place: int = 0) -> bytes:
    """The same archive with a zip64 end as well, which PyTorch writes always; off by so much, where given."""
    size, begin = struct.unpack_from("<LL", data, len(data) - 10)
    end = len(data) - 22
    large = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, begin + move)
    return data[:end] + large + struct.pack("<4sLQL", b"PK\x06\x07", 0, end + place, 1) + data[end:]


def legacy(pickled: bytes) -> bytes:
    """What torch.save wrote before 1.6: five pickles, then the storages' bytes."""
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


def payloads(**files: bool) -> bytes:
    """What torch.export.save says of its weights: each one's file, and whether to unpickle it."""
    meta = {"dtype": 7, "sizes": [{"as_int": 2}], "device": {"type": "cpu", "index": None}}
    config = {
        f"l.{file}": {"path_name": file, "is_param": True, "use_pickle": use_pickle, "tensor_meta": meta}
        for file, use_pickle in files.items()
    }
    return json.dumps({"config": config}).encode()


def program(**changed: object) -> bytes:
    """A program as torch.export.save writes it, with parts of each kind that becomes Python."""
    size = {"as_expr": {"expr_str": "FloorDiv(Symbol('s77', positive=True, integer=True), Integer(2))", "hint": None}}
    parts: dict[str, object] = {
        "target": "torch.ops.aten.linear.default",
        "size": size,
        "metadata": {"stack_trace": 'File "/a/b.py", line 6, in forward\n    x = f("ids")', "torch_fn": "a;b"},
        "arg": {"as_string": "Runtime assertion failed for expression u0 < 9 on node 'lt'"},
        "in_spec": '[1, {"type": "builtins.dict", "context": "[\\"ids\\"]", "children_spec": []}]',
        "forward_arg_names": ["x"],
        "guards_code": ["((-1) + L['x'].size()[1]) != 1"],
        "torch_version": "2.13.0+cpu",
    }
    return json.dumps({**parts, **changed}).encode()


def exported(**members: bytes) -> bytes:
    """What torch.export.save of PyTorch 2.13 writes for a small module, with other members where given."""
    inputs = archive({"archive/data.pkl": PLAIN, "archive/data/0": b"\x80\x02c", "archive/byteorder": b"little"})
    written = {
        "data/weights/weight_0": b"\x80\x02cposix\nsystem\n",
        "data/weights/weight_1": b"",
        "data/weights/model_weights_config.json": payloads(weight_0=False, weight_1=False),
        "data/constants/tensor_0": b"cposix\nsystem\n.",
        "data/constants/model_constants_config.json": payloads(tensor_0=False),
        "models/model.json": program(),
        "data/sample_inputs/model.pt": inputs,
        "extra/notes.txt": b"hello",
        "archive_format": b"pt2",
        "archive_version": b"0",
        "byteorder": b"little",
        ".data/version": b"6\n",
        ".data/serialization_id": b"0" * 40,
    }
    return archive({f"m/{name}": data for name, data in {**written, **members}.items()})


def before_2_8(**members: bytes) -> bytes:
    """What torch.export.save wrote before PyTorch 2.8."""
    tensors = archive({"archive/data.pkl": PLAIN})
    written = {
        "serialized_exported_program.json": program(),
        "serialized_state_dict.pt": tensors,
        "serialized_constants.pt": tensors,
        "serialized_example_inputs.pt": b"",
        "version": b"8.2",
    }
    return archive({**written, **members})


def scan(path: Path, *, allowed: tuple[str, ...]) -> None:
    with path.open("rb") as file:
        scan_file(file, path.name, allowed=allowed)


def refused(path: Path, data: bytes, *, name: str = "m.pt", allowed: tuple[str, ...] = ()) -> str:
    (path / name).write_bytes(data)
    with pytest.raises(UnsafePickleError) as caught:
        scan(path / name, allowed=allowed)
    return caught.value.problem


def accepted(path: Path, data: bytes, *, name: str = "m.pt", allowed: tuple[str, ...] = ()) -> None:
    (path / name).write_bytes(data)
    scan(path / name, allowed=allowed)


SHAPES: Mapping[str, Callable[[bytes], tuple[str, bytes]]] = {
    "torch.save": lambda pickled: ("m.pt", archive({"archive/data.pkl": pickled, "archive/data/0": b"\x80\x02c"})),
    "compressed": lambda pickled: ("m.pt", archive({"archive/data.pkl": pickled}, compressed=True)),
    "with a zip64 end": lambda pickled: ("m.pt", large_end(archive({"archive/data.pkl": pickled}))),
    "before 1.6": lambda pickled: ("m.pt", legacy(pickled)),
    "pickle": lambda pickled: ("m.pth", pickled),
    "torch.export": lambda pickled: (
        "m.pt2",
        archive(
            {
                "m/models/model.json": b"{}",
                "m/data/sample_inputs/model.pt": archive({"inputs/data.pkl": pickled}),
            }
        ),
    ),
    "capitals": lambda pickled: ("m.pt", archive({"archive/DATA.PKL": pickled})),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_state_dict_passes_in_every_form(tmp_path: Path, shape: str) -> None:
    name, data = SHAPES[shape](PLAIN)
    accepted(tmp_path, data, name=name)


def test_what_torch_save_writes_passes(tmp_path: Path) -> None:
    data = generate_interactions(np.random.default_rng(1), users=9, items=9, tag_vocab_size=5, performer_vocab_size=3)
    small = Hyperparameters(
        embedding_dim=2, hidden_dim=3, epochs=1, learning_rate=0.01, batch_size=16, use_price_feature=False, seed=7
    )
    write_state_dict(tmp_path / "m.pt", train(data, small))
    scan(tmp_path / "m.pt", allowed=())


@pytest.mark.parametrize("data", [exported(), before_2_8()], ids=["now", "before 2.8"])
def test_what_torch_export_writes_passes_raw_weights_and_all(tmp_path: Path, data: bytes) -> None:
    accepted(tmp_path, data, name="m.pt2")


@pytest.mark.parametrize("root", ["models", "data", "weights", "serialized_state", "opaque_obj_1"])
def test_the_tensors_of_a_state_dict_are_bytes_whatever_its_file_is_called(tmp_path: Path, root: str) -> None:
    accepted(tmp_path, archive({f"{root}/data.pkl": PLAIN, f"{root}/data/0": b"cposix\nsystem\n(S'x'\ntR."}))


UNPICKLED: Mapping[str, Callable[[bytes], bytes]] = {
    "an older state_dict": lambda evil: before_2_8(**{"serialized_state_dict.pt": evil}),
    "older constants": lambda evil: before_2_8(**{"serialized_constants.pt": evil}),
    "older inputs": lambda evil: before_2_8(**{"serialized_example_inputs.pt": evil}),
    "the oldest state_dict": lambda evil: before_2_8(**{"serialized_state_dict.json": evil}),
    "inputs": lambda evil: exported(**{"data/sample_inputs/model.pt": evil}),
    "weights in one file": lambda evil: exported(**{"data/weights/model.pt": evil}),
    "a custom object": lambda evil: exported(**{"data/constants/custom_obj_0": evil}),
    "an opaque object": lambda evil: exported(**{"data/constants/opaque_obj_0": evil}),
    "an opaque object that is said to be raw": lambda evil: exported(
        **{"data/constants/opaque_obj_0": evil, "data/constants/n_constants_config.json": payloads(opaque_obj_0=False)}
    ),
    "a weight to be unpickled": lambda evil: exported(
        **{"data/weights/weight_0": evil, "data/weights/model_weights_config.json": payloads(weight_0=True)}
    ),
    "a weight to be unpickled for one model of two": lambda evil: exported(
        **{"data/weights/weight_0": evil, "data/weights/other_weights_config.json": payloads(weight_0=True)}
    ),
    "a weight in capitals": lambda evil: exported(
        **{"data/weights/WEIGHT_2": evil, "data/weights/other_weights_config.json": payloads(weight_2=True)}
    ),
    "a weight that nothing describes": lambda evil: exported(**{"data/weights/weight_2": evil}),
    "a file of another kind": lambda evil: archive({"a/data.pkl": PLAIN, "a/more.bin": evil}),
}


@pytest.mark.parametrize("form", ["bare", "legacy"])
@pytest.mark.parametrize("name", ["m.pt", "m.pt2"])
@pytest.mark.parametrize("place", UNPICKLED)
def test_a_bare_pickle_is_refused_wherever_a_reader_would_unpickle_it(
    tmp_path: Path, proof: Path, place: str, name: str, form: str
) -> None:
    evil = pickle.dumps(Call(os.system, f"touch {proof}"))
    evil = legacy(evil) if form == "legacy" else evil
    assert "loading it would import 'posix.system'" in refused(tmp_path, UNPICKLED[place](evil), name=name)
    accepted(tmp_path, UNPICKLED[place](PLAIN), name=name)
    assert "neither an archive nor a pickle" in refused(tmp_path, UNPICKLED[place](b"bytes"), name=name)
    assert not proof.exists()


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"[]",
        b"{}",
        b'{"config": {"a": 1}}',
        payloads(weight_0=False).replace(b"weight_0", b"../../models/x"),
        payloads(weight_0=False).replace(b"weight_0", "gewicht_\u00fc".encode()),
        payloads(weight_0=False).replace(b"false", b"null"),
        payloads(weight_0=False).replace(b"false", b'false, "use_pickle": true'),
        b"[" * 100_000,
    ],
)
def test_weights_whose_description_is_open_to_two_readings_are_refused(tmp_path: Path, config: bytes) -> None:
    assert refused(tmp_path, exported(**{"data/weights/model_weights_config.json": config}), name="m.pt2")


EVALUATED: Mapping[str, Mapping[str, object]] = {
    "a size": {"size": {"expr_str": "__import__('os').system('x')"}},
    "a size without a string": {"size": {"expr_str": "eval(chr(120))"}},
    "an attribute of a size": {"size": {"expr_str": "Symbol('s0').real"}},
    "a guard": {"guards_code": ["__import__('os').system('x')"]},
    "an attribute in a guard": {"guards_code": ["L.__class__"]},
    "an argument's name": {"forward_arg_names": ["x: y"]},
    "an operator": {"target": "torch.os.system"},
    "a library": {"target": "torch.ops.load_library"},
    "what is behind an operator": {"target": "torch.ops.aten.__init__.__globals__"},
    "a function of functions": {"target": "_operator.methodcaller"},
    "an enum in a tree": {"in_spec": json.dumps([1, {"context": json.dumps({"__enum__": True, "fqn": "this:x"})}])},
    "an enum in other letters": {"in_spec": '[1, {"context": "{\\"\\\\u005f_enum__\\": true}"}]'},
    "a factory in a tree": {"out_spec": json.dumps([1, {"context": json.dumps({"default_factory_module": "this"})}])},
    "a quote in a tree": {"in_spec": json.dumps([1, {"context": json.dumps(["a'+x+\""])}])},
    "a parameter's name": {"tensor_values": {'a", x())#': {}}},
    "a target that is an attribute": {"arg": {"as_graph": {"name": 'a"+x()+"'}}},
}


@pytest.mark.parametrize("part", EVALUATED)
def test_a_program_that_smuggles_python_into_what_is_evaluated_is_refused(tmp_path: Path, part: str) -> None:
    data = program(**EVALUATED[part])
    for made in (exported(**{"models/model.json": data}), before_2_8(**{"serialized_exported_program.json": data})):
        assert "loading it would" in refused(tmp_path, made, name="m.pt2")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000 + b"]" * 100_000])
def test_a_program_that_is_no_plain_json_is_refused(tmp_path: Path, data: bytes) -> None:
    assert refused(tmp_path, exported(**{"models/model.json": data}), name="m.pt2")


def test_a_compiled_model_is_refused_with_its_sources(tmp_path: Path) -> None:
    made = exported(**{"data/aotinductor/model/wrapper.cpp": b"int main;"})
    assert "compiled model" in refused(tmp_path, made, name="m.pt2")


def test_a_pickle_that_is_a_tar_archive_as_well_is_refused(tmp_path: Path) -> None:
    first = pickle.dumps(MAGIC, protocol=2)
    for data in (tarred(), tarred(first)):
        assert pickle.loads(data) in (MAGIC, data[7:-1])
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:"):
            assert "tar archive" in refused(tmp_path, data)
            assert "tar archive" in refused(tmp_path, exported(**{"data/sample_inputs/model.pt": data}), name="m.pt2")


def test_an_archive_behind_a_pickle_is_refused_since_other_readers_begin_at_the_end(
    tmp_path: Path, proof: Path
) -> None:
    evil = before_2_8(**{"serialized_state_dict.pt": pickle.dumps(Call(os.system, f"touch {proof}"))})
    for data in (legacy(PLAIN) + evil, pickle.dumps(evil, protocol=4)):
        with zipfile.ZipFile(io.BytesIO(data)) as found:
            assert "serialized_state_dict.pt" in found.namelist()
        assert "ends as an archive" in refused(tmp_path, data, name="m.pt2")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("shape", SHAPES)
def test_a_payload_is_refused_in_every_form_and_never_run(
    tmp_path: Path, proof: Path, shape: str, protocol: int
) -> None:
    name, data = SHAPES[shape](pickle.dumps({"weights": Call(os.system, f"touch {proof}")}, protocol=protocol))
    assert "loading it would import 'posix.system'" in refused(tmp_path, data, name=name)
    assert not proof.exists()


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
    ],
)
def test_whatever_a_state_dict_does_not_need_is_refused(
    tmp_path: Path, function: Callable[..., object], named: str
) -> None:
    assert named in refused(tmp_path, pickle.dumps(Call(function, "x"), protocol=4))


def test_code_behind_a_harmless_beginning_is_refused(tmp_path: Path, proof: Path) -> None:
    payload = pickle.dumps(Call(os.system, f"touch {proof}"))
    assert "something follows its first pickle" in refused(tmp_path, PLAIN + payload)
    assert "something follows the pickle's end" in refused(tmp_path, archive({"a/data.pkl": PLAIN + payload}))
    assert "posix.system" in refused(tmp_path, legacy(payload))
    assert not proof.exists()


def test_names_that_are_put_together_on_the_stack_are_refused(tmp_path: Path) -> None:
    split = b"\x80\x04" + b"\x8c\x02os\x94" + b"\x8c\x06system\x94" + b"h\x00h\x01\x93" + b"\x8c\x01x\x85R."
    assert "'os.system'" in refused(tmp_path, split)
    hidden = b"\x80\x04\x8c\x02os\x8c\x06system\x8c\x05torch\x8c\x0cFloatStorage00\x93\x8c\x01x\x85R."
    assert refused(tmp_path, hidden)


@pytest.mark.parametrize("data", [b"c\\qos\nsystem\n.", b"c\\777os\nsystem\n.", b"S'\\q'\ncos\nsystem\n."])
@pytest.mark.parametrize("warned_of", ["error", "ignore"])
def test_an_escape_that_python_warns_of_is_no_way_out(
    tmp_path: Path, data: bytes, warned_of: Literal["error", "ignore"]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(warned_of)
        assert refused(tmp_path, data)


def test_a_reference_to_the_extension_registry_is_refused(tmp_path: Path) -> None:
    assert "registry of extensions" in refused(tmp_path, b"\x80\x02\x82\x01.")


def test_machine_code_in_an_exported_program_is_refused(tmp_path: Path) -> None:
    data = archive({"m/data/aotinductor/model.so": b"\x7fELF"})
    assert refused(tmp_path, data, name="m.pt2") == "m/data/aotinductor/model.so is machine code"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"weights", "neither an archive nor a pickle"),
        (PLAIN[:-1], "neither an archive nor a pickle"),
        (archive({"archive/data.pkl": PLAIN[:-1]}), "neither an archive nor a pickle"),
        (archive({"archive/data.pkl": PLAIN})[:-30], "its end is not that of an archive"),
        (archive({"archive/data.pkl": PLAIN}) + b"x", "its end is not that of an archive"),
        (large_end(archive({"archive/data.pkl": PLAIN}), move=1), "its end is not that of an archive"),
        (large_end(archive({"archive/data.pkl": PLAIN}), place=1), "its end is not that of an archive"),
        (archive({"archive/data/0": b"bytes"}), "there is no pickle in it"),
        (archive({"a/data.pkl": PLAIN, "a/DATA.pkl": PLAIN}), "two members of one name"),
        (legacy(PLAIN)[:30], "neither an archive nor a pickle"),
    ],
    ids=[
        "empty",
        "text",
        "cut",
        "cut inside",
        "damaged",
        "longer",
        "moved",
        "misplaced",
        "no pickle",
        "twice",
        "cut legacy",
    ],
)
def test_what_torch_never_writes_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    assert said in refused(tmp_path, data)


def test_a_pickle_that_grows_on_unpacking_is_refused_unread(tmp_path: Path) -> None:
    bomb = archive({"archive/data.pkl": b"\x80\x02" + b"N0" * 10_000_000 + b"N."}, compressed=True)
    assert len(bomb) < 100_000
    assert "larger than 16000000 bytes" in refused(tmp_path, bomb)


def test_a_member_whose_two_names_differ_is_refused_in_few_words(tmp_path: Path) -> None:
    data = bytearray(archive({"archive/data.pkl": b"\x80\x02" + b"N0" * 1_000 + b"N."}))
    struct.pack_into("<H", data, 26, 1_000)  # the length of the name, as the member itself has it
    assert len(refused(tmp_path, bytes(data))) < 300


def test_archives_within_archives_end_somewhere(tmp_path: Path) -> None:
    data = archive({"a/data.pkl": PLAIN})
    for _ in range(5):
        data = archive({"a/inner.pt": data})
    assert "nested more than 3 deep" in refused(tmp_path, data)
    packed = archive({"a/inner.pt": archive({"a/data.pkl": PLAIN})}, compressed=True)
    assert "a compressed archive within the archive" in refused(tmp_path, packed)


@pytest.mark.parametrize("allowed", ["zipfile.ZipFile", "zipfile.*"])
def test_what_is_allowed_by_name_passes(tmp_path: Path, allowed: str) -> None:
    data = pickle.dumps(Call(zipfile.ZipFile, "x"), protocol=2)
    accepted(tmp_path, data, allowed=(allowed,))
    assert "allowed_pickle_globals" in refused(tmp_path, data, allowed=("zipfile.ZipFil", "zip.*", "zipfile"))


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda tail: PLAIN[:-1] + tail))
def test_any_bytes_are_judged_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pt"
    path.write_bytes(data)
    try:
        scan(path, allowed=())
    except UnsafePickleError:
        return
    assert data
