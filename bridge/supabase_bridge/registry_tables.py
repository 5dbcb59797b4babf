"""What SQL reads of a registry: MLflow's own tables, whichever MLflow made them, or a copy of a remote registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.completion import RUN_ID_TAG
from supabase_bridge.identity import MODEL_KEY_TAG
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE
from supabase_bridge.status_tags import CHANNEL_TAG, STATUS_TAG

DELETED_STAGE = "Deleted_Internal"
NO_STAGE = "None"
PROMPT_TAG = "mlflow.prompt.is_prompt"


@dataclass(frozen=True, kw_only=True)
class RegistryTables:
    """A registry as SQL sees it; prompts are left out everywhere.

    Attributes:
        models: workspace, model.
        versions: workspace, model, version, stage, changed_ms; deleted ones have DELETED_STAGE.
        aliases: workspace, model, alias, version, changed_ms (the version's; MLflow keeps no time of an alias).
        claims: workspace, model, version, stage, key, run_id, status: which version has which release.
        channels: workspace, model, version, stage, key, channel_tag, since: which version is or was current where.
        rows: The tables whose rows MLflow changes with a version, with the columns for the workspace (None before
            MLflow 3), the model and the version; a registry that only we write has none.
        workspaces: Those that have a bucket; the others are left alone.
    """

    models: sa.Subquery
    versions: sa.Subquery
    aliases: sa.Subquery
    claims: sa.Subquery
    channels: sa.Subquery
    rows: tuple[sa.FromClause, Any, Any, Any] | None
    workspaces: tuple[str, ...] = (DEFAULT_WORKSPACE,)


def mlflow_tables(engine: Engine) -> RegistryTables:
    """The tables of MLflow's database; the column `workspace` is there since MLflow 3."""
    with_workspace = any(column["name"] == "workspace" for column in sa.inspect(engine).get_columns("model_versions"))

    def table(name: str, *columns: str) -> sa.TableClause:
        more = ["workspace"] if with_workspace else []
        return sa.table(name, *(sa.column(column) for column in [*columns, *more]))

    def workspace(of: Any) -> Any:
        return of.c.workspace if with_workspace else sa.literal(DEFAULT_WORKSPACE, sa.String)

    def same(left: Any, right: Any, *columns: str) -> Any:
        names = [*columns, *(["workspace"] if with_workspace else [])]
        return sa.and_(*(left.c[name] == right.c[name] for name in names))

    models = table("registered_models", "name")
    model_tags = table("registered_model_tags", "name", "key", "value")
    versions = table("model_versions", "name", "version", "current_stage", "last_updated_time")
    version_tags = table("model_version_tags", "name", "version", "key", "value")
    aliases = table("registered_model_aliases", "name", "alias", "version")
    prompt, named = model_tags.alias("prompt"), models.alias("named")
    # Names are compared without case there: a row may spell its model as whoever wrote it did.
    folds_case = engine.dialect.name in {"mysql", "mariadb"}

    def with_name(of: Any) -> Any:
        return of.join(named, same(named, of, "name")) if folds_case else of

    def name(of: Any) -> Any:
        return named.c.name if folds_case else of.c.name

    def no_prompt(of: Any) -> Any:
        says_so = (prompt.c.key == PROMPT_TAG) & (prompt.c.value == "true")
        return ~sa.exists().where(same(prompt, of, "name"), says_so)

    stage_is = sa.func.coalesce(versions.c.current_stage, NO_STAGE)
    stage = stage_is.label("stage")
    changed = versions.c.last_updated_time.label("changed_ms")
    key, run_id, status = (
        model_tags.alias("key_tag"),
        version_tags.alias("run_id_tag"),
        version_tags.alias("status_tag"),
    )
    channel = version_tags.alias("channel_tag")
    mirrored = (workspace(versions).label("workspace"), name(versions).label("model"), versions.c.version, stage)
    return RegistryTables(
        models=sa.select(workspace(models).label("workspace"), models.c.name.label("model"))
        .where(no_prompt(models))
        .subquery("models"),
        versions=sa.select(*mirrored, changed)
        .select_from(with_name(versions))
        .where(no_prompt(versions))
        .subquery("versions"),
        aliases=sa.select(
            workspace(aliases).label("workspace"),
            name(aliases).label("model"),
            aliases.c.alias,
            aliases.c.version,
            changed,
        )
        .select_from(with_name(aliases))
        .join(versions, same(versions, aliases, "name", "version"))
        .where(no_prompt(aliases))
        .subquery("aliases"),
        claims=sa.select(
            *mirrored, key.c.value.label("key"), run_id.c.value.label("run_id"), status.c.value.label("status")
        )
        .select_from(with_name(versions))
        .join(key, same(key, versions, "name") & (key.c.key == MODEL_KEY_TAG))
        .join(run_id, same(run_id, versions, "name", "version") & (run_id.c.key == RUN_ID_TAG))
        .outerjoin(status, same(status, versions, "name", "version") & (status.c.key == STATUS_TAG))
        .where(stage_is != DELETED_STAGE)
        .subquery("claims"),
        channels=sa.select(
            *mirrored, key.c.value.label("key"), channel.c.key.label("channel_tag"), channel.c.value.label("since")
        )
        .select_from(with_name(versions))
        .join(key, same(key, versions, "name") & (key.c.key == MODEL_KEY_TAG))
        .join(channel, same(channel, versions, "name", "version") & channel.c.key.like(f"{CHANNEL_TAG}%"))
        .where(stage_is != DELETED_STAGE)
        .subquery("channels"),
        rows=(
            with_name(versions),
            versions.c.workspace if with_workspace else None,
            name(versions),
            versions.c.version,
        ),
    )
