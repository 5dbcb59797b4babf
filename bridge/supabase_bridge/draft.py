"""A release before it is uploaded: a version's files chosen, fetched and joined, its documents read."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supabase_bridge import onnx_file
from supabase_bridge.documents import LIMIT_BYTES, parse_object
from supabase_bridge.errors import InvalidDocumentError, InvalidModelFileError
from supabase_bridge.layout import ENVIRONMENT_NAMES, META_NAME, METRICS_NAME, SUMMARY_NAME
from supabase_bridge.mlflow_model import parse_mlmodel
from supabase_bridge.model_file import ModelFile
from supabase_bridge.object_store.digest import file_record
from supabase_bridge.object_store.local_files import local_error
from supabase_bridge.onnx_file import Tensors
from supabase_bridge.selection import Selection
from supabase_bridge.source_folder import SourceFile


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The parts of a release as local files and parsed documents.

    Attributes:
        onnx: One ONNX file, not checked yet.
        tensors: What it takes and gives.
        state_dict: The PyTorch state_dict; None where the training logged none.
        meta: The job's own model_meta.json; empty where it wrote none.
        metrics: The job's own metrics.json; empty where it wrote none.
        summary: The job's own summary.md; None where it wrote none.
        mlmodel: The version's MLmodel; empty where it has none.
        environment: The version's own files of `ENVIRONMENT_NAMES`, by name.
    """

    onnx: ModelFile
    tensors: Tensors
    state_dict: ModelFile | None
    meta: Mapping[str, Any]
    metrics: Mapping[str, Any]
    summary: bytes | None
    mlmodel: Mapping[str, Any]
    environment: Mapping[str, bytes]

    @property
    def size_bytes(self) -> int:
        """How much is placed, the documents aside."""
        return sum(file.record.size_bytes for file in (self.onnx, self.state_dict) if file is not None)


def draft_release(selection: Selection, directory: Path) -> Draft:
    """Fetch what a release is made of into `directory`, each file hashed as it comes.

    Of what lies in the project already, sealed by the artifact repository, only what the checks look at is fetched.

    Raises:
        ModelFileMissingError, ModelFileAmbiguousError: see `Selection`.
        InvalidModelFileError: the ONNX file is corrupt, or its weights are missing or too large for one file.
        InvalidDocumentError: a document of the job's is no JSON object, or too large.
        LocalFileError: `directory` cannot be written.
    """
    meta = _read(selection.document(META_NAME), directory)
    metrics = _read(selection.document(METRICS_NAME), directory)
    mlmodel = _read(selection.mlmodel(), directory)
    described = {} if mlmodel is None else parse_mlmodel(mlmodel)
    found = {name: _read(selection.environment(name), directory) for name in ENVIRONMENT_NAMES}
    state_dict = selection.state_dict()
    chosen = _chosen(selection, described.get("flavors", {}))
    with ThreadPoolExecutor(1, thread_name_prefix="taking") as beside:
        weights = None if state_dict is None else beside.submit(state_dict.take, _own(directory, "state_dict"))
        onnx, tensors = _onnx(selection, chosen, directory)
    return Draft(
        onnx=onnx,
        tensors=tensors,
        state_dict=None if weights is None else weights.result(),
        meta={} if meta is None else parse_object(meta, META_NAME),
        metrics={} if metrics is None else parse_object(metrics, METRICS_NAME),
        summary=_read(selection.document(SUMMARY_NAME), directory),
        mlmodel=described,
        environment={name: data for name, data in found.items() if data is not None},
    )


def _chosen(selection: Selection, flavors: Mapping[str, Any]) -> SourceFile:
    """The version's ONNX file; one that is too large to be a model is refused before it is fetched."""
    chosen = selection.onnx(flavors)
    if chosen.size_bytes is not None:
        onnx_file.check_size(chosen.path, chosen.size_bytes)
    return chosen


def _onnx(selection: Selection, chosen: SourceFile, directory: Path) -> tuple[ModelFile, Tensors]:
    """The version's ONNX model as one file, and what it takes and gives."""
    # It is tried out before it is released, and that takes all of it, wherever it lies.
    taken = chosen.take(_own(directory, "onnx"), whole=True)
    graph = onnx_file.read_graph(taken.local)
    if beside := graph.external_files:
        whole = _own(directory, "joined") / chosen.name
        onnx_file.join(_gather(selection, chosen, taken.local, beside, _own(directory, "parts")), whole)
        taken = ModelFile(record=file_record(whole), path=whole)
    return taken, graph.tensors


def _gather(selection: Selection, chosen: SourceFile, fetched: Path, beside: tuple[str, ...], directory: Path) -> Path:
    """The ONNX file and the weight files it names, in one directory of their own."""
    model = directory / chosen.name
    _copy(fetched, model)
    for path in beside:
        found = selection.beside(chosen, path)
        if found is None:
            raise InvalidModelFileError(chosen.path, f"its weights are in {path!r}, which is not among the artifacts")
        target = directory / path
        _make(target.parent)
        _copy(found.fetch(_own(directory, "fetched")), target)
    return model


def _copy(fetched: Path, target: Path) -> None:
    try:
        shutil.copyfile(fetched, target)
    except OSError as error:
        raise local_error(target, error) from error


def _read(found: SourceFile | None, directory: Path) -> bytes | None:
    if found is None:
        return None
    if found.size_bytes is not None and found.size_bytes > LIMIT_BYTES:
        raise InvalidDocumentError(found.path, f"larger than {LIMIT_BYTES} bytes")
    fetched = found.fetch(_own(directory, found.name))
    try:
        with fetched.open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise local_error(fetched, error) from error
    if len(data) > LIMIT_BYTES:
        raise InvalidDocumentError(found.path, f"larger than {LIMIT_BYTES} bytes")
    return data


def _own(directory: Path, name: str) -> Path:
    """A folder of its own for each part, so that equal names do not meet."""
    path = directory / name
    _make(path)
    return path


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise local_error(directory, error) from error
