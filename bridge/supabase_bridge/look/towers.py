"""Rank the items of a release's own sample for the users of that sample, with the release's own towers."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from supabase_bridge.client.release import Release
from supabase_bridge.client.resolver import Resolver
from supabase_bridge.core.layout import FEATURES_PREFIX
from supabase_bridge.look.comparison import Scored
from supabase_bridge.look.errors import LookFileError

USERS_NAME = FEATURES_PREFIX + "sample_users.npz"
ITEMS_NAME = FEATURES_PREFIX + "sample_items.npz"
SAMPLES = (USERS_NAME, ITEMS_NAME)
"""The files of a release with the features of a sample: `ids`, and `features`, or a CSR matrix as SciPy saves it."""

_BATCH = 256
_CSR = ("data", "indices", "indptr", "shape")


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The best items of each user of a sample, and the number of items that were ranked."""

    lists: Mapping[str, Sequence[Scored]]
    items: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The features of users or items, as a dense or a CSR matrix; of the latter one batch at a time is made dense."""

    ids: Sequence[str]
    width: int
    dense: np.ndarray[Any, Any] | None
    csr: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]] | None

    def batch(self, start: int, end: int) -> np.ndarray[Any, Any]:
        if self.dense is not None:
            return np.ascontiguousarray(self.dense[start:end], dtype=np.float32)
        assert self.csr is not None  # noqa: S101 - one of the two
        data, indices, indptr = self.csr
        made = np.zeros((end - start, self.width), np.float32)
        for row in range(start, end):
            part = slice(int(indptr[row]), int(indptr[row + 1]))
            np.add.at(made[row - start], indices[part], data[part])
        return made


def rank_sample(resolver: Resolver, release: Release, directory: Path, *, users: int, depth: int) -> Ranking:
    """Compute the embeddings of a release's sample, and return the `depth` best items of the first `users` users.

    Args:
        directory: An empty directory for the files of the release that are needed.

    Raises:
        LookFileError: a file of the sample, or a tower, has another form.
        BridgeError: see `Resolver.copy`.
    """
    user_rows, item_rows = (_read_rows(resolver, release, name, directory) for name in SAMPLES)
    embedded_users = _embed(resolver, release, directory, "user", user_rows, limit=users)
    embedded_items = _embed(resolver, release, directory, "item", item_rows, limit=len(item_rows.ids))
    if embedded_users.shape[1] != embedded_items.shape[1]:
        widths = f"users of {embedded_users.shape[1]} numbers and items of {embedded_items.shape[1]}"
        raise LookFileError(release.model, release.run_id, release.onnx_name, f"its towers give {widths}")
    lists = {}
    for start in range(0, len(embedded_users), _BATCH):
        scores = embedded_users[start : start + _BATCH] @ embedded_items.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        for row, chosen in enumerate(best):
            lists[user_rows.ids[start + row]] = [
                Scored(id=item_rows.ids[place], score=float(scores[row, place])) for place in chosen
            ]
    return Ranking(lists=lists, items=len(item_rows.ids))


def _read_rows(resolver: Resolver, release: Release, name: str, directory: Path) -> Rows:
    """Read one file of the sample."""
    path = directory / name.rpartition("/")[2]
    resolver.copy(release, name, path)

    def refused(reason: str) -> LookFileError:
        return LookFileError(release.model, release.run_id, name, reason)

    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids = [str(item) for item in arrays["ids"].tolist()]
            if "features" in arrays:
                dense = arrays["features"]
                if dense.ndim != 2:
                    raise refused(f"`features` has {dense.ndim} dimensions, not 2")
                rows = Rows(ids=ids, width=dense.shape[1], dense=dense, csr=None)
                count = dense.shape[0]
            else:
                data, indices, indptr, shape = (arrays[part] for part in _CSR)
                count, width = (int(size) for size in shape)
                _check_csr(data, indices, indptr, count, width)
                rows = Rows(ids=ids, width=width, dense=None, csr=(data, indices, indptr))
    except (KeyError, ValueError, zipfile.BadZipFile, OSError) as error:
        problem = "expected the arrays `ids` and `features`, or `ids`, `data`, `indices`, `indptr` and `shape`"
        raise refused(f"{problem}: {error}") from error
    if count != len(ids):
        raise refused(f"{len(ids)} ids for {count} rows")
    if not ids:
        raise refused("it has no rows")
    return rows


def _check_csr(
    data: np.ndarray[Any, Any], indices: np.ndarray[Any, Any], indptr: np.ndarray[Any, Any], count: int, width: int
) -> None:
    """Check that a CSR matrix is one."""
    right = len(indptr) == count + 1 and indptr[0] == 0 and indptr[-1] == len(data) == len(indices)
    if not right or (np.diff(indptr) < 0).any() or (len(indices) and not 0 <= indices.min() <= indices.max() < width):
        raise ValueError("its parts do not fit each other")


def _embed(
    resolver: Resolver, release: Release, directory: Path, tower: str, rows: Rows, *, limit: int
) -> np.ndarray[Any, Any]:
    """Return the embeddings of a sample's first rows, by the tower's own file or the model."""
    name = release.paths.tower_name(tower)
    name = name if name in release.files else release.onnx_name
    path = directory / name
    if not path.exists():
        resolver.copy(release, name, path)
    try:
        return embed(path, tower, rows, limit=limit)
    except Exception as error:
        reason = f"its {tower} tower cannot be run on the sample: {str(error).strip().splitlines()[-1]:.200}"
        raise LookFileError(release.model, release.run_id, name, reason) from error


def embed(path: Path, tower: str, rows: Rows, *, limit: int) -> np.ndarray[Any, Any]:
    """Return the embeddings of the first rows by an ONNX file; the other tower of a file with both gets no rows.

    Raises:
        Exception: the tower cannot be run on these rows; ONNX Runtime declares no root of its errors.
    """
    import onnxruntime  # of the extra; a comparison of embedding sets works without it

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    empty = {
        given.name: np.zeros((0, given.shape[1]), np.float32)
        for given in inputs
        if not given.name.startswith(f"{tower}_")
    }
    (wanted,) = (given.name for given in inputs if given.name.startswith(f"{tower}_"))
    (output,) = (made.name for made in session.get_outputs() if made.name.startswith(f"{tower}_"))
    count = min(limit, len(rows.ids))
    parts = [
        session.run([output], {**empty, wanted: rows.batch(start, min(start + _BATCH, count))})[0]
        for start in range(0, count, _BATCH)
    ]
    return np.concatenate(parts)
