"""The progress of one large upload, shown as MLflow shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.environment_variables import MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE
from mlflow.utils.file_utils import ArtifactProgressBar

from supabase_bridge.object_store import Progress
from supabase_bridge.object_store.local_files import local_error


@contextmanager
def upload_progress(file: Path) -> Iterator[Progress]:
    """MLflow's own bar, which it shows from its own threshold on (500 MB), and unless MLflow is told not to.

    Raises:
        LocalFileError: the file is not there any more.
    """
    step: int = MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE.get()
    waiting = 0
    try:
        size_bytes = file.stat().st_size
    except OSError as error:
        raise local_error(file, error) from error

    with ArtifactProgressBar.chunks(size_bytes, f"Uploading {file}", step) as bar:

        def advance(size_bytes: int) -> None:
            nonlocal waiting
            waiting += size_bytes
            while waiting >= step:
                waiting -= step
                bar.update()

        yield advance
        if waiting:
            bar.update()
