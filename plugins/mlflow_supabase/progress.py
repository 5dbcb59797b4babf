"""The progress of one large upload, shown as MLflow shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.environment_variables import MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE
from mlflow.utils.file_utils import ArtifactProgressBar

from supabase_bridge.object_store import Progress


@contextmanager
def upload_progress(file: Path) -> Iterator[Progress]:
    """MLflow's own bar, which it shows from its own threshold on (500 MB), and unless MLflow is told not to."""
    step: int = MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE.get()
    waiting = 0

    with ArtifactProgressBar.chunks(file.stat().st_size, f"Uploading {file}", step) as bar:

        def advance(size_bytes: int) -> None:
            nonlocal waiting
            waiting += size_bytes
            while waiting >= step:
                waiting -= step
                bar.update()

        yield advance
        if waiting:
            bar.update()
