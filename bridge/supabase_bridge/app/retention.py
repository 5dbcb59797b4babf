"""Retention from the settings: plan it, carry it out, and restore a release."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from supabase_bridge.app.errors import CommandError
from supabase_bridge.app.runtime import Runtime
from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.core.events import DEFAULT_WORKSPACE
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.mirror.sources import Sources
from supabase_bridge.outbox.artifact_roots import load_artifact_roots
from supabase_bridge.registry.naming import model_key
from supabase_bridge.registry.tables import mlflow_tables
from supabase_bridge.releases.errors import ReleaseNotFoundError
from supabase_bridge.releases.removal import read_archived
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.retention.plan import Planner
from supabase_bridge.retention.remover import Remover
from supabase_bridge.steps.records import StepRecords
from supabase_bridge.storage.base import ObjectStore


def planner(runtime: Runtime, open_store: Callable[[str], ObjectStore] | None = None) -> Planner:
    """Make a planner.

    Args:
        open_store: From a bucket's name to its store; by default the runtime's, which create missing buckets.
    """
    workspaces = (DEFAULT_WORKSPACE, *runtime.settings.workspaces)
    return Planner(
        settings=runtime.settings,
        engine=runtime.outbox.engine,
        tables=replace(mlflow_tables(runtime.outbox.engine), workspaces=workspaces),
        open_store=open_store or runtime.stores,
        signing=runtime.signing,
    )


@contextmanager
def open_remover(runtime: Runtime) -> Iterator[Remover]:
    """Make a remover for the length of a block; it drops embeddings where the settings name their database."""
    settings, engine = runtime.settings, runtime.outbox.engine
    with ExitStack() as stack:
        sets = None
        if settings.embeddings_url is not None:
            # psycopg and pgvector are an extra of those who use embeddings.
            from supabase_bridge.embeddings.sets import EmbeddingSets

            sets = stack.enter_context(EmbeddingSets.from_settings(settings))

        def forget(workspace: str, paths: ReleasePaths) -> None:
            # Steps first: a set without a record is loaded again, and a record without its set would never be.
            bucket = settings.bucket_of(workspace) or settings.bucket
            StepRecords(engine, bucket).forget_release(paths)
            if sets is not None:
                sets.drop(paths.model_key, str(paths.run_id))

        yield Remover(
            settings=settings,
            planner=planner(runtime),
            registry=runtime.registry,
            sources=Sources(
                runtime.registry,
                settings,
                open_store=runtime.stores,
                recorded=lambda: load_artifact_roots(engine),
            ),
            open_store=runtime.stores,
            now=runtime.outbox.now,
            forget=forget,
        )


def restore(runtime: Runtime, model: str, run_id: RunId) -> ReleasePaths:
    """Restore a release that retention removed: from an archive, or from MLflow where no archive has it.

    Raises:
        ModelNotFoundError, ReleaseNotFoundError: there is no such model, or no such release.
        CommandError: the release is complete, or its version is gone.
        ReleaseBusyError: retention is deleting its files at this moment.
        ReleaseUnrepairableError: MLflow's files no longer give the recorded bytes; nothing was changed.
    """
    store = runtime.stores(runtime.settings.bucket)
    paths = ReleasePaths(model_key=model_key(runtime.registry, store, runtime.registry.model(model)), run_id=run_id)
    raw = read_archived(store, paths)
    if raw is None:
        verify_release(store, paths, signing=runtime.signing)
        raise CommandError(f"{paths.model_key} {run_id} is complete; there is nothing to restore")
    origin = ModelMeta.parse(raw).mlflow
    if origin is None:
        raise ReleaseNotFoundError(paths.model_key, str(run_id))
    runtime.processor.mirror(runtime.registry.version(model, origin.version))
    return paths
