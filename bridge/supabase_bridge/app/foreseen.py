"""Find the versions that a worker could not mirror before it tries, grouped by cause, for `sync --dry-run`."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import sqlalchemy as sa
from mlflow.exceptions import MlflowException

from supabase_bridge.app.runtime import Runtime
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.events import EventKind, NewEvent
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import check_model_key
from supabase_bridge.core.tags import MODEL_KEY_TAG, Status
from supabase_bridge.mirror.errors import ModelFileError, OutsideRootsError, RootMissingError
from supabase_bridge.mirror.mlmodel import parse_mlmodel
from supabase_bridge.mirror.selection import Selection
from supabase_bridge.mirror.sources import Sources, VersionSource
from supabase_bridge.outbox.artifact_roots import load_artifact_roots
from supabase_bridge.outbox.database import database_errors
from supabase_bridge.reconcile.findings import Finding, FindingKind, Remedy
from supabase_bridge.registry.errors import ModelNotFoundError, VersionNotFoundError
from supabase_bridge.registry.tables import mlflow_tables

EXAMINED = 100
"""The number of versions whose files are listed at most; each takes several queries of MLflow."""

_RELEASED = {Status.MIRRORED.value, Status.ACTIVE.value, Status.SUPERSEDED.value}
_Version = tuple[str, str, int]
"""Workspace, registered model, number."""

_SHOWN = 5
_BELOW_ROOT = re.compile(r"(?:/[0-9]+)?(?:/models)?/(?:m-)?[0-9a-f]{32}/artifacts(?:/.*)?$")
"""The part of an artifact's place below the root: experiment, run or logged model, path."""
_DESTINATION = 'artifacts_destination = "<the MLflow server\'s --artifacts-destination, as this machine sees it>"'


@dataclass(frozen=True, kw_only=True)
class _Cause:
    """The cause of failures; `root` is a place outside the allowed roots, `line` the setting that mends another."""

    text: str
    root: str | None = None
    line: str | None = None


def foreseen_failures(runtime: Runtime, events: Iterable[NewEvent]) -> Iterator[Finding]:
    """Yield one finding for each cause for which the mirroring of these events' versions would fail.

    The settings that the findings name are complete lines: each contains the roots of the earlier findings too.

    Args:
        events: The places of all their versions are compared with the allowed roots, and the files of EXAMINED versions
            are listed, the newest of each model first.

    Raises:
        RegistryUnavailableError: MLflow did not answer.
    """
    causes: dict[_Cause, list[tuple[str, int]]] = defaultdict(list)
    versions = _in_turn(events)
    recorded = partial(load_artifact_roots, runtime.outbox.engine)
    sources = Sources(runtime.registry, runtime.settings, open_store=runtime.stores, recorded=recorded)
    by_root = _RootCheck(runtime, sources)
    inside = []
    for version in versions:
        if (cause := by_root.cause(version)) is not None:
            causes[cause].append(version[1:])
        elif version in by_root:
            inside.append(version)
    for workspace, model, number in inside[:EXAMINED]:
        if (cause := _cause(runtime, sources, workspace, model, number)) is not None:
            causes[cause].append((model, number))
    roots = list(runtime.settings.allowed_sources)
    for cause, found in sorted(causes.items(), key=lambda item: -len(item[1])):
        line = cause.line
        if cause.root is not None:
            roots.append(cause.root)
            line = f"allowed_sources = {json.dumps(roots, ensure_ascii=False)}"
        shown = ", ".join(f"{model} v{version}" for model, version in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        mend = "" if line is None else f". If the files are yours, set in supabase-bridge.toml: {line}"
        yield Finding(
            kind=FindingKind.WOULD_FAIL,
            subject=f"{len(found)} versions" if len(found) > 1 else "1 version",
            detail=f"{cause.text} ({shown}{more}){mend}",
            remedy=Remedy.REPORTED,
        )
    if len(inside) > EXAMINED:
        yield Finding(
            kind=FindingKind.UNCHECKED,
            subject=f"{len(inside) - EXAMINED} versions",
            detail=f"the dry run listed the files of {EXAMINED} of {len(inside)} versions",
            remedy=Remedy.REPORTED,
        )


class _RootCheck:
    """Compares the places of all versions with the allowed roots, each distinct root once; it reads one query."""

    def __init__(self, runtime: Runtime, sources: Sources) -> None:
        states = mlflow_tables(runtime.outbox.engine).states
        assert states is not None  # noqa: S101 - MLflow's own tables have it
        columns = (states.c.workspace, states.c.model, states.c.version, states.c.place)
        released = states.c.status.in_(_RELEASED)
        query = sa.select(*columns).where(states.c.status.is_(None) | ~released)
        with database_errors("read its tables"), runtime.outbox.engine.connect() as connection:
            rows = connection.execute(query).all()
        self._places: dict[_Version, str] = {(row[0], row[1], row[2]): row[3] or "" for row in rows}
        self._sources = sources
        self._known: dict[tuple[str, str], _Cause | None] = {}

    def __contains__(self, version: _Version) -> bool:
        """Whether the version exists, and is not mirrored yet."""
        return version in self._places

    def cause(self, version: _Version) -> _Cause | None:
        """The cause if the version's files lie outside the allowed roots, or below a root that does not exist."""
        place = self._places.get(version)
        if place is None or urlsplit(place).scheme in {"runs", "models"}:
            return None
        about = (version[0], _BELOW_ROOT.sub("", place))
        if about not in self._known:
            self._known[about] = _refusal(lambda: self._sources.check_place(place, version[0]))
        return self._known[about]


def _in_turn(events: Iterable[NewEvent]) -> list[_Version]:
    """Return the versions that the events mirror: the newest of each model, then the second newest, and so on."""
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for event in events:
        if event.version is not None and event.kind not in {EventKind.VERSION_DELETED, EventKind.ALIAS_REMOVED}:
            numbers[event.workspace, event.model].add(event.version)
    ranked = [
        (rank, workspace, model, number)
        for (workspace, model), found in numbers.items()
        for rank, number in enumerate(sorted(found, reverse=True))
    ]
    return [(workspace, model, number) for _, workspace, model, number in sorted(ranked)]


def _cause(runtime: Runtime, sources: Sources, workspace: str, model: str, number: int) -> _Cause | None:
    """Return why the mirroring of a version would fail; None if nothing is in its way, or it was deleted meanwhile."""

    def look() -> _Cause | None:
        version = runtime.registry.version(model, number, workspace)
        tags = runtime.registry.model(model, workspace).tags
        key = check_model_key(tags.get(MODEL_KEY_TAG, model))
        source = sources.locate(version)
        selection = Selection(source, model=model, model_key=key, version=number)
        if not source.model_folder.files():
            return _Cause(text=f"no file lies where the worker looks, below {_root_of(source)}", line=_DESTINATION)
        with TemporaryDirectory() as directory:
            selection.onnx(_flavors(selection, Path(directory)))
        return None

    return _refusal(look)


def _refusal(look: Callable[[], _Cause | None]) -> _Cause | None:
    """Return what `look` returns, or the cause that it raises."""
    try:
        return look()
    except (ModelNotFoundError, VersionNotFoundError):
        return None
    except OutsideRootsError as error:
        root = _BELOW_ROOT.sub("", error.source)
        if root.strip("/") in {"", "file:"}:
            return _Cause(
                text="no directory that could be allowed: " + (error.source or "no place of files is registered")
            )
        text = f"the files are below {root}, outside the allowed roots; a location that a client chose is not trusted"
        return _Cause(text=text, root=root)
    except RootMissingError as error:
        text = f"the directory {error.root} of the files does not exist on this machine"
        return _Cause(text=text, line=_DESTINATION)
    except ModelFileError as error:
        return _Cause(text=error.problem.removesuffix(". Searched").removesuffix(". Found"))
    except (BridgeError, MlflowException, OSError, ImportError) as error:
        # An ImportError is the missing client of an artifact store, such as boto3.
        return _Cause(text=str(error).split("\n")[0])


def _root_of(source: VersionSource) -> str:
    return _BELOW_ROOT.sub("", source.model_folder.uri)


def _flavors(selection: Selection, directory: Path) -> dict[str, object]:
    found = selection.mlmodel()
    if found is None or (found.size_bytes or 0) > LIMIT_BYTES:
        return {}
    flavors: dict[str, object] = parse_mlmodel(found.folder.fetch(found.path, directory).read_bytes()).get(
        "flavors", {}
    )
    return flavors
