"""The registry's tables as SQL subqueries: those of any version of MLflow, or a snapshot of a remote registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from supabase_bridge.core.events import DEFAULT_WORKSPACE
from supabase_bridge.core.tags import CHANNEL_TAG, ERROR_TAG, MODEL_KEY_TAG, RUN_ID_TAG, STATUS_TAG
from supabase_bridge.registry.errors import ModelNotFoundError

DELETED_STAGE = "Deleted_Internal"
NO_STAGE = "None"
PROMPT_TAG = "mlflow.prompt.is_prompt"


@dataclass(frozen=True, kw_only=True)
class RegistryTables:
    """A registry as SQL subqueries, without prompts.

    Attributes:
        models: workspace, model; of MLflow's database also key.
        versions: workspace, model, version, stage, changed_ms; deleted ones have DELETED_STAGE.
        aliases: workspace, model, alias, version, changed_ms (the version's; MLflow keeps no time of an alias).
        claims: workspace, model, version, stage, key, run_id, status: the release that each version should have; of
            MLflow's database also changed_ms.
        channels: workspace, model, version, stage, key, channel_tag, since: each version's present and former channels.
        model_tags: Selects tag and value of one model, see `load_model_tags`. None for a snapshot.
        states: workspace, model, version, stage, key, run_id, status, error, place: every version, mirrored or not.
            `place` is where a client registered its files. None for a snapshot.
        rows: The table whose rows MLflow locks when it changes a version, with the columns for the workspace (None
            before MLflow 3), the model and the version. None for a snapshot, which only the follower writes.
        workspaces: The workspaces that have a bucket; others are ignored.
    """

    models: sa.Subquery
    versions: sa.Subquery
    aliases: sa.Subquery
    claims: sa.Subquery
    channels: sa.Subquery
    rows: tuple[sa.FromClause, Any, Any, Any] | None
    model_tags: sa.Select[Any] | None = None
    states: sa.Subquery | None = None
    workspaces: tuple[str, ...] = (DEFAULT_WORKSPACE,)


def mlflow_tables(engine: Engine) -> RegistryTables:
    """Build the subqueries for MLflow's database; MLflow 3 and later have a column `workspace`."""
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
    versions = table(
        "model_versions", *("name", "version", "current_stage", "last_updated_time", "source", "storage_location")
    )
    version_tags = table("model_version_tags", "name", "version", "key", "value")
    aliases = table("registered_model_aliases", "name", "alias", "version")
    prompt, named = model_tags.alias("prompt"), models.alias("named")
    # These databases compare names without case, so a row may spell its model's name in another case.
    folds_case = engine.dialect.name in {"mysql", "mariadb"}

    def with_name(of: Any) -> Any:
        return of.join(named, same(named, of, "name")) if folds_case else of

    def name(of: Any) -> Any:
        return named.c.name if folds_case else of.c.name

    def no_prompt(of: Any) -> Any:
        is_prompt = (prompt.c.key == PROMPT_TAG) & (prompt.c.value == "true")
        return ~sa.exists().where(same(prompt, of, "name"), is_prompt)

    stage_is = sa.func.coalesce(versions.c.current_stage, NO_STAGE)
    stage = stage_is.label("stage")
    changed = versions.c.last_updated_time.label("changed_ms")
    key, channel = model_tags.alias("key_tag"), version_tags.alias("channel_tag")
    run_id, status, error = (version_tags.alias(f"{what}_tag") for what in ("run_id", "status", "error"))

    def of_version(tag: Any, tag_name: str) -> Any:
        return same(tag, versions, "name", "version") & (tag.c.key == tag_name)

    of_model = same(key, versions, "name") & (key.c.key == MODEL_KEY_TAG)
    mirrored = (workspace(versions).label("workspace"), name(versions).label("model"), versions.c.version, stage)
    return RegistryTables(
        models=sa.select(workspace(models).label("workspace"), models.c.name.label("model"), key.c.value.label("key"))
        .select_from(models.outerjoin(key, same(key, models, "name") & (key.c.key == MODEL_KEY_TAG)))
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
            *mirrored, changed, key.c.value.label("key"), run_id.c.value.label("run_id"), status.c.value.label("status")
        )
        .select_from(with_name(versions))
        .join(key, of_model)
        .join(run_id, of_version(run_id, RUN_ID_TAG))
        .outerjoin(status, of_version(status, STATUS_TAG))
        .where(stage_is != DELETED_STAGE)
        .subquery("claims"),
        channels=sa.select(
            *mirrored, key.c.value.label("key"), channel.c.key.label("channel_tag"), channel.c.value.label("since")
        )
        .select_from(with_name(versions))
        .join(key, of_model)
        .join(channel, same(channel, versions, "name", "version") & channel.c.key.like(f"{CHANNEL_TAG}%"))
        .where(stage_is != DELETED_STAGE)
        .subquery("channels"),
        rows=(
            with_name(versions),
            versions.c.workspace if with_workspace else None,
            name(versions),
            versions.c.version,
        ),
        model_tags=sa.select(model_tags.c.key.label("tag"), model_tags.c.value)
        .select_from(models.outerjoin(model_tags, same(model_tags, models, "name")))
        .where(models.c.name == sa.bindparam("of_model"), workspace(models) == sa.bindparam("in_workspace")),
        states=sa.select(
            *mirrored,
            key.c.value.label("key"),
            run_id.c.value.label("run_id"),
            status.c.value.label("status"),
            error.c.value.label("error"),
            sa.func.coalesce(versions.c.storage_location, versions.c.source).label("place"),
        )
        .select_from(with_name(versions))
        .outerjoin(key, of_model)
        .outerjoin(run_id, of_version(run_id, RUN_ID_TAG))
        .outerjoin(status, of_version(status, STATUS_TAG))
        .outerjoin(error, of_version(error, ERROR_TAG))
        .where(stage_is != DELETED_STAGE, no_prompt(versions))
        .subquery("states"),
    )


def bytewise(column: Any, dialect: str) -> Any:
    """A text column that is compared by its bytes, independent of the database's collation."""
    collation = {"postgresql": "C", "mysql": "utf8mb4_bin", "mariadb": "utf8mb4_bin", "sqlite": "BINARY"}[dialect]
    return sa.cast(column, sa.String(512)).collate(collation) if dialect != "sqlite" else column.collate(collation)


def load_model_tags(connection: Connection, statement: sa.Select[Any], workspace: str, model: str) -> dict[str, str]:
    """Return the tags of a registered model.

    Args:
        statement: `RegistryTables.model_tags`.

    Raises:
        ModelNotFoundError: there is no such model.
    """
    rows = connection.execute(statement, {"in_workspace": workspace, "of_model": model}).all()
    if not rows:
        raise ModelNotFoundError(model)
    return {row.tag: row.value for row in rows if row.tag is not None}
