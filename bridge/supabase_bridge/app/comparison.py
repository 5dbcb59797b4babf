"""Compare two releases that an operator names by run_id, channel or version."""

from __future__ import annotations

from supabase_bridge.client.release import Release
from supabase_bridge.client.resolver import Resolver
from supabase_bridge.core.comparison import Comparison, ReleaseDocuments, compare
from supabase_bridge.core.errors import InvalidNameError
from supabase_bridge.core.events import DEFAULT_WORKSPACE
from supabase_bridge.core.layout import RunId
from supabase_bridge.settings.model import Settings


def compare_releases(settings: Settings, model: str, before: str, after: str, *, channel: str) -> Comparison:
    """Compare two releases of a model, each named by its run_id, its channel, or its version number.

    Only a version number needs MLflow's database.

    Args:
        model: The model's folder in the bucket; with a version number, the registered model.
        channel: The channel in whose log the activation of a run_id or version is looked for.

    Raises:
        VersionNotFoundError, ModelFileError: the registry has no such version, or it has no release.
        BridgeError: see `Resolver.resolve`.
    """
    key, run_ids = model, {}
    for name in (before, after):
        if name.isascii() and name.isdecimal():
            key, run_ids[name] = _release_of_version(settings, model, int(name))
    with Resolver.from_settings(settings, report=False) as resolver:

        def documents(name: str) -> ReleaseDocuments:
            release = _resolve(resolver, key, run_ids.get(name, name))
            entry = resolver.activation(release, channel=release.channel or channel)
            return ReleaseDocuments(meta=resolver.meta(release), metrics=resolver.metrics(release), entry=entry)

        return compare(documents(before), documents(after))


def _resolve(resolver: Resolver, key: str, name: str) -> Release:
    try:
        RunId.parse(name)
    except InvalidNameError:
        return resolver.resolve(key, channel=name)
    return resolver.resolve(key, run_id=name)


def _release_of_version(settings: Settings, model: str, version: int) -> tuple[str, str]:
    """Return the folder and the run_id of a version's release, from MLflow's tables."""
    # SQLAlchemy takes a third of a second to import, and a consumer may not have it.
    import sqlalchemy as sa

    from supabase_bridge.app.errors import CommandError
    from supabase_bridge.outbox.database import database_errors
    from supabase_bridge.outbox.queue import open_outbox
    from supabase_bridge.registry.errors import VersionNotFoundError
    from supabase_bridge.registry.tables import mlflow_tables

    with open_outbox(settings) as outbox, database_errors("read its tables"):
        states = mlflow_tables(outbox.engine).states
        assert states is not None  # noqa: S101 - MLflow's own tables have it
        query = sa.select(states.c.key, states.c.run_id).where(
            states.c.workspace == DEFAULT_WORKSPACE, states.c.model == model, states.c.version == version
        )
        with outbox.engine.connect() as connection:
            found = connection.execute(query).first()
    if found is None:
        raise VersionNotFoundError(model, version)
    if found.key is None or found.run_id is None:
        raise CommandError(f"version {version} of {model} has no release yet: run `supabase-bridge mirror` first")
    return found.key, found.run_id
