"""Checks of MLflow's database: reachable, its outbox, its clock, a worker, failed events, readable artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from supabase_bridge.app.doctor.check import Check, failed, ok, skipped, warning
from supabase_bridge.core.errors import BridgeError, SettingsError, redact_credentials
from supabase_bridge.core.text import format_time
from supabase_bridge.settings.model import Settings

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.engine import Engine

    from supabase_bridge.outbox.artifact_roots import ArtifactRoots

_NAMES = ("outbox", "database clock", "worker", "failed events", "artifacts")
"""The checks that need a database with MLflow's tables."""

_CLOCK_LIMIT = timedelta(seconds=30)
_SILENCE = timedelta(minutes=2)
"""A worker claims a due event within seconds; an event that waits longer is a sign that no worker runs."""

_TRANSACTION_PORT = 6543
"""Port of Supabase's connection pooler in transaction mode."""

_START = "run `supabase-bridge server`, or start your MLflow server with the plugin: it creates the tables"


def database_checks(settings: Settings) -> Iterator[Check]:
    """Check the database, and everything that is read from it. SQLAlchemy must be installed."""
    import sqlalchemy as sa
    from sqlalchemy.exc import SQLAlchemyError

    from supabase_bridge.outbox.database import connect

    name = "database"
    try:
        engine = connect(settings.database_url)
    except SettingsError as error:
        yield failed(name, str(error), "docs/operations.md lists the drivers and the form of their URLs")
        yield from _skip("the database cannot be opened")
        return
    place = engine.url.set(query={}).render_as_string(hide_password=True)
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").is_file():
        # SQLite would create the file.
        yield warning(name, f"{place} does not exist yet", _START)
        yield from _skip("there is no database yet")
        return
    try:
        with closing(engine.connect()):
            has_registry = sa.inspect(engine).has_table("registered_models")
        yield _database(place, has_registry=has_registry)
        yield pooler(engine.url)
        if has_registry:
            yield from _of_registry(settings, engine)
        else:
            yield from _skip("the database has no model registry")
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        yield failed(name, f"{place}: {reason}", "check host, port, user and password in SUPABASE_BRIDGE_DATABASE_URL")
        yield from _skip("the database cannot be read")
    finally:
        engine.dispose()


def pooler(url: URL) -> Check:
    """Check that the URL does not lead to a connection pooler in transaction mode."""
    name = "pooler"
    if url.get_backend_name() != "postgresql":
        return skipped(name, "not PostgreSQL")
    if url.port != _TRANSACTION_PORT:
        return ok(name, "not the transaction mode of Supabase's pooler (port 6543)")
    problem = "port 6543 is the pooler's transaction mode: it has no LISTEN, so workers only poll"
    remedy = "use port 5432 (session mode, or the direct connection)"
    if url.get_driver_name() == "psycopg":
        return failed(name, f"{problem}, and no prepared statements, which psycopg uses", remedy)
    return warning(name, problem, remedy)


def _skip(reason: str) -> Iterator[Check]:
    return (skipped(name, reason) for name in _NAMES)


def _database(place: str, *, has_registry: bool) -> Check:
    if has_registry:
        return ok("database", place)
    return warning("database", f"{place} has no table registered_models", _START)


def _of_registry(settings: Settings, engine: Engine) -> Iterator[Check]:
    from supabase_bridge.outbox.artifact_roots import NO_ARTIFACT_ROOTS, load_artifact_roots

    outbox = _outbox(engine)
    yield outbox
    yield _clock(engine)
    if outbox.remedy:
        yield skipped("worker", "there is no outbox to see one in")
        yield skipped("failed events", "there is no outbox")
    else:
        yield _worker(engine)
        yield _failed_events(engine)
    yield _artifacts(settings, NO_ARTIFACT_ROOTS if outbox.remedy else load_artifact_roots(engine))


def _outbox(engine: Engine) -> Check:
    from supabase_bridge.outbox.schema import REVISION, installed_revision

    name = "outbox"
    with engine.connect() as connection:
        found = installed_revision(connection)
    if found is None:
        return warning(name, "its tables do not exist yet: no server with the plugin has used this database", _START)
    if found != REVISION:
        problem = f"revision {found}, and this release knows {REVISION}"
        return failed(name, problem, "install the release that migrated it, or a later one")
    return ok(name, f"revision {found}")


def _clock(engine: Engine) -> Check:
    from supabase_bridge.outbox.database import database_now

    return clock("database clock", database_now(engine))


def clock(name: str, theirs: datetime) -> Check:
    """Compare a server's time, as it was just read, with this machine's."""
    difference = theirs - datetime.now(timezone.utc)
    seconds = difference.total_seconds()
    if abs(difference) > _CLOCK_LIMIT:
        ahead = "ahead of" if seconds > 0 else "behind"
        return warning(name, f"{abs(seconds):.0f} s {ahead} this machine's", "synchronise the clocks with NTP")
    return ok(name, f"within {max(1, round(abs(seconds)))} s of this machine's")


def _worker(engine: Engine) -> Check:
    """Find signs of a worker: a lease in force, or a periodic task whose next run lies ahead."""
    import sqlalchemy as sa

    from supabase_bridge.core.events import EventState
    from supabase_bridge.outbox.database import database_now, milliseconds, to_ms, to_time
    from supabase_bridge.outbox.periodic import RECONCILE
    from supabase_bridge.outbox.tables import OUTBOX, PERIODIC_TASKS

    name = "worker"
    now = to_ms(database_now(engine))
    with engine.connect() as connection:
        holder = sa.select(OUTBOX.c.leased_by).where(OUTBOX.c.leased_until_ms >= now).limit(1)
        if (found := connection.execute(holder).scalar()) is not None:
            return ok(name, f"{found} holds an event")
        due = (OUTBOX.c.state == EventState.PENDING.value) & (OUTBOX.c.not_before_ms <= now)
        since = sa.select(OUTBOX.c.created_ms, OUTBOX.c.not_before_ms).where(due).order_by(OUTBOX.c.id).limit(1)
        waiting = [max(row.created_ms, row.not_before_ms) for row in connection.execute(since)]
        task = sa.select(PERIODIC_TASKS.c.due_ms).where(PERIODIC_TASKS.c.name == RECONCILE)
        next_pass = connection.execute(task).scalar()
    remedy = "start `supabase-bridge worker` (or `server`) with this database, and see its log"
    if waiting and waiting[0] < now - milliseconds(_SILENCE):
        return failed(name, f"an event is due since {format_time(to_time(waiting[0]))}; no worker claimed it", remedy)
    if next_pass is not None and next_pass > now:
        return ok(name, f"one has run lately: its next reconcile pass is due {format_time(to_time(next_pass))}")
    return warning(name, "no sign of one: no event is held, and no reconcile pass was made lately", remedy)


def _failed_events(engine: Engine) -> Check:
    import sqlalchemy as sa

    from supabase_bridge.core.events import EventState
    from supabase_bridge.outbox.tables import OUTBOX

    name = "failed events"
    query = sa.select(sa.func.count()).select_from(OUTBOX).where(OUTBOX.c.state == EventState.DEAD.value)
    with engine.connect() as connection:
        count = int(connection.execute(query).scalar_one())
    if not count:
        return ok(name, "none")
    remedy = (
        "`supabase-bridge outbox list --state dead` shows the reasons; then `outbox retry ID` or `outbox discard ID`"
    )
    return warning(name, f"{count} failed permanently", remedy)


def _artifacts(settings: Settings, recorded: ArtifactRoots) -> Check:
    """List the files of the newest version, in the way in which the worker reads them."""
    from mlflow.exceptions import MlflowException

    from supabase_bridge.core.events import DEFAULT_WORKSPACE
    from supabase_bridge.mirror.errors import SourceRefusedError
    from supabase_bridge.mirror.sources import Sources, destination
    from supabase_bridge.registry.client import Registry

    name = "artifacts"
    served = settings.tracking_uri or destination(settings, recorded)
    # Without the plugin's prefix: this must not create the outbox's tables.
    registry = Registry(tracking_uri=settings.tracking_uri or settings.database_url, registry_uri=settings.database_url)
    remedy = (
        "let the worker reach the files: mount the directory, set tracking_uri to the MLflow server that serves them, "
        "or install the store's client (boto3 for s3://) and its credentials"
    )
    try:
        found = registry.client.search_model_versions(max_results=1, order_by=["last_updated_timestamp DESC"])
        if not found:
            return skipped(name, f"no version is registered yet; artifacts go to {redact_credentials(served)}")
        version = registry.version(found[0].name, int(found[0].version), DEFAULT_WORKSPACE)
        subject = f"{version.model} version {version.version}"
        files = Sources(registry, settings, recorded=lambda: recorded).locate(version).model_folder.files()
    except SourceRefusedError as error:
        return failed(name, str(error), "add the root to allowed_sources, or set artifacts_destination")
    except (BridgeError, MlflowException, OSError, ImportError) as error:
        return failed(name, str(error).split("\n")[0], remedy)
    if not files:
        return failed(name, f"the worker sees no file of {subject}", remedy)
    return ok(name, f"the worker reads {len(files)} files of {subject} ({redact_credentials(served)})")
