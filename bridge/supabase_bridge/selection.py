"""Which of a version's files become the release's files. Pure: names in, a choice or a named error out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from supabase_bridge.errors import ModelFileAmbiguousError, ModelFileMissingError
from supabase_bridge.source import VersionSource
from supabase_bridge.source_folder import SourceFile

_STATE_DICT_SUFFIXES = (".pt", ".pth", ".pt2")
"""What torch.save and MLflow write, in the order of preference: a state_dict, a pickled model, an exported program."""


class Selection:
    """A version's files, found once and chosen from by rule.

    The rules, for each kind of file, in this order: what MLmodel names; then, first in the model's own directory and
    only if nothing is there among the run's artifacts, `<model>_latest.<ext>`, the specification's name for the newest
    training, and the only file with the extension. Of several extensions of one kind the first that is there counts.
    """

    def __init__(self, source: VersionSource, *, model: str, model_key: str, version: int) -> None:
        self._model_files = source.model_folder.files()
        self._run_files = [] if source.run_folder is None else source.run_folder.files()
        self._source = source
        self._model = model
        self._model_key = model_key
        self._version = version

    def mlmodel(self) -> SourceFile | None:
        """The MLmodel file at the top of the model's directory."""
        return self._at_top(self._model_files, "MLmodel")

    def onnx(self, flavors: Mapping[str, Any]) -> SourceFile:
        """The ONNX file.

        Args:
            flavors: MLmodel's flavors; empty for a directory without one.

        Raises:
            ModelFileMissingError: there is none.
            ModelFileAmbiguousError: there are several and no rule chooses.
        """
        flavor = flavors.get("onnx")
        named = flavor.get("data") if isinstance(flavor, Mapping) else None
        if isinstance(named, str) and (found := self._at_top(self._model_files, named)):
            return found
        chosen = self._choose(".onnx")
        if chosen is None:
            searched = self._source.model_folder.uri
            if self._source.run_folder is not None:
                searched += f" or {self._source.run_folder.uri}"
            raise ModelFileMissingError(self._model, self._version, searched)
        return chosen

    def state_dict(self) -> SourceFile | None:
        """The PyTorch state_dict, or None where the training logged none.

        Raises:
            ModelFileAmbiguousError: there are several and no rule chooses.
        """
        return self._choose(*_STATE_DICT_SUFFIXES)

    def environment(self, name: str) -> SourceFile | None:
        """A file beside MLmodel that says in which Python environment the model runs."""
        return self._at_top(self._model_files, name)

    def document(self, name: str) -> SourceFile | None:
        """A document by its name: the one in the model's directory, or the run's nearest to the top.

        Raises:
            ModelFileAmbiguousError: the run has several at one depth.
        """
        for files in (self._model_files, self._run_files):
            found = [file for file in files if file.name == name]
            top = min((file.path.count("/") for file in found), default=0)
            chosen = self._only([file for file in found if file.path.count("/") == top])
            if chosen is not None:
                return chosen
        return None

    def beside(self, file: SourceFile, path: str) -> SourceFile | None:
        """The file at `path` relative to the folder that `file` lies in."""
        above = file.path.rpartition("/")[0]
        files = self._model_files if file.folder is self._source.model_folder else self._run_files
        return self._at_top(files, f"{above}/{path}" if above else path)

    def _choose(self, *suffixes: str) -> SourceFile | None:
        for files in (self._model_files, self._run_files):
            named = [[file for file in files if file.name == f"{self._model_key}_latest{end}"] for end in suffixes]
            of_kind = [[file for file in files if file.name.endswith(end)] for end in suffixes]
            for candidates in (*named, *of_kind):
                if (chosen := self._only(candidates)) is not None:
                    return chosen
        return None

    def _only(self, found: Sequence[SourceFile]) -> SourceFile | None:
        if len(found) > 1:
            raise ModelFileAmbiguousError(self._model, self._version, tuple(file.path for file in found))
        return found[0] if found else None

    @staticmethod
    def _at_top(files: Sequence[SourceFile], path: str) -> SourceFile | None:
        return next((file for file in files if file.path == path), None)
