"""Choose the files of a version that become the files of its release. Pure: it reads names, not files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from supabase_bridge.core.layout import FEATURES_PREFIX, MLMODEL_NAME, TOWERS, features_problem
from supabase_bridge.core.tags import MODEL_GUIDE, TOWERS_TAG
from supabase_bridge.mirror.errors import ModelFileError
from supabase_bridge.mirror.source_files import SourceFile
from supabase_bridge.mirror.sources import VersionSource

_EVALUATION_FOLDERS = {"eval", "evaluation", "val", "valid", "validation"}
_STATE_DICT_SUFFIXES = (".pt", ".pth", ".pt2")
"""The suffixes of PyTorch files, in the order of preference; a suffix counts in any case of its letters."""
_NAME_IT = "Keep one of them, or name it <model>_latest"

_CONVERTIBLE = ("sklearn", "pytorch", "lightgbm", "xgboost", "tensorflow", "keras")
"""MLflow's flavors of models that have converters to ONNX."""


class Selection:
    """The files of a version, listed once, and the rules that choose from them.

    The rules for each kind of file, in this order:

    1. the file that MLmodel names
    2. `<model>_latest.<ext>`, the specification's name for the newest training
    3. the only file with the extension

    Rules 2 and 3 search the model's directory first, and the run's artifacts only if they find nothing there. Of
    several extensions of one kind the first that occurs counts.
    """

    def __init__(self, source: VersionSource, *, model: str, model_key: str, version: int) -> None:
        run_files = [] if source.run_folder is None else source.run_folder.files()
        self._model_files, of_model = _without_features(source.model_folder.files())
        self._run_files, of_run = _without_features(run_files)
        self._features = of_model or of_run
        self._source = source
        self._model = model
        self._model_key = model_key
        self._version = version

    def mlmodel(self) -> SourceFile | None:
        """Return the MLmodel file at the top of the model's directory."""
        return self._at_top(self._model_files, "MLmodel")

    def onnx(self, flavors: Mapping[str, Any]) -> SourceFile:
        """Return the ONNX file.

        Args:
            flavors: MLmodel's flavors; empty for a directory without one.

        Raises:
            ModelFileError: there is none, or there are several and no rule chooses.
        """
        flavor = flavors.get("onnx")
        named = flavor.get("data") if isinstance(flavor, Mapping) else None
        if isinstance(named, str) and (found := self._at_top(self._model_files, named)):
            return found
        chosen = self._choose(".onnx")
        if chosen is None:
            folders = [folder for folder in (self._source.model_folder, self._source.run_folder) if folder]
            searched = [folder.uri for folder in folders]
            kinds = [name for name in _CONVERTIBLE if name in flavors]
            logged = f" (it was logged as {kinds[0]})" if kinds else ""
            advice = "Convert the model, log it with mlflow.onnx.log_model(...) and register that version"
            problem = f"no ONNX file{logged}. {advice}, see {MODEL_GUIDE}. Searched"
            raise ModelFileError(self._model, self._version, problem, tuple(searched))
        return chosen

    def state_dict(self) -> SourceFile | None:
        """Return the PyTorch state_dict, or None where the training logged none.

        Raises:
            ModelFileError: there are several and no rule chooses.
        """
        return self._choose(*_STATE_DICT_SUFFIXES)

    def features(self) -> list[SourceFile]:
        """Return the files of the folder `features/`, in the model's directory or else among the run's artifacts.

        A folder that holds an MLmodel is a logged model. No other rule chooses a file of the features.

        Raises:
            ModelFileError: they are too many or too large, or no object can have the name of one.
        """
        if problem := features_problem({file.path: file.size_bytes or 0 for file in self._features}):
            raise ModelFileError(self._model, self._version, "unsuitable features", (problem,))
        return self._features

    def towers(self) -> list[str]:
        """Return the towers that the run's tag `supabase.towers` names.

        Raises:
            ModelFileError: it names something else.
        """
        wanted = [name.strip() for name in self._source.facts.tags.get(TOWERS_TAG, "").split(",") if name.strip()]
        if unknown := [name for name in wanted if name not in TOWERS]:
            problem = f"a tag {TOWERS_TAG} with other names than {' and '.join(TOWERS)}"
            raise ModelFileError(self._model, self._version, problem, tuple(unknown))
        return [name for name in TOWERS if name in wanted]

    def beside_mlmodel(self, name: str) -> SourceFile | None:
        """Return a file beside MLmodel, such as one that describes the model's Python environment."""
        return self._at_top(self._model_files, name)

    def document(self, name: str) -> SourceFile | None:
        """Return a document by its name: the one in the model's directory, or the run's nearest to the top.

        Of several at one depth, the one in a folder of the evaluation counts.

        Raises:
            ModelFileError: there are several at one depth, and not exactly one is of the evaluation.
        """
        for files in (self._model_files, self._run_files):
            found = [file for file in files if file.name == name]
            top = min((file.path.count("/") for file in found), default=0)
            highest = [file for file in found if file.path.count("/") == top]
            of_evaluation = [file for file in highest if _EVALUATION_FOLDERS & {*file.path.lower().split("/")[:-1]}]
            advice = "Keep one of them at this depth, or put it into a folder named eval or validation"
            chosen = self._only(of_evaluation if len(of_evaluation) == 1 else highest, advice)
            if chosen is not None:
                return chosen
        return None

    def beside(self, file: SourceFile, path: str) -> SourceFile | None:
        """Return the file at `path` relative to the folder of `file`."""
        above = file.path.rpartition("/")[0]
        files = self._model_files if file.folder is self._source.model_folder else self._run_files
        return self._at_top(files, f"{above}/{path}" if above else path)

    def _choose(self, *suffixes: str) -> SourceFile | None:
        for files in (self._model_files, self._run_files):
            of_kind = [[file for file in files if file.name.lower().endswith(end)] for end in suffixes]
            newest = f"{self._model_key}_latest"
            named = [
                [file for file in found if file.name[: -len(end)] == newest]
                for found, end in zip(of_kind, suffixes, strict=True)
            ]
            for candidates in (*named, *of_kind):
                if (chosen := self._only(candidates)) is not None:
                    return chosen
        return None

    def _only(self, found: Sequence[SourceFile], advice: str = _NAME_IT) -> SourceFile | None:
        if len(found) > 1:
            paths = [file.path for file in found]
            problem = f"{len(found)} candidates and no rule to choose. {advice}, see {MODEL_GUIDE}. Found"
            raise ModelFileError(self._model, self._version, problem, tuple(paths))
        return found[0] if found else None

    @staticmethod
    def _at_top(files: Sequence[SourceFile], path: str) -> SourceFile | None:
        return next((file for file in files if file.path == path), None)


def _without_features(files: Sequence[SourceFile]) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return the files outside the folder of features, and those in it."""
    if any(file.path == FEATURES_PREFIX + MLMODEL_NAME for file in files):
        return list(files), []
    inside = [file for file in files if file.path.startswith(FEATURES_PREFIX)]
    return [file for file in files if not file.path.startswith(FEATURES_PREFIX)], inside
