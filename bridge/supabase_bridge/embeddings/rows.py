"""Embeddings in memory: ids and a matrix; read from .npz and .parquet files, and checked before they are loaded."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from supabase_bridge.core.errors import os_errors
from supabase_bridge.embeddings.errors import EmbeddingsRefusedError

_ID_LIMIT = 500
_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The ids of items or users, and their embeddings as the rows of a matrix.

    Attributes:
        source: What error messages call them.
    """

    ids: Sequence[str]
    matrix: np.ndarray[Any, Any]
    source: str = "embeddings"

    @classmethod
    def none(cls) -> Embeddings:
        """Return no embeddings at all."""
        return cls(ids=(), matrix=np.zeros((0, 0), dtype=np.float32))

    @classmethod
    def read(cls, path: Path) -> Embeddings:
        """Read the arrays `ids` and `embeddings` of a .npz file, or the columns `id` and `embedding` of a .parquet.

        Raises:
            EmbeddingsRefusedError: the file has another form.
            LocalFileError: it cannot be read.
        """
        if path.suffix == ".parquet":
            return _read_parquet(path)
        if path.suffix != ".npz":
            raise EmbeddingsRefusedError(str(path), "expected a .npz or .parquet file")
        try:
            with os_errors(path), np.load(path, allow_pickle=False) as arrays:
                ids, matrix = arrays["ids"], arrays["embeddings"]
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            problem = "expected the arrays `ids` (texts or whole numbers) and `embeddings`"
            raise EmbeddingsRefusedError(str(path), f"{problem}: {error}") from error
        return cls(ids=[str(item) for item in ids.tolist()], matrix=matrix, source=str(path))

    def check(self, dimension: int) -> None:
        """Check that each row has a unique id, this width, finite values and length 1.

        Raises:
            EmbeddingsRefusedError: they are malformed.
        """
        if not len(self.ids) and not self.matrix.size:
            return
        if self.matrix.ndim != 2 or self.matrix.shape[1] != dimension:
            raise self._refused(f"expected rows of {dimension} numbers, found an array of {self.matrix.shape}")
        if len(self.ids) != self.matrix.shape[0]:
            raise self._refused(f"{len(self.ids)} ids for {self.matrix.shape[0]} rows")
        if len(set(self.ids)) != len(self.ids):
            raise self._refused("an id is there twice")
        for name in self.ids:
            if not name or len(name) > _ID_LIMIT or "\0" in name:
                raise self._refused(f"{name!r:.40} is no id: expected 1 to {_ID_LIMIT} characters without NUL")
        lengths = np.linalg.norm(self.matrix.astype(np.float32, copy=False), axis=1)
        # A row that is not finite has no such length either.
        wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE))
        if wrong.size:
            place = int(wrong[0])
            found = f"the embedding of {self.ids[place]!r:.40} has length {lengths[place]:.4g}"
            raise self._refused(f"{found}, not 1; normalize the rows ({wrong.size} of {len(self.ids)})")

    def _refused(self, reason: str) -> EmbeddingsRefusedError:
        return EmbeddingsRefusedError(self.source, reason)


def _read_parquet(path: Path) -> Embeddings:
    # pyarrow comes with MLflow, and not with the extra `pgvector`.
    import pyarrow
    from pyarrow import parquet

    try:
        with os_errors(path):
            table = parquet.read_table(path, columns=["id", "embedding"])
        ids = [str(item) for item in table.column("id").to_pylist()]
        column = table.column("embedding").combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        matrix = flat.reshape(len(ids), -1)
    except (KeyError, ValueError, AttributeError, pyarrow.ArrowException) as error:
        problem = "expected the columns `id` and `embedding` (a list of numbers of one length)"
        raise EmbeddingsRefusedError(str(path), f"{problem}: {error}") from error
    return Embeddings(ids=ids, matrix=matrix, source=str(path))
