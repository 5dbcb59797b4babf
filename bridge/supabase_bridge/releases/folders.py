"""The folders of a bucket as one listing shows them: a release, or a channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from supabase_bridge.core.errors import InvalidNameError
from supabase_bridge.core.layout import (
    ARCHIVED_META_NAME,
    HISTORY_NAME,
    MANIFEST_NAME,
    META_NAME,
    METRICS_NAME,
    ReleasePaths,
    RunId,
    is_hold,
    is_removal,
)
from supabase_bridge.storage.base import ObjectInfo


@dataclass(frozen=True, kw_only=True)
class Folder:
    """One folder of a model in a listing: a release, or a channel.

    Attributes:
        newest_at: When its newest object was written.
        names: The files that every complete release has, as far as they are there.
        logged: The newest log entry of a channel.
        published: The manifest of a channel.
        archived: It has the commit record of a release that retention removed.
        model_bytes: The size of the model files without those of single towers, and `tower_bytes` that of those.
        foreign: The number of objects that no part of the bridge writes into a release.
        marks: Marks of removals, and holds of commands.
    """

    model_key: str
    name: str
    newest_at: datetime
    names: frozenset[str] = field(default_factory=frozenset)
    logged: ObjectInfo | None = None
    published: ObjectInfo | None = None
    archived: bool = False
    model_bytes: int = 0
    tower_bytes: int = 0
    foreign: int = 0
    marks: tuple[ObjectInfo, ...] = ()

    @property
    def path(self) -> str:
        return f"{self.model_key}/{self.name}/"

    @property
    def run_id(self) -> RunId | None:
        """The run_id in its name; None for a folder that is no release."""
        try:
            return RunId.parse(self.name)
        except InvalidNameError:
            return None

    @property
    def held_since(self) -> datetime | None:
        """When the newest hold of a command was written."""
        holds = [item.modified_at for item in self.marks if is_hold(item.key.rpartition("/")[2])]
        return max(holds, default=None)


def folders(objects: Iterable[ObjectInfo]) -> Iterator[Folder]:
    """Group a sorted listing into the folders of models; objects in other places are skipped."""
    in_folders = (item for item in objects if item.key.count("/") >= 2)
    for (model_key, name), group in groupby(in_folders, key=lambda item: tuple(item.key.split("/", 2)[:2])):
        yield _folder(model_key, name, group)


def _folder(model_key: str, name: str, objects: Iterable[ObjectInfo]) -> Folder:
    names: set[str] = set()
    marks: list[ObjectInfo] = []
    newest_at, logged, published = None, None, None
    archived, model_bytes, tower_bytes, foreign = False, 0, 0, 0
    paths = _paths(model_key, name)
    required = {META_NAME, METRICS_NAME, f"{model_key}_{name}.onnx"}
    for item in objects:
        rest = item.key.split("/", 2)[2]
        if paths is not None and (is_removal(rest) or is_hold(rest)):
            marks.append(item)
            continue
        newest_at = item.modified_at if newest_at is None else max(newest_at, item.modified_at)
        if rest.startswith(f"{HISTORY_NAME}/"):
            logged = item
        elif rest == MANIFEST_NAME:
            published = item
        elif rest in required:
            names.add(rest)
        if paths is not None and paths.is_tower(rest):
            tower_bytes += item.size_bytes
        elif paths is not None and paths.is_model_file(rest):
            model_bytes += item.size_bytes
        elif paths is not None and rest == ARCHIVED_META_NAME:
            archived = True
        elif paths is not None and not paths.has(rest):
            foreign += 1
    return Folder(
        model_key=model_key,
        name=name,
        newest_at=newest_at or marks[0].modified_at,
        names=frozenset(names),
        logged=logged,
        published=published,
        archived=archived,
        model_bytes=model_bytes,
        tower_bytes=tower_bytes,
        foreign=foreign,
        marks=tuple(marks),
    )


def _paths(model_key: str, name: str) -> ReleasePaths | None:
    try:
        return ReleasePaths(model_key=model_key, run_id=RunId.parse(name))
    except InvalidNameError:
        return None


def is_complete(folder: Folder | None, paths: ReleasePaths) -> bool:
    """Whether a listing shows the files that every complete release has."""
    return folder is not None and folder.names == {META_NAME, METRICS_NAME, paths.onnx_name}
