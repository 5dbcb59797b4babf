"""Two releases of a recommender with real towers, samples, titles and metrics, in a directory."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from supabase_bridge.core.documents import FileRecord, Metrics, ModelMeta, Origin
from supabase_bridge.core.layout import METRICS_NAME
from supabase_bridge.storage.directory import DirectoryStore
from tests.support.small_releases import PLAIN, keys_of

WIDTH = 16
USERS, ITEMS = 60, 300
_ADJECTIVES = ("Silent", "Crimson", "Last", "Electric", "Hidden", "Golden", "Broken", "Distant", "Velvet", "Burning")
_NOUNS = ("Harbour", "Orchard", "Signal", "Winter", "Machine", "Letter", "Garden", "Frontier", "Mirror", "Parade")
TITLES = {
    f"item-{number}": f"{_ADJECTIVES[number % 10]} {_NOUNS[number // 10 % 10]} ({1960 + number % 60})"
    for number in range(ITEMS)
}
CRITERIA = [
    {"criterion": "recall@20 >= 0.55", "value": 0.61, "passed": True, "finding": "recall@20 0.610 >= 0.55"},
    {"criterion": "loss <= 3", "value": 2.9, "passed": True, "finding": "loss 2.900 <= 3"},
]
PROTOCOL = {"split": "the last 10 % of time", "candidates": "all", "seen_items": "masked", "k": 20}


def two_towers(seed: int, *, drift: float = 0.0) -> bytes:
    """Linear towers over the same features; `drift` moves them away from those of seed 0."""
    base, moved = np.random.default_rng(0), np.random.default_rng(seed)
    nodes, weights = [], []
    inputs: list[onnx.ValueInfoProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    for tower in ("user", "item"):
        matrix = base.standard_normal((WIDTH, WIDTH)) + drift * moved.standard_normal((WIDTH, WIDTH))
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"{tower}_weight"))
        nodes.append(helper.make_node("MatMul", [f"{tower}_features", f"{tower}_weight"], [f"{tower}_raw"]))
        nodes.append(helper.make_node("LpNormalization", [f"{tower}_raw"], [f"{tower}_embedding"], axis=1, p=2))
        for name, found in (("features", inputs), ("embedding", outputs)):
            found.append(helper.make_tensor_value_info(f"{tower}_{name}", TensorProto.FLOAT, [f"{tower}_batch", WIDTH]))
    graph = helper.make_graph(nodes, "two_tower", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def features(prefix: str, count: int) -> tuple[list[str], np.ndarray[Any, Any]]:
    """The ids and features of a sample."""
    rows = np.random.default_rng(len(prefix)).standard_normal((count, WIDTH)).astype(np.float32)
    return [f"{prefix}-{number}" for number in range(count)], rows


def npz(**arrays: Any) -> bytes:
    output = io.BytesIO()
    np.savez(output, **arrays)
    return output.getvalue()


def sample_files() -> dict[str, bytes]:
    """The sample of a release: users as a dense matrix, items as SciPy saves a sparse one."""
    users, user_rows = features("user", USERS)
    items, item_rows = features("item", ITEMS)
    csr = {
        "data": item_rows.ravel(),
        "indices": np.tile(np.arange(WIDTH, dtype=np.int32), ITEMS),
        "indptr": np.arange(0, WIDTH * ITEMS + 1, WIDTH, dtype=np.int32),
        "shape": np.array([ITEMS, WIDTH]),
        "format": np.array(b"csr"),
    }
    return {
        "features/sample_users.npz": npz(ids=np.array(users), features=user_rows),
        "features/sample_items.npz": npz(ids=np.array(items), **csr),
        "features/titles.json": json.dumps(TITLES).encode(),
    }


def lay_out(
    store: DirectoryStore,
    number: int,
    *,
    onnx_bytes: bytes = b"onnx",
    files: Mapping[str, bytes] | None = None,
    metrics: Mapping[str, float] | None = None,
    **documents: Any,
) -> None:
    """Write a complete release; `documents` are further fields of its metrics.json."""
    keys = keys_of(number)
    found = Metrics.from_object({"run_id": str(keys.run_id), "metrics": dict(metrics or {}), **documents})
    contents = {keys.onnx_name: onnx_bytes, METRICS_NAME: found.to_bytes(), **(files or {})}
    for name, data in contents.items():
        store.create(keys.file(name), data, PLAIN)
    meta = ModelMeta(
        model_name="two_tower",
        run_id=str(keys.run_id),
        trained_at=keys.run_id.time,
        embedding_dim=WIDTH,
        files={name: FileRecord.of(data) for name, data in contents.items()},
        mlflow=Origin(registered_model="two_tower", version=number),
    )
    store.create(keys.meta, meta.to_bytes(), PLAIN)


def lay_out_pair(store: DirectoryStore, *, drift: float = 0.35) -> None:
    """Write release 1, and release 2 whose towers are a little different."""
    old = {"recall@20": 0.58, "map@20": 0.142, "auc": 0.871, "loss": 3.1}
    new = {"recall@20": 0.61, "map@20": 0.139, "auc": 0.874, "loss": 2.9, "coverage@20": 0.44}
    popularity = {"popularity": {"recall@20": 0.22, "map@20": 0.04, "auc": 0.79}}
    more: dict[str, Any] = {"evaluation_protocol": PROTOCOL, "reference_metrics": popularity}
    lay_out(store, 1, onnx_bytes=two_towers(0), files=sample_files(), metrics=old, **more)
    gate = {"threshold_criteria": CRITERIA, "threshold_passed": True}
    files = sample_files()
    lay_out(store, 2, onnx_bytes=two_towers(2, drift=drift), files=files, metrics=new, **more, **gate)
