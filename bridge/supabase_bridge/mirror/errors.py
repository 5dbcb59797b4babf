"""Errors of the mirror package: model files, checks and sources."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from supabase_bridge.core.errors import BridgeError


class ModelFileError(BridgeError):
    """A model version has no file of a kind that a release needs, or several and no rule chooses between them.

    Attributes:
        paths: The candidates; where there is none, the places that were searched.
    """

    template = "{model} version {version} has {problem}: {shown}"
    rejects = True
    model: str
    version: int
    problem: str
    paths: tuple[str, ...]

    @property
    def shown(self) -> str:
        return ", ".join(self.paths)


class Fault(Enum):
    """The kind of a fault of a model's file; the value is the verb of the message."""

    INVALID = "is not a valid ONNX model"
    FAILED = "did not pass the checks"
    UNLOADABLE = "cannot be loaded by its consumers"
    UNSAFE = "is not a safe PyTorch file"
    OTHER_FORM = "is not a state_dict as torch.save writes it"


class ModelRejectedError(BridgeError):
    """A model's file is invalid, fails a check, or could run code when it is loaded."""

    template = "{name} {fault.value}: {problem}"
    rejects = True
    name: str
    fault: Fault
    problem: str


class CheckInterruptedError(BridgeError):
    """Another process or the system stopped the check of a model's files; its result is unknown."""

    template = "the check of {name} was stopped before its end"
    retryable = True
    name: str


class SourceRefusedError(BridgeError):
    """The bridge does not read a model version's files: their place is not allowed, or is no place for files."""

    template = "source {source!r:.200} is not read: {problem}"
    source: str
    problem: str

    @classmethod
    def of_another_run(cls, source: str) -> SourceRefusedError:
        """Return the error about a source outside the directories of the version's own run and logged model."""
        problem = "it lies outside the artifacts of the version's own run and of its logged model"
        return cls(source, f"{problem}. Register the version from the run that logged its files")

    @classmethod
    def holds_runs(cls, source: str) -> SourceRefusedError:
        """Return the error about a source that is a root, or holds the artifacts of runs."""
        return cls(source, "it holds the artifacts of several runs. Name the directory of one model")


class OutsideRootsError(SourceRefusedError):
    """A source lies outside the allowed roots; `allowed` are these."""

    def __init__(self, source: str, allowed: Sequence[str]) -> None:
        advice = "Add its root to allowed_sources in the settings if it is yours"
        super().__init__(source, f"it is outside the allowed roots ({', '.join(allowed)}). {advice}")


class RootMissingError(BridgeError):
    """The directory that holds the artifacts does not exist on the worker's machine; it may not be mounted yet."""

    template = (
        "source {source!r:.200} is not read: the directory {root} does not exist on this machine. Mount it here, set "
        "artifacts_destination to the server's --artifacts-destination, or set tracking_uri to the server's address"
    )
    retryable = True
    source: str
    root: Path
