"""Assemble a release as local files: choose, fetch, join and hash a version's files, and read its documents."""

from __future__ import annotations

import codecs
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from supabase_bridge.core.errors import InvalidDocumentError, os_errors
from supabase_bridge.core.json_objects import LIMIT_BYTES, parse_training_object
from supabase_bridge.core.layout import ENVIRONMENT_NAMES, META_NAME, METRICS_NAME, SUMMARY_NAME, ReleasePaths
from supabase_bridge.mirror import onnx_file
from supabase_bridge.mirror.checks.sandbox import Checks
from supabase_bridge.mirror.errors import Fault, ModelFileError, ModelRejectedError
from supabase_bridge.mirror.mlmodel import parse_mlmodel
from supabase_bridge.mirror.onnx_file import NO_GIVEN_INPUT, GivenInput, Structure
from supabase_bridge.mirror.selection import Selection
from supabase_bridge.mirror.source_files import ModelFile, SourceFile
from supabase_bridge.storage.errors import StoreUnavailableError
from supabase_bridge.storage.hashing import hash_file


@dataclass(frozen=True, kw_only=True)
class AssembledRelease:
    """The parts of a release as local files and parsed documents.

    Attributes:
        onnx: One ONNX file, not checked yet.
        structure: Its inputs and outputs.
        state_dict: The PyTorch state_dict; None where the training logged none.
        towers: The ONNX files of single towers, by the tower; each is a part of `onnx`.
        features: The files of features, by their names in the release.
        meta: The training's own model_meta.json; empty where it wrote none.
        metrics: The training's own metrics.json; empty where it wrote none.
        summary: The training's own summary.md; None where it wrote none.
        mlmodel: The version's MLmodel; empty where it has none.
        environment: The version's own files of `ENVIRONMENT_NAMES`, by name.
        given: The version's own description of the model's input, for the trial.
        notes: What the release leaves out or reads otherwise than the training wrote it, for people.
        fetch_onnx: Fetches `onnx` where it lies in the project only; see `local_onnx`.
    """

    onnx: ModelFile
    structure: Structure
    state_dict: ModelFile | None
    meta: Mapping[str, Any]
    metrics: Mapping[str, Any]
    summary: bytes | None
    mlmodel: Mapping[str, Any]
    environment: Mapping[str, bytes]
    towers: Mapping[str, ModelFile] = field(default_factory=dict)
    features: Mapping[str, ModelFile] = field(default_factory=dict)
    given: GivenInput = NO_GIVEN_INPUT
    notes: tuple[str, ...] = ()
    fetch_onnx: Callable[[], ModelFile] | None = None

    def local_onnx(self) -> ModelFile:
        """Return the ONNX file with a local path; one that lies in the project only is fetched now.

        Raises:
            StoreUnavailableError: it was replaced meanwhile.
        """
        return self.onnx if self.fetch_onnx is None else self.fetch_onnx()

    @property
    def size_bytes(self) -> int:
        """The size of the model files, without the documents."""
        files = (self.onnx, self.state_dict, *self.towers.values(), *self.features.values())
        return sum(file.record.size_bytes for file in files if file is not None)

    def model_files(self, paths: ReleasePaths) -> dict[str, ModelFile]:
        """Return the files that are no documents, by their names in the release."""
        weights = {} if self.state_dict is None else {paths.state_dict_name: self.state_dict}
        towers = {paths.tower_name(tower): file for tower, file in self.towers.items()}
        return {paths.onnx_name: self.onnx, **weights, **towers, **self.features}


def assemble_release(selection: Selection, directory: Path, checks: Checks) -> AssembledRelease:
    """Fetch the parts of a release into `directory`, and hash each file while it is fetched.

    A file that lies in the project with an authenticated digest is not fetched: of a state_dict, and of an ONNX file
    whose structure a few parts show, only those are read.

    Raises:
        ModelFileError: see `Selection`.
        ModelRejectedError: the ONNX file is corrupt, or its weights are missing or too large for one file; or the
            state_dict is unsafe; or a tower cannot be cut out.
        CheckInterruptedError: see `Checks.structure`.
        InvalidDocumentError: a document of the training job is no JSON object, or too large.
        LocalFileError: `directory` cannot be written.
    """
    notes: list[str] = []
    meta, metrics = (_object(selection, name, directory, notes.append) for name in (META_NAME, METRICS_NAME))
    mlmodel = _read(selection.mlmodel(), directory)
    described = {} if mlmodel is None else parse_mlmodel(mlmodel)
    found = {name: _read(selection.beside_mlmodel(name), directory) for name in ENVIRONMENT_NAMES}
    state_dict = _chosen_state_dict(selection, notes.append)
    features = _chosen_features(selection, notes.append)
    chosen = selection.onnx(described.get("flavors", {}))
    # A file that is too large to be a model is refused before it is fetched.
    onnx_file.check_size(chosen.path, chosen.size_bytes or 0)
    with ThreadPoolExecutor(1, thread_name_prefix="state-dict") as beside:
        weights = None if state_dict is None else beside.submit(_state_dict, state_dict, directory, checks)
        vocabularies = {
            file.path: beside.submit(file.folder.snapshot, file.path, _own(directory / "features", str(number)))
            for number, file in enumerate(features)
        }
        onnx, structure = _onnx(selection, chosen, directory, checks)
    notes += structure.record_notes
    kept, left_out = (None, None) if weights is None else weights.result()
    notes += [left_out] if left_out is not None else []
    summary = _read(selection.document(SUMMARY_NAME), directory)
    return AssembledRelease(
        onnx=onnx,
        structure=structure,
        state_dict=kept,
        towers={tower: _tower(tower, onnx, directory, checks) for tower in selection.towers()},
        features={name: snapshot.result() for name, snapshot in vocabularies.items()},
        meta=meta,
        metrics=metrics,
        summary=None if summary is None else _utf8(summary, notes.append),
        mlmodel=described,
        environment={name: data for name, data in found.items() if data is not None},
        given=_given(selection, described, directory),
        notes=tuple(notes),
        fetch_onnx=partial(_fetch_again, chosen, onnx, directory) if onnx.path is None else None,
    )


def _object(selection: Selection, name: str, directory: Path, note: Callable[[str], None]) -> dict[str, Any]:
    """Read a document of the training job; empty where it wrote none."""
    data = _read(selection.document(name), directory)
    if data is None:
        return {}
    value, left_out = parse_training_object(data, name)
    for path in left_out:
        note(f"{name}: {path[:200]} is not finite and is left out")
    return value


def _chosen_state_dict(selection: Selection, note: Callable[[str], None]) -> SourceFile | None:
    """Return the PyTorch file; the release does without it where no rule chooses one."""
    try:
        return selection.state_dict()
    except ModelFileError as error:
        note(f"the PyTorch files are left out: {error}")
        return None


def _chosen_features(selection: Selection, note: Callable[[str], None]) -> list[SourceFile]:
    """Return the files of features; the release does without all of them where one is unsuitable."""
    try:
        return selection.features()
    except ModelFileError as error:
        note(f"features/ is left out: {error}")
        return []


def _state_dict(chosen: SourceFile, directory: Path, checks: Checks) -> tuple[ModelFile | None, str | None]:
    """Fetch the PyTorch file and check it; one that is unsafe is an error.

    Returns:
        The file and None; where it has another form than a state_dict, None and a note.
    """
    file = chosen.folder.snapshot(chosen.path, _own(directory, "state_dict"))
    try:
        checks.state_dict(file)
    except ModelRejectedError as error:
        if error.fault is not Fault.OTHER_FORM:
            raise
        return None, f"the PyTorch file is left out: {error}"
    return file, None


def _utf8(summary: bytes, note: Callable[[str], None]) -> bytes:
    """Return a text in UTF-8; of another encoding, the most probable reading."""
    try:
        return summary.decode("utf-8-sig").encode()
    except UnicodeDecodeError:
        encoding = "utf-16" if summary.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else _guessed(summary)
    note(f"{SUMMARY_NAME} is not UTF-8: it was read as {encoding}, and letters may be wrong")
    return summary.decode(encoding, errors="replace").encode()


def _guessed(text: bytes) -> str:
    """Return the encoding in which a text has Japanese syllables, else that of Western Europe."""
    for encoding in ("cp932", "euc_jp"):
        with suppress(UnicodeDecodeError):
            if any("\u3041" <= character <= "\u30ff" for character in text.decode(encoding)):
                return encoding
    return "cp1252"


def _onnx(selection: Selection, chosen: SourceFile, directory: Path, checks: Checks) -> tuple[ModelFile, Structure]:
    """Fetch the version's ONNX model as one file, unless it can be copied as it is, and read its structure."""
    fetched = chosen.folder.snapshot(chosen.path, _own(directory, "onnx"))
    if fetched.path is None:
        structure = None if selection.towers() else checks.structure_in_parts(fetched)
        if structure is not None and not structure.external_files:
            return fetched, structure
        fetched = chosen.folder.snapshot(chosen.path, _own(directory, "onnx"), whole=True)
    structure = checks.structure(fetched.local)
    if not structure.external_files:
        return fetched, structure
    weights: dict[str, SourceFile] = {}
    for path in structure.external_files:
        if (found := selection.beside(chosen, path)) is None:
            problem = f"its weights are in {path!r}, which is not among the artifacts"
            raise ModelRejectedError(chosen.path, Fault.INVALID, problem)
        weights[path] = found
    total = fetched.record.size_bytes + sum(file.size_bytes or 0 for file in weights.values())
    onnx_file.check_size(chosen.path, total)
    whole = _own(directory, "joined") / chosen.name
    parts = _own(directory, "parts")
    _copy(fetched.local, parts / fetched.name)
    for path, file in weights.items():
        _own(parts, path.rpartition("/")[0])
        _copy(file.folder.fetch(file.path, _own(directory, "fetched")), parts / path)
    checks.join(parts / fetched.name, whole, size_bytes=total)
    return ModelFile(record=hash_file(whole), path=whole), structure


def _fetch_again(chosen: SourceFile, known: ModelFile, directory: Path) -> ModelFile:
    """Fetch an ONNX file of the project for its trial; raises StoreUnavailableError where it is another one now."""
    fetched = chosen.folder.snapshot(chosen.path, _own(directory, "onnx"), whole=True)
    if fetched.record != known.record:
        raise StoreUnavailableError(chosen.folder.uri, f"fetching {chosen.path}", "it was replaced meanwhile")
    return fetched


def _tower(tower: str, onnx: ModelFile, directory: Path, checks: Checks) -> ModelFile:
    """Cut one tower from the version's ONNX file."""
    target = _own(directory, f"{tower}-tower") / f"{tower}.onnx"
    checks.cut_tower(onnx.local, target, tower)
    return ModelFile(record=hash_file(target), path=target)


def _given(selection: Selection, mlmodel: Mapping[str, Any], directory: Path) -> GivenInput:
    """Return the version's own input example and signature, as far as MLmodel names them in MLflow's form."""
    example, signature = mlmodel.get("saved_input_example_info"), mlmodel.get("signature")
    name = example.get("artifact_path") if isinstance(example, Mapping) else None
    found = selection.beside_mlmodel(name) if isinstance(name, str) else None
    inputs = signature.get("inputs") if isinstance(signature, Mapping) else None
    data: bytes | None = None
    # An example that is too large is left out, because the made inputs can take its place.
    with suppress(InvalidDocumentError):
        data = _read(found, directory)
    return GivenInput(example=data, signature=inputs if isinstance(inputs, str) else None)


def _copy(fetched: Path, target: Path) -> None:
    with os_errors(target):
        shutil.copyfile(fetched, target)


def _read(found: SourceFile | None, directory: Path) -> bytes | None:
    if found is None:
        return None
    if found.size_bytes is not None and found.size_bytes > LIMIT_BYTES:
        raise InvalidDocumentError(found.path, f"larger than {LIMIT_BYTES} bytes")
    fetched = found.folder.fetch(found.path, _own(directory, found.name))
    with os_errors(fetched), fetched.open("rb") as file:
        data = file.read(LIMIT_BYTES + 1)
    if len(data) > LIMIT_BYTES:
        raise InvalidDocumentError(found.path, f"larger than {LIMIT_BYTES} bytes")
    return data


def _own(directory: Path, name: str) -> Path:
    """Make a folder for one part, so that parts with equal names do not collide."""
    path = directory / name
    with os_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path
