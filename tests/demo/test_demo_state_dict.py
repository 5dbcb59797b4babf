"""The demonstration's state_dict file, read back by an unpickler that knows no PyTorch."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supabase_bridge.demo.model import Tower, TwoTower
from supabase_bridge.demo.training import named_weights, write_state_dict


def tower(inputs: int, hidden: int, outputs: int) -> Tower:
    return Tower(
        hidden_weight=np.arange(hidden * inputs, dtype=np.float32).reshape(hidden, inputs) / 3,
        hidden_bias=np.arange(hidden, dtype=np.float32),
        output_weight=-np.arange(outputs * hidden, dtype=np.float32).reshape(outputs, hidden) / 7,
        output_bias=np.arange(outputs, dtype=np.float32),
    )


MODEL = TwoTower(user_tower=tower(5, 6, 2), item_tower=tower(300, 6, 2))


class Reader(pickle.Unpickler):
    """Read a PyTorch checkpoint as arrays; any global that its state_dicts do not need is refused."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        super().__init__(io.BytesIO(archive.read("archive/data.pkl")))
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Callable[..., Any] | str] = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": rebuild_tensor,
            "torch.FloatStorage": "torch.FloatStorage",
        }
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: tuple[str, str, str, str, int]) -> NDArray[np.float32]:
        kind, storage_type, key, location, numel = pid
        assert (kind, storage_type, location) == ("storage", "torch.FloatStorage", "cpu")
        storage = np.frombuffer(self._archive.read(f"archive/data/{key}"), dtype="<f4")
        assert storage.size == numel
        return storage


def rebuild_tensor(
    storage: NDArray[np.float32],
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: OrderedDict[str, Any],
) -> NDArray[np.float32]:
    assert requires_grad is False
    assert hooks == OrderedDict()
    return np.lib.stride_tricks.as_strided(storage[offset:], size, [4 * step for step in stride])


def read(path: Path) -> OrderedDict[str, NDArray[np.float32]]:
    with zipfile.ZipFile(path) as archive:
        loaded = Reader(archive).load()
    assert isinstance(loaded, OrderedDict)
    return loaded


def test_the_weights_come_back_under_the_names_of_a_torch_module(tmp_path: Path) -> None:
    write_state_dict(tmp_path / "weights.pt", MODEL)
    loaded = read(tmp_path / "weights.pt")
    assert list(loaded) == [
        "user_tower.0.weight",
        "user_tower.0.bias",
        "user_tower.2.weight",
        "user_tower.2.bias",
        "item_tower.0.weight",
        "item_tower.0.bias",
        "item_tower.2.weight",
        "item_tower.2.bias",
    ]
    for name, array in named_weights(MODEL).items():
        assert np.array_equal(loaded[name], array), name
    assert np.array_equal(loaded["item_tower.0.weight"], MODEL.item_tower.hidden_weight)


def test_weights_of_another_memory_order_or_precision_come_back_the_same(tmp_path: Path) -> None:
    turned = TwoTower(
        user_tower=MODEL.user_tower,
        item_tower=Tower(
            hidden_weight=np.asfortranarray(MODEL.item_tower.hidden_weight.astype(np.float64)),
            hidden_bias=MODEL.item_tower.hidden_bias.astype(">f4"),
            output_weight=MODEL.item_tower.output_weight,
            output_bias=MODEL.item_tower.output_bias,
        ),
    )
    write_state_dict(tmp_path / "plain.pt", MODEL)
    write_state_dict(tmp_path / "turned.pt", turned)
    assert (tmp_path / "turned.pt").read_bytes() == (tmp_path / "plain.pt").read_bytes()


def test_the_archive_holds_what_torch_load_looks_for_uncompressed(tmp_path: Path) -> None:
    write_state_dict(tmp_path / "weights.pt", MODEL)
    with zipfile.ZipFile(tmp_path / "weights.pt") as archive:
        storages = [f"archive/data/{key}" for key in range(8)]
        assert archive.namelist() == ["archive/data.pkl", "archive/byteorder", *storages, "archive/version"]
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/byteorder") == b"little"
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None


def test_the_same_weights_give_the_same_bytes_whatever_the_clock(tmp_path: Path) -> None:
    write_state_dict(tmp_path / "first.pt", MODEL)
    write_state_dict(tmp_path / "second.pt", MODEL)
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "second.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "first.pt") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_file_that_exists_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"older")
    write_state_dict(path, MODEL)
    assert "user_tower.0.weight" in read(path)
    assert list(tmp_path.iterdir()) == [path]
