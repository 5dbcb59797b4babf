"""PyTorch files: what is a state_dict passes, what could run code is refused, and nothing is ever loaded."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
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
