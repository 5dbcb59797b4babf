"""Releases that are not where the registry says they are: found by one listing, mirrored again.

The listing and the registry's versions are walked side by side, both in the order of their keys' bytes, so that memory
does not grow with either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.activate import verify_release
from supabase_bridge.errors import (
    InvalidDocumentError,
    InvalidModelKeyError,
    InvalidRunIdError,
    ObjectNotFoundError,
    ReleaseDamagedError,
    ReleaseNotFoundError,
)
from supabase_bridge.layout import (
    HISTORY_NAME,
    MANIFEST_NAME,
    META_NAME,
    METRICS_NAME,
    ReleaseKeys,
    RunId,
    check_model_key,
)
from supabase_bridge.object_store import ObjectInfo, ObjectStore
from supabase_bridge.reconcile_findings import Finding, unusable_tag
from supabase_bridge.registry_tables import RegistryTables
from supabase_bridge.status_tags import Status

_PAGE = 5_000
_DAMAGE = (ReleaseNotFoundError, ReleaseDamagedError, InvalidDocumentError)


@dataclass(frozen=True, kw_only=True)
class ClaimedRelease:
    """A release that a version says is its own; `stage` is the version's."""

    workspace: str
    model: str
    version: int
    stage: str
    keys: ReleaseKeys


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What a listing shows of one folder of a model: a release, or a channel.

    Attributes:
        newest_at: When its youngest object was written.
        names: Of its objects, those that tell whether a release is complete.
        logged: The newest log entry of a channel.
        published: The manifest of a channel.
    """

    model_key: str
    name: str
    newest_at: datetime
    names: frozenset[str] = field(default_factory=frozenset)
    logged: ObjectInfo | None = None
    published: ObjectInfo | None = None

    @property
    def path(self) -> str:
        return f"{self.model_key}/{self.name}/"

    @property
    def run_id(self) -> RunId | None:
        """The run_id that it is named after; None for a folder that is no release."""
        try:
            return RunId.parse(self.name)
        except InvalidRunIdError:
            return None


def folders(objects: Iterable[ObjectInfo]) -> Iterator[Folder]:
    """Group a listing, in the order of its keys, into the folders of models; what lies elsewhere is nobody's."""
    in_folders = (item for item in objects if item.key.count("/") >= 2)
    for (model_key, name), group in groupby(in_folders, key=lambda item: tuple(item.key.split("/", 2)[:2])):
        names: set[str] = set()
        newest_at, logged, published = None, None, None
        for item in group:
            newest_at = item.modified_at if newest_at is None else max(newest_at, item.modified_at)
            rest = item.key.split("/", 2)[2]
            if rest.startswith(f"{HISTORY_NAME}/"):
                logged = item
            elif rest == MANIFEST_NAME:
                published = item
            elif rest in {META_NAME, METRICS_NAME, f"{model_key}_{name}.onnx"}:
                names.add(rest)
        if newest_at is not None:
            yield Folder(
                model_key=model_key,
                name=name,
                newest_at=newest_at,
                names=frozenset(names),
                logged=logged,
                published=published,
            )


def claimed_releases(
    engine: Engine,
    tables: RegistryTables,
    *,
    workspace: str,
    model: str | None = None,
    key: str | None = None,
    unusable: Callable[[Finding], None],
) -> Iterator[ClaimedRelease]:
    """The releases that versions of a workspace say are theirs, in the order of their paths' bytes, page by page.

    Only those that shall be there: a version whose status is none of ours (one that was archived, say) has none.

    Args:
        unusable: Called with each claim that can be no release.
    """
    claims = tables.claims
    path = bytewise(claims.c.key + "/" + claims.c.run_id + "/", engine.dialect.name)
    ours = claims.c.status.is_(None) | claims.c.status.in_([status.value for status in Status])
    query = sa.select(claims, path.label("path")).where(claims.c.workspace == workspace, ours)
    if model is not None:
        query = query.where(claims.c.model == model)
    if key is not None:
        query = query.where(claims.c.key == key)
    last = ""
    while True:
        with engine.connect() as connection:
            rows = connection.execute(query.where(path > last).order_by(path).limit(_PAGE)).all()
        for row in rows:
            claim = _claimed(row)
            if isinstance(claim, ClaimedRelease):
                yield claim
            else:
                unusable(claim)
        if len(rows) < _PAGE:
            return
        last = rows[-1].path


def bytewise(column: Any, dialect: str) -> Any:
    """A text column compared by its bytes, whatever the database's collation is."""
    collation = {"postgresql": "C", "mysql": "utf8mb4_bin", "mariadb": "utf8mb4_bin", "sqlite": "BINARY"}[dialect]
    return sa.cast(column, sa.String(512)).collate(collation) if dialect != "sqlite" else column.collate(collation)


def _claimed(row: Any) -> ClaimedRelease | Finding:
    try:
        keys = ReleaseKeys(model_key=check_model_key(row.key), run_id=RunId.parse(row.run_id))
    except (InvalidModelKeyError, InvalidRunIdError) as error:
        return unusable_tag(row.model, row.version, error)
    return ClaimedRelease(workspace=row.workspace, model=row.model, version=row.version, stage=row.stage, keys=keys)


def side_by_side(
    claims: Iterable[ClaimedRelease], found: Iterable[Folder]
) -> Iterator[tuple[ClaimedRelease | None, Folder | None]]:
    """Each claim with its folder, and each folder with its claim; None where the other side has nothing."""
    remaining = iter(found)
    folder = next(remaining, None)
    for claim in claims:
        while folder is not None and folder.path < claim.keys.prefix:
            yield None, folder
            folder = next(remaining, None)
        if folder is not None and folder.path == claim.keys.prefix:
            yield claim, folder
            folder = next(remaining, None)
        else:
            yield claim, None
    while folder is not None:
        yield None, folder
        folder = next(remaining, None)


def problem_of(store: ObjectStore, keys: ReleaseKeys, *, thorough: bool) -> str | None:
    """What is wrong with a release now, looked at itself; None: nothing.

    Args:
        thorough: Compare every file with its record, not only look for those that every release has.
    """
    if thorough:
        try:
            verify_release(store, keys)
        except _DAMAGE as error:
            return str(error)
        return None
    for key in (keys.meta, keys.metrics, keys.onnx):
        try:
            store.stat(key)
        except ObjectNotFoundError:
            return f"{key} is missing"
    return None


def is_complete(folder: Folder | None, keys: ReleaseKeys) -> bool:
    """Whether a listing shows the files that every release has."""
    return folder is not None and folder.names == {META_NAME, METRICS_NAME, keys.onnx_name}
