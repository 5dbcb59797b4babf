"""Weights as a PyTorch state_dict file, written without PyTorch.

The format is that of `torch.save` since 1.6: an uncompressed zip whose `data.pkl` rebuilds each tensor from a storage
named by a persistent id, beside the bytes of each storage (docs.pytorch.org/docs/stable/notes/serialization.html). The
pickle is put together from opcodes: a Pickler writes the name of a class only where it can import that class, and
`torch._utils._rebuild_tensor_v2` is not to be had without PyTorch.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from supabase_bridge.demo.interactions import Floats
from supabase_bridge.demo.two_tower import TwoTower

_PREFIX = "archive"
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # zip's earliest, so that the bytes do not depend on the clock
_NO_HOOKS = b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE


def named_weights(model: TwoTower) -> dict[str, Floats]:
    """Return the weights under the names they would have in a torch module of two `Sequential` towers."""
    layers = ("0.weight", "0.bias", "2.weight", "2.bias")
    names = [f"{tower}.{layer}" for tower in ("user_tower", "item_tower") for layer in layers]
    return dict(zip(names, model.arrays(), strict=True))


def write_state_dict(path: Path, model: TwoTower) -> None:
    """Write a file that `torch.load(path, weights_only=True)` reads as a state_dict of float32 tensors on the CPU.

    The file appears whole or not at all, and the same weights give the same bytes.

    Args:
        path: the file; one that exists is replaced.
        model: the weights.
    """
    weights = named_weights(model)
    records = {"data.pkl": _pickled(weights), "byteorder": b"little"}
    for key, array in enumerate(weights.values()):
        records[f"data/{key}"] = np.ascontiguousarray(array, dtype="<f4").tobytes()
    records["version"] = b"3\n"
    part = path.with_name(f".{path.name}.part")
    with zipfile.ZipFile(part, "w") as archive:
        for name, content in records.items():
            entry = zipfile.ZipInfo(f"{_PREFIX}/{name}", _TIMESTAMP)
            entry.create_system = 3  # Unix, whatever system writes it
            archive.writestr(entry, content)
    part.replace(path)


def _pickled(weights: Mapping[str, Floats]) -> bytes:
    """Return the pickle of an OrderedDict of tensors whose contents are the storages 0, 1, ... in the same order."""
    items = b"".join(
        _text(name) + _rebuilt_tensor(str(key), array.shape) for key, (name, array) in enumerate(weights.items())
    )
    return pickle.PROTO + b"\x02" + _NO_HOOKS + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _rebuilt_tensor(key: str, shape: tuple[int, ...]) -> bytes:
    """Return the call `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`."""
    size = int(np.prod(shape))
    stride = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    storage = _tuple(_text("storage"), b"ctorch\nFloatStorage\n", _text(key), _text("cpu"), _integer(size))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + _tuple(
            storage + pickle.BINPERSID,
            _integer(0),
            _tuple(*(_integer(length) for length in shape)),
            _tuple(*(_integer(length) for length in stride)),
            pickle.NEWFALSE,
            _NO_HOOKS,
        )
        + pickle.REDUCE
    )


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)
