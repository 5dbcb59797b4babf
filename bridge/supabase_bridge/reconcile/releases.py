"""Find releases of the registry's versions that are missing or incomplete in a bucket.

A merge join reads the listing and the registry's versions side by side, both in the byte order of their paths, so
memory does not grow with either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError, InvalidObjectKeyError
from supabase_bridge.core.layout import ReleasePaths, RunId, check_model_key
from supabase_bridge.core.tags import Status
from supabase_bridge.reconcile.findings import Finding, unusable_tag
from supabase_bridge.registry.tables import RegistryTables, bytewise
from supabase_bridge.releases.errors import ReleaseDamagedError, ReleaseNotFoundError
from supabase_bridge.releases.folders import Folder
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.errors import ObjectNotFoundError

_PAGE = 5_000
_DAMAGE = (ReleaseNotFoundError, ReleaseDamagedError, InvalidDocumentError, InvalidObjectKeyError)


@dataclass(frozen=True, kw_only=True)
class ExpectedRelease:
    """A release that a version's tags refer to."""

    workspace: str
    model: str
    version: int
    stage: str
    paths: ReleasePaths


def expected_releases(
    engine: Engine,
    tables: RegistryTables,
    *,
    workspace: str,
    model: str | None = None,
    key: str | None = None,
    run_id: str | None = None,
    unusable: Callable[[Finding], None],
) -> Iterator[ExpectedRelease]:
    """Yield the releases that the versions of a workspace refer to, in byte order of their paths, page by page.

    A version whose status tag has a value of another program, such as an archive, has no expected release.

    Args:
        unusable: Called with a finding for each version whose tags are no valid path.
    """
    claims = tables.claims
    path = bytewise(claims.c.key + "/" + claims.c.run_id + "/", engine.dialect.name)
    ours = claims.c.status.is_(None) | claims.c.status.in_([status.value for status in Status])
    query = sa.select(claims, path.label("path")).where(claims.c.workspace == workspace, ours)
    if model is not None:
        query = query.where(claims.c.model == model)
    if key is not None:
        query = query.where(claims.c.key == key)
    if run_id is not None:
        query = query.where(claims.c.run_id == run_id)
    last = ""
    while True:
        with engine.connect() as connection:
            rows = connection.execute(query.where(path > last).order_by(path).limit(_PAGE)).all()
        for row in rows:
            release = _expected(row)
            if isinstance(release, ExpectedRelease):
                yield release
            else:
                unusable(release)
        if len(rows) < _PAGE:
            return
        last = rows[-1].path


def _expected(row: Any) -> ExpectedRelease | Finding:
    try:
        paths = ReleasePaths(model_key=check_model_key(row.key), run_id=RunId.parse(row.run_id))
    except InvalidNameError as error:
        return unusable_tag(row.model, row.version, error)
    return ExpectedRelease(workspace=row.workspace, model=row.model, version=row.version, stage=row.stage, paths=paths)


def merge_join(
    releases: Iterable[ExpectedRelease], found: Iterable[Folder]
) -> Iterator[tuple[ExpectedRelease | None, Folder | None]]:
    """Yield each expected release with its folder, and each other folder; None where one side has no partner."""
    remaining = iter(found)
    folder = next(remaining, None)
    for release in releases:
        while folder is not None and folder.path < release.paths.prefix:
            yield None, folder
            folder = next(remaining, None)
        if folder is not None and folder.path == release.paths.prefix:
            yield release, folder
            folder = next(remaining, None)
        else:
            yield release, None
    while folder is not None:
        yield None, folder
        folder = next(remaining, None)


def damage_of(
    store: ObjectStore, paths: ReleasePaths, *, recorded: Mapping[str, FileRecord] | None = None, deep: bool
) -> str | None:
    """Compare every file of a release with its record and return the first problem; None: it has none.

    Args:
        recorded: The record of the files in a manifest, with which the release must agree.
        deep: Read every byte, instead of comparing with the digests that the store recorded.
    """
    try:
        files = verify_release(store, paths, read_all=deep).files
    except _DAMAGE as error:
        return str(error)
    differing = [name for name, record in (recorded or {}).items() if name in files and files[name] != record]
    return f"{paths.file(differing[0])} differs from what the manifest records" if differing else None


def problem_of(store: ObjectStore, paths: ReleasePaths, *, deep: bool) -> str | None:
    """Read a release in the bucket and return its problem; None: it has none.

    Args:
        deep: Compare every byte with its record, instead of checking that the files of every release exist.
    """
    if deep:
        return damage_of(store, paths, deep=True)
    for key in (paths.meta, paths.metrics, paths.onnx):
        try:
            store.stat(key)
        except ObjectNotFoundError:
            return f"{key} is missing"
    return None
