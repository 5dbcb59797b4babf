"""A remote registry as it was last seen, in the form in which a registry is compared with its events."""

from __future__ import annotations

import sqlalchemy as sa

from supabase_bridge.completion import RUN_ID_TAG
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE
from supabase_bridge.outbox.watched import WATCHED_ALIASES, WATCHED_MODELS, WATCHED_TAGS, WATCHED_VERSIONS
from supabase_bridge.registry_tables import DELETED_STAGE, RegistryTables
from supabase_bridge.status_tags import CHANNEL_TAG, STATUS_TAG


def watched_tables() -> RegistryTables:
    """The tables of a remote registry: one workspace, prompts never among them, written by us alone."""
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
