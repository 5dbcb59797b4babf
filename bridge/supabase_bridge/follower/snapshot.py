"""The remote registry as last seen, in the tables of the follower's own database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from sqlalchemy.engine import Connection, Engine

from supabase_bridge.core.errors import InvalidNameError, SettingsError
from supabase_bridge.core.events import DEFAULT_WORKSPACE
from supabase_bridge.core.layout import check_model_key
from supabase_bridge.core.tags import CHANNEL_TAG, MODEL_KEY_TAG, RUN_ID_TAG, STATUS_TAG
from supabase_bridge.outbox import periodic
from supabase_bridge.outbox.database import connect, database_errors
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.outbox.tables import WATCHED_ALIASES, WATCHED_MODELS, WATCHED_TAGS, WATCHED_VERSIONS
from supabase_bridge.registry.tables import DELETED_STAGE, NO_STAGE, RegistryTables
from supabase_bridge.settings.model import Settings

_FEW = 50
"""Up to this number, models are selected by name; otherwise all rows are read."""

_TAG_LIMIT = 250

_VARIABLE = "SUPABASE_BRIDGE_WATCH_DATABASE_URL"

_ADDRESS = "watched address"


@contextmanager
def open_snapshot(settings: Settings, tracking_uri: str) -> Iterator[Outbox]:
    """Open the follower's database, with its tables, for the length of a block; returns the outbox in it.

    Args:
        tracking_uri: Address of the MLflow server. One database follows one server only: with two, each poll would
            delete the models of the other server.

    Raises:
        SettingsError: the URL is malformed, the database is MLflow's own, or it follows another server.
        RegistryUnavailableError: the database did not answer.
    """
    engine = connect(settings.watch_database_url, connections=2 * settings.concurrency + 3)
    try:
        _prepare(engine, tracking_uri)
        yield Outbox(engine, lease=settings.lease, longest_pause=settings.retry_cap)
    finally:
        engine.dispose()


def _prepare(engine: Engine, tracking_uri: str) -> None:
    parts = urlsplit(tracking_uri)
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"[:500]
    with database_errors("open its database"):
        if engine.dialect.name == "sqlite" and engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        if sa.inspect(engine).has_table("registered_models"):
            raise SettingsError(_VARIABLE, "that is MLflow's own database; name an empty one")
        ensure_schema(engine)
        followed = periodic.cursor(engine, _ADDRESS)
        if followed not in {"", address}:
            raise SettingsError(_VARIABLE, f"it follows {followed} already; name another database for {address}")
        periodic.set_cursor(engine, _ADDRESS, address)


def store_models(connection: Connection, models: Mapping[str, RegisteredModel], gone: frozenset[str]) -> frozenset[str]:
    """Replace the stored models and aliases by those that were found.

    Returns:
        The models that were deleted and created again since the last poll. Their old rows are deleted.
    """
    stored = {str(row.model): row.created_ms for row in connection.execute(WATCHED_MODELS.select())}
    replaced = frozenset(
        name for name, model in models.items() if _is_another(stored.get(name), model.creation_timestamp)
    )
    for name in sorted(gone | replaced):
        for table in (WATCHED_TAGS, WATCHED_ALIASES, WATCHED_VERSIONS, WATCHED_MODELS):
            connection.execute(table.delete().where(table.c.model == name))
    kept = {str(row.model): (row.model_key, row.created_ms) for row in connection.execute(WATCHED_MODELS.select())}
    aliases = {
        (str(row.model), str(row.alias)): int(row.version) for row in connection.execute(WATCHED_ALIASES.select())
    }
    for name, model in models.items():
        facts = (_folder(model), model.creation_timestamp)
        values = {"model_key": facts[0], "created_ms": facts[1]}
        if name not in kept:
            connection.execute(WATCHED_MODELS.insert().values(model=name, **values))
        elif kept[name] != facts:
            connection.execute(WATCHED_MODELS.update().where(WATCHED_MODELS.c.model == name).values(**values))
        now = {alias: int(version) for alias, version in (model.aliases or {}).items()}
        before = {alias: version for (owner, alias), version in aliases.items() if owner == name}
        for alias in before.keys() | now.keys():
            if before.get(alias) != now.get(alias):
                _set_alias(connection, name, alias, now.get(alias))
    return replaced


def _folder(model: RegisteredModel) -> str | None:
    """The folder in a model's tag; None if it is not valid, because any user of MLflow can write the tag."""
    with suppress(InvalidNameError):
        return check_model_key((model.tags or {}).get(MODEL_KEY_TAG) or "")
    return None


def _is_another(stored_ms: int | None, found_ms: int | None) -> bool:
    """Whether both creation times are known and differ, so that the name now belongs to another object."""
    return stored_ms is not None and found_ms is not None and stored_ms != found_ms


def _set_alias(connection: Connection, model: str, alias: str, version: int | None) -> None:
    of_alias = (WATCHED_ALIASES.c.model == model) & (WATCHED_ALIASES.c.alias == alias)
    connection.execute(WATCHED_ALIASES.delete().where(of_alias))
    if version is not None:
        connection.execute(WATCHED_ALIASES.insert().values(model=model, alias=alias, version=version))


def store_versions(
    connection: Connection, versions: Sequence[ModelVersion], *, full: bool
) -> dict[tuple[str, int], str]:
    """Replace the stored versions by those that were found; unchanged rows are not written.

    Returns:
        For each version that was deleted and created again since the last poll: its former stage.
    """
    names = sorted({version.name for version in versions})

    def stored(table: sa.Table) -> Iterator[Any]:
        """Yield the rows of the models concerned, or all rows if the query would name too many models."""
        few = not full and len(names) <= _FEW
        yield from connection.execute(table.select().where(table.c.model.in_(names) if few else sa.true()))

    known = {(row.model, row.version): (row.stage, row.changed_ms, row.created_ms) for row in stored(WATCHED_VERSIONS)}
    tags: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for row in stored(WATCHED_TAGS):
        tags[row.model, row.version][row.tag] = row.value
    replaced: dict[tuple[str, int], str] = {}
    for version in versions:
        key = (version.name, int(version.version))
        now = (version.current_stage or NO_STAGE, version.last_updated_timestamp, version.creation_timestamp)
        named = {"model": key[0], "version": key[1]}
        facts = {"stage": now[0], "changed_ms": now[1], "created_ms": now[2]}
        if key not in known:
            connection.execute(WATCHED_VERSIONS.insert().values(**named, **facts))
        elif known[key] != now:
            if _is_another(known[key][2], now[2]):
                replaced[key] = known[key][0]
            connection.execute(WATCHED_VERSIONS.update().where(_of_version(WATCHED_VERSIONS, *key)).values(**facts))
        ours = {tag: _kept(value) for tag, value in (version.tags or {}).items() if _is_ours(tag)}
        if ours != tags[key]:
            connection.execute(WATCHED_TAGS.delete().where(_of_version(WATCHED_TAGS, *key)))
            for tag, value in ours.items():
                connection.execute(WATCHED_TAGS.insert().values(**named, tag=tag, value=value))
    return replaced


def _kept(value: str) -> str:
    """The part of a tag's value that every database accepts."""
    return value[:_TAG_LIMIT].replace("\0", "")


def set_stage(connection: Connection, model: str, version: int, stage: str) -> None:
    """Store another stage for a version."""
    of_version = _of_version(WATCHED_VERSIONS, model, version)
    connection.execute(WATCHED_VERSIONS.update().where(of_version).values(stage=stage))


def _of_version(table: sa.Table, model: str, version: int) -> sa.ColumnElement[bool]:
    return (table.c.model == model) & (table.c.version == version)


def _is_ours(tag: Any) -> bool:
    return tag in {RUN_ID_TAG, STATUS_TAG} or str(tag).startswith(CHANNEL_TAG)


def watched_tables() -> RegistryTables:
    """The tables of a remote registry: one workspace, without prompts, written by the follower only."""
    workspace = sa.literal(DEFAULT_WORKSPACE, sa.String).label("workspace")
    models, versions, aliases, tags = WATCHED_MODELS, WATCHED_VERSIONS, WATCHED_ALIASES, WATCHED_TAGS
    status = tags.alias("status_tag")

    def of_version(table: sa.FromClause) -> sa.ColumnElement[bool]:
        return (table.c.model == versions.c.model) & (table.c.version == versions.c.version)

    facts = (workspace, versions.c.model, versions.c.version, versions.c.stage)
    mirrored = (*facts, models.c.model_key.label("key"))
    there = (models.c.model_key.is_not(None)) & (versions.c.stage != DELETED_STAGE)
    return RegistryTables(
        models=sa.select(workspace, models.c.model).subquery("models"),
        versions=sa.select(*facts, versions.c.changed_ms).subquery("versions"),
        aliases=sa.select(
            workspace, aliases.c.model, aliases.c.alias, aliases.c.version, aliases.c.changed_ms
        ).subquery("aliases"),
        claims=sa.select(*mirrored, tags.c.value.label("run_id"), status.c.value.label("status"))
        .join(models, models.c.model == versions.c.model)
        .join(tags, of_version(tags) & (tags.c.tag == RUN_ID_TAG))
        .outerjoin(status, of_version(status) & (status.c.tag == STATUS_TAG))
        .where(there)
        .subquery("claims"),
        channels=sa.select(*mirrored, tags.c.tag.label("channel_tag"), tags.c.value.label("since"))
        .join(models, models.c.model == versions.c.model)
        .join(tags, of_version(tags) & tags.c.tag.like(f"{CHANNEL_TAG}%"))
        .where(there)
        .subquery("channels"),
        rows=None,
    )
