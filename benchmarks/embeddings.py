"""Load a set of embeddings into PostgreSQL with pgvector, search it, and switch between two sets.

    python -m benchmarks.embeddings [--rows 100000] [--width 256]

It measures COPY and attach alone, the whole load with HNSW, the recall of HNSW against an exact search, and what the
check of a ready set adds to a switch, and the CPU time of computing as many users' embeddings with a tower of the
specification's sizes. Exit code 1: a figure misses its limit; the limits are for 2 idle cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import psycopg
from onnx import TensorProto, helper, numpy_helper

from supabase_bridge.client.release import Release
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.embeddings.load import SetLoad
from supabase_bridge.embeddings.rows import Embeddings
from supabase_bridge.embeddings.schema import qualified, set_tables
from supabase_bridge.embeddings.sets import EmbeddingSets
from supabase_bridge.look.towers import Rows, embed
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.storage.directory import DirectoryStore
from tests.support.databases import running_pgvector
from tests.support.small_releases import LATEST, NOON, event, keys_of, lay_out

MODEL = "two_tower"
COPY_LIMIT_SECONDS = 5.0
LOAD_LIMIT_SECONDS = 150.0
DROP_LIMIT_SECONDS = 1.0
SWITCH_LIMIT_MS = 50.0
RECALL_LIMIT = 0.98
QUERIES = 100
SWITCHES = 40
USERS_LIMIT_SECONDS = 15.0
USER_WIDTH, HIDDEN, USER_FEATURES = 4_099, 512, 51
"""The specification's user tower, and the features of one user that are not zero."""
LATENT = 32
TOP = 20

Matrix: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"


class CopyOnly(SetLoad):
    """Load without any index except the primary keys."""

    def _index_vectors(self) -> None:
        """Create no HNSW index."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embeddings", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="items (default: 100,000)")
    parser.add_argument("--width", type=int, default=256, help="width of an embedding (default: 256)")
    options = parser.parse_args(arguments)
    items, queries = _latent(options.rows, options.width)
    passed = True

    def report(name: str, value: float, limit: float, *, at_least: bool = False) -> None:
        nonlocal passed
        good = value >= limit if at_least else value <= limit
        passed = passed and good
        print(f"{name}: {value:.4g} (limit {limit:g}){'' if good else '  MISSED'}")

    with running_pgvector() as server:
        url = server.create().replace("postgresql+psycopg://", "postgresql://")
        connection = psycopg.connect(url, autocommit=True)
        with EmbeddingSets(connection) as sets:
            sets.init(MODEL, dimension=options.width)
            start = time.perf_counter()
            CopyOnly(connection, MODEL, _release(1).run_id, onnx_sha256="0" * 64, bucket=None).run(
                items, Embeddings.none()
            )
            report(
                f"COPY and attach of {options.rows} x {options.width}, s",
                time.perf_counter() - start,
                COPY_LIMIT_SECONDS,
            )
            start = time.perf_counter()
            sets.load(_release(2), items=items)
            report("the whole load with HNSW, s", time.perf_counter() - start, LOAD_LIMIT_SECONDS)
            report("recall of HNSW against exact", _recall(connection, sets, queries), RECALL_LIMIT, at_least=True)
            report("what a ready set adds to a switch, ms", _added_ms(sets, items), SWITCH_LIMIT_MS)
            start = time.perf_counter()
            sets.drop(MODEL, _release(1).run_id)
            report("drop of a set, s", time.perf_counter() - start, DROP_LIMIT_SECONDS)
    report(f"{options.rows} users' embeddings, CPU s", _users_seconds(options.rows, options.width), USERS_LIMIT_SECONDS)
    return 0 if passed else 1


def _latent(count: int, width: int) -> tuple[Embeddings, Matrix]:
    """Return items and queries with their variance in 32 directions and a decaying spectrum, like a trained tower's."""
    random = np.random.default_rng(7)
    scale = 1 / np.sqrt(np.arange(1, LATENT + 1))
    directions = (random.standard_normal((LATENT, width)) * scale[:, None]).astype(np.float32)

    def near(number: int) -> Matrix:
        made = random.standard_normal((number, LATENT), dtype=np.float32) @ directions
        made += 0.02 * random.standard_normal((number, width), dtype=np.float32)
        unit: Matrix = made / np.linalg.norm(made, axis=1, keepdims=True)
        return unit

    return Embeddings(ids=[f"item-{number}" for number in range(count)], matrix=near(count)), near(QUERIES)


def _release(number: int) -> Release:
    paths = keys_of(number)
    files = MappingProxyType({paths.onnx_name: FileRecord.of(f"onnx {number}".encode())})
    return Release(model=MODEL, run_id=str(paths.run_id), files=files, signed=False)


def _recall(connection: psycopg.Connection, sets: EmbeddingSets, queries: Matrix) -> float:
    """Return the part of the exact best items that the function finds; its plan must use HNSW."""
    run_id = _release(2).run_id
    table = qualified(set_tables(MODEL, run_id)[0]).as_string(connection)
    found, milliseconds = 0, []
    for query in queries:
        text = str(query.tolist())
        start = time.perf_counter()
        names = {match.id for match in sets.match_items(MODEL, run_id, query.tolist(), TOP)}
        milliseconds.append((time.perf_counter() - start) * 1000)
        with connection.transaction():
            connection.execute("set local enable_indexscan = off")
            exact = f"select id from {table} order by embedding <#> %s::halfvec limit {TOP}"  # noqa: S608 - a constant
            rows = connection.execute(exact.encode(), (text,), prepare=False).fetchall()
        found += len(names & {name for (name,) in rows})
    print(f"a query takes {statistics.median(milliseconds):.2f} ms")
    return found / (TOP * len(queries))


def _users_seconds(count: int, width: int) -> float:
    """Return the CPU time of this process for the embeddings of so many users, with sparse features."""
    random = np.random.default_rng(7)
    rows = Rows(
        ids=[str(number) for number in range(count)],
        width=USER_WIDTH,
        dense=None,
        csr=(
            random.random(count * USER_FEATURES, dtype=np.float32),
            random.integers(0, USER_WIDTH, count * USER_FEATURES, dtype=np.int32),
            np.arange(0, count * USER_FEATURES + 1, USER_FEATURES),
        ),
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "two_tower.user.onnx"
        path.write_bytes(_user_tower(width))
        start = time.process_time()
        embed(path, "user", rows, limit=count)
        return time.process_time() - start


def _user_tower(width: int) -> bytes:
    """Return an ONNX file of two linear layers with ReLU between them and L2 behind them, with random weights."""
    random = np.random.default_rng(7)
    first = 0.02 * random.standard_normal((USER_WIDTH, HIDDEN), dtype=np.float32)
    second = 0.05 * random.standard_normal((HIDDEN, width), dtype=np.float32)
    weights = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    nodes = [
        helper.make_node("MatMul", ["user_features", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["user_embedding"], axis=1, p=2),
    ]
    inputs = helper.make_tensor_value_info("user_features", TensorProto.FLOAT, ["user_batch", USER_WIDTH])
    outputs = helper.make_tensor_value_info("user_embedding", TensorProto.FLOAT, ["user_batch", width])
    graph = helper.make_graph(nodes, "user", [inputs], [outputs], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _added_ms(sets: EmbeddingSets, items: Embeddings) -> float:
    """Measure `load` of a ready set and a switch between two releases in a directory, one after the other."""
    with tempfile.TemporaryDirectory() as directory:
        store = DirectoryStore(Path(directory) / "models")
        store.ensure_bucket()
        channel = Channel(store, LATEST)
        taken: dict[bool, list[float]] = {True: [], False: []}
        for number in (1, 2):
            lay_out(store, number)
        for count in range(SWITCHES):
            for with_set in (True, False):
                start = time.perf_counter()
                if with_set:
                    found = sets.find(MODEL, _release(2).run_id)
                    assert found is not None
                    assert found.ready
                    assert found.item_count == len(items.ids)
                release = verify_release(store, keys_of(1 + (2 * count + with_set) % 2))
                head = channel.read_head().head
                channel.activate(release, head=head, cause=event(2 * count + with_set), published_at=NOON)
                taken[with_set].append((time.perf_counter() - start) * 1000)
        return statistics.median(taken[True]) - statistics.median(taken[False])


if __name__ == "__main__":
    raise SystemExit(main())
