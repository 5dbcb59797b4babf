"""What is remembered of a remote registry, brought to what was just seen there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from sqlalchemy.engine import Connection

from supabase_bridge.completion import RUN_ID_TAG
from supabase_bridge.identity import MODEL_KEY_TAG
from supabase_bridge.outbox.watched import WATCHED_ALIASES, WATCHED_MODELS, WATCHED_TAGS, WATCHED_VERSIONS
from supabase_bridge.registry_tables import NO_STAGE
from supabase_bridge.status_tags import CHANNEL_TAG, STATUS_TAG

_FEW = 50
"""How many models are asked for by name, not all together."""
_TAG_LIMIT = 250


def remember_models(connection: Connection, models: Mapping[str, RegisteredModel], gone: frozenset[str]) -> None:
    """Make the remembered models and aliases those that were found."""
    for name in sorted(gone):
        for table in (WATCHED_TAGS, WATCHED_ALIASES, WATCHED_VERSIONS, WATCHED_MODELS):
            connection.execute(table.delete().where(table.c.model == name))
    kept = {str(row.model): row.model_key for row in connection.execute(WATCHED_MODELS.select())}
    aliases = {
        (str(row.model), str(row.alias)): int(row.version) for row in connection.execute(WATCHED_ALIASES.select())
    }
    for name, model in models.items():
        key = (model.tags or {}).get(MODEL_KEY_TAG)
        if name not in kept:
            connection.execute(WATCHED_MODELS.insert().values(model=name, model_key=key))
        elif kept[name] != key:
            connection.execute(WATCHED_MODELS.update().where(WATCHED_MODELS.c.model == name).values(model_key=key))
        now = {alias: int(version) for alias, version in (model.aliases or {}).items()}
        before = {alias: version for (owner, alias), version in aliases.items() if owner == name}
        for alias in before.keys() | now.keys():
            if before.get(alias) != now.get(alias):
                _set_alias(connection, name, alias, now.get(alias))


def _set_alias(connection: Connection, model: str, alias: str, version: int | None) -> None:
    of_alias = (WATCHED_ALIASES.c.model == model) & (WATCHED_ALIASES.c.alias == alias)
    connection.execute(WATCHED_ALIASES.delete().where(of_alias))
    if version is not None:
        connection.execute(WATCHED_ALIASES.insert().values(model=model, alias=alias, version=version))


def remember_versions(connection: Connection, versions: Sequence[ModelVersion], *, full: bool) -> None:
    """Make the remembered versions those that were found; what has not changed is not written."""
    names = sorted({version.name for version in versions})

    def remembered(table: sa.Table) -> Iterator[Any]:
        """The rows of the models concerned; all of them where so many are named that the question gets long."""
        few = not full and len(names) <= _FEW
        yield from connection.execute(table.select().where(table.c.model.in_(names) if few else sa.true()))

    stages = {(row.model, row.version): (row.stage, row.changed_ms) for row in remembered(WATCHED_VERSIONS)}
    tags: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for row in remembered(WATCHED_TAGS):
        tags[row.model, row.version][row.tag] = row.value
    for version in versions:
        key = (version.name, int(version.version))
        now = (version.current_stage or NO_STAGE, version.last_updated_timestamp)
        named = {"model": key[0], "version": key[1]}
        if key not in stages:
            connection.execute(WATCHED_VERSIONS.insert().values(**named, stage=now[0], changed_ms=now[1]))
        elif stages[key] != now:
            of_version = _of_version(WATCHED_VERSIONS, *key)
            connection.execute(WATCHED_VERSIONS.update().where(of_version).values(stage=now[0], changed_ms=now[1]))
        ours = {tag: value[:_TAG_LIMIT] for tag, value in (version.tags or {}).items() if _is_ours(tag)}
        if ours != tags[key]:
            connection.execute(WATCHED_TAGS.delete().where(_of_version(WATCHED_TAGS, *key)))
            for tag, value in ours.items():
                connection.execute(WATCHED_TAGS.insert().values(**named, tag=tag, value=value))


def set_stage(connection: Connection, model: str, version: int, stage: str) -> None:
    """Remember a version in another stage."""
    of_version = _of_version(WATCHED_VERSIONS, model, version)
    connection.execute(WATCHED_VERSIONS.update().where(of_version).values(stage=stage))


def _of_version(table: sa.Table, model: str, version: int) -> sa.ColumnElement[bool]:
    return (table.c.model == model) & (table.c.version == version)


def _is_ours(tag: Any) -> bool:
    return tag in {RUN_ID_TAG, STATUS_TAG} or str(tag).startswith(CHANNEL_TAG)
