"""What is remembered of a remote registry, brought to what was just seen there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from sqlalchemy.engine import Connection

from supabase_bridge.completion import RUN_ID_TAG
from supabase_bridge.errors import InvalidModelKeyError
from supabase_bridge.identity import MODEL_KEY_TAG
from supabase_bridge.layout import check_model_key
from supabase_bridge.outbox.watched import WATCHED_ALIASES, WATCHED_MODELS, WATCHED_TAGS, WATCHED_VERSIONS
from supabase_bridge.registry_tables import NO_STAGE
from supabase_bridge.status_tags import CHANNEL_TAG, STATUS_TAG

_FEW = 50
"""How many models are asked for by name, not all together."""
_TAG_LIMIT = 250


def remember_models(
    connection: Connection, models: Mapping[str, RegisteredModel], gone: frozenset[str]
) -> frozenset[str]:
    """Make the remembered models and aliases those that were found.

    Returns:
        Those that were deleted and made again since; nothing is remembered of what they were.
    """
    remembered = {str(row.model): row.created_ms for row in connection.execute(WATCHED_MODELS.select())}
    replaced = frozenset(
        name for name, model in models.items() if _is_another(remembered.get(name), model.creation_timestamp)
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
    """The folder that a model's tag names; anybody writes there what he likes, and what can be none is not kept."""
    with suppress(InvalidModelKeyError):
        return check_model_key((model.tags or {}).get(MODEL_KEY_TAG) or "")
    return None


def _is_another(remembered_ms: int | None, found_ms: int | None) -> bool:
    """Whether what has this name came into being at another time than what had it; not, where a time is unknown."""
    return remembered_ms is not None and found_ms is not None and remembered_ms != found_ms


def _set_alias(connection: Connection, model: str, alias: str, version: int | None) -> None:
    of_alias = (WATCHED_ALIASES.c.model == model) & (WATCHED_ALIASES.c.alias == alias)
    connection.execute(WATCHED_ALIASES.delete().where(of_alias))
    if version is not None:
        connection.execute(WATCHED_ALIASES.insert().values(model=model, alias=alias, version=version))


def remember_versions(
    connection: Connection, versions: Sequence[ModelVersion], *, full: bool
) -> dict[tuple[str, int], str]:
    """Make the remembered versions those that were found; what has not changed is not written.

    Returns:
        From model and number of those that are others than the ones remembered to the stage in which those were.
    """
    names = sorted({version.name for version in versions})

    def remembered(table: sa.Table) -> Iterator[Any]:
        """The rows of the models concerned; all of them where so many are named that the question gets long."""
        few = not full and len(names) <= _FEW
        yield from connection.execute(table.select().where(table.c.model.in_(names) if few else sa.true()))

    known = {
        (row.model, row.version): (row.stage, row.changed_ms, row.created_ms) for row in remembered(WATCHED_VERSIONS)
    }
    tags: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for row in remembered(WATCHED_TAGS):
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
    """As much of a tag's value as every database takes."""
    return value[:_TAG_LIMIT].replace("\0", "")


def set_stage(connection: Connection, model: str, version: int, stage: str) -> None:
    """Remember a version in another stage."""
    of_version = _of_version(WATCHED_VERSIONS, model, version)
    connection.execute(WATCHED_VERSIONS.update().where(of_version).values(stage=stage))


def _of_version(table: sa.Table, model: str, version: int) -> sa.ColumnElement[bool]:
    return (table.c.model == model) & (table.c.version == version)


def _is_ours(tag: Any) -> bool:
    return tag in {RUN_ID_TAG, STATUS_TAG} or str(tag).startswith(CHANNEL_TAG)
