"""The outbox's tables: a new database and an existing one are the same, however many servers start at once."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow.store.db.utils import _upgrade_db
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.engine import Engine

from mlflow_supabase.store import build
from supabase_bridge.core.events import EventState
from supabase_bridge.outbox import periodic
from supabase_bridge.outbox.errors import DatabaseError
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import REVISION, ensure_schema
from supabase_bridge.outbox.tables import METADATA, OUTBOX, VERSION
from tests.support.outboxes import claimed, connect, in_hand, prepare_with_others, record

SNAPSHOTS = Path(__file__).with_name("revision_0004")
"""One SQL file for each database: tables and rows as an earlier revision of the code created them at revision 0004.

Event 1 is done, 2 is dead, 3 is held by a worker whose lease has ended, 4 mirrors a version of the same model.
"""
REGISTRY_ID = "6c9b1c1e-0d0b-4d0e-9d4f-3a3b5a1c2d3e"


def existing(url: str) -> Engine:
    """Connect to a database that an earlier revision of the code created."""
    engine = connect(url)
    statements = (SNAPSHOTS / f"{engine.dialect.name.replace('mysql', 'mariadb')}.sql").read_text().split(";\n")
    with engine.begin() as connection:
        for statement in filter(None, statements):
            connection.exec_driver_sql(statement)
    return engine


def described(engine: Engine) -> dict[str, Any]:
    """Every table of ours as the database has it."""
    inspector = sa.inspect(engine)
    hidden = ("dialect_options",) if engine.dialect.name == "sqlite" else ()

    def sorted_by_name(items: list[Any]) -> list[str]:
        # What is said of the dialect: expressions without a representation, which `conditions_of_indexes` reads.
        return sorted(
            repr(sorted((key, str(value)) for key, value in item.items() if key not in hidden)) for item in items
        )

    found: dict[str, Any] = {}
    for name in sorted(table for table in inspector.get_table_names() if table.startswith("supabase_")):
        # Engine and character set, which only MySQL has; SQLAlchemy 2.0 asks no other database.
        options = inspector.get_table_options(name) if engine.dialect.name in {"mysql", "mariadb"} else {}
        found[name] = {
            "columns": sorted_by_name(inspector.get_columns(name)),
            "key": str(inspector.get_pk_constraint(name)),
            "indexes": sorted_by_name(inspector.get_indexes(name)),
            "unique": sorted_by_name(inspector.get_unique_constraints(name)),
            "checks": sorted_by_name(inspector.get_check_constraints(name)),
            "options": {key: value for key, value in options.items() if "increment" not in key},
        }
    return found


def conditions_of_indexes(engine: Engine) -> list[str]:
    """What SQLite says of its partial indexes and of AUTOINCREMENT: its inspector leaves them out."""
    if engine.dialect.name != "sqlite":
        return []
    query = "SELECT sql FROM sqlite_master WHERE name LIKE 'supabase%' AND sql IS NOT NULL"
    with engine.connect() as connection:
        texts = connection.exec_driver_sql(query).scalars().all()
    return sorted(" ".join(text.split()).replace('"', "") for text in texts if "INDEX" in text) + [
        text.split("(")[0].replace('"', "").strip() for text in texts if "AUTOINCREMENT" in text
    ]


@pytest.fixture
def second_url(database_url: str, request: pytest.FixtureRequest) -> str:
    """Another empty database of the same kind."""
    kind = sa.make_url(database_url).get_backend_name()
    if kind == "sqlite":
        return f"{database_url}.second"
    url: str = request.getfixturevalue({"mysql": "mariadb"}.get(kind, kind)).create()
    return url


def test_an_existing_database_and_a_new_one_are_the_same(database_url: str, second_url: str) -> None:
    old, fresh = existing(database_url), connect(second_url)
    for engine in (old, fresh):
        ensure_schema(engine)
    assert set(described(fresh)) == set(METADATA.tables)
    assert described(old) == described(fresh)
    assert conditions_of_indexes(old) == conditions_of_indexes(fresh)
    old.dispose()
    fresh.dispose()


def test_an_existing_database_is_migrated_keeps_its_events_and_works(database_url: str) -> None:
    engine = existing(database_url)
    ensure_schema(engine)
    outbox = Outbox(engine)
    assert outbox.registry_id() == REGISTRY_ID
    states = {event.id: event.state for event in outbox.events()}
    assert states == {1: EventState.DONE, 2: EventState.DEAD, 3: EventState.PENDING, 4: EventState.PENDING}
    assert (outbox.get(1).version, outbox.get(1).stage) == (1, "Production")
    assert periodic.cursor(engine, periodic.RECONCILE) == "releases/a"
    assert in_hand(outbox) == [3]
    assert (outbox.get(3).attempts, outbox.get(3).takeovers) == (2, 1)
    assert record(engine, model="c") == 5
    engine.dispose()


@pytest.mark.parametrize("prepare", [existing, connect], ids=["existing", "empty"])
def test_servers_that_start_at_once_agree(database_url: str, prepare: Callable[[str], Engine]) -> None:
    prepare(database_url).dispose()
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(3)
    processes = [context.Process(target=prepare_with_others, args=(database_url, ready)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    engine = connect(database_url)
    with engine.connect() as connection:
        assert connection.execute(sa.select(VERSION.c.version_num)).scalars().all() == [REVISION]
    assert Outbox(engine).registry_id()
    engine.dispose()


def test_a_server_that_starts_while_another_is_about_to_commit_waits_for_it(database_url: str) -> None:
    engine, other = connect(database_url), connect(database_url)
    starts: list[Future[None]] = []
    with ThreadPoolExecutor(1) as pool:

        def about_to_commit(_: object) -> None:
            if not starts:
                starts.append(pool.submit(ensure_schema, other))
                # Longer than a migration takes: a server that did not wait would fail on existing tables by then.
                wait(starts, timeout=1)

        sa.event.listen(engine, "commit", about_to_commit)
        ensure_schema(engine)
        starts[0].result(60)
    assert Outbox(engine).registry_id() == Outbox(other).registry_id()
    engine.dispose()
    other.dispose()


def test_a_creation_that_was_cut_short_goes_on(database_url: str) -> None:
    engine = connect(database_url)
    cut_short: list[str] = []

    def cut(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "supabase_outbox_finished_ms" in statement and not cut_short:
            cut_short.append(statement)
            raise KeyboardInterrupt

    sa.event.listen(engine, "before_cursor_execute", cut)
    with pytest.raises(KeyboardInterrupt):
        ensure_schema(engine)
    ensure_schema(engine)
    assert cut_short
    assert set(described(engine)) == set(METADATA.tables)
    assert in_hand(Outbox(engine)) == []
    engine.dispose()


def test_a_database_that_a_later_release_has_migrated_is_refused_and_left_alone(database_url: str) -> None:
    engine = connect(database_url)
    ensure_schema(engine)
    with engine.begin() as connection:
        connection.execute(VERSION.update().values(version_num="9999"))
    before = described(engine)
    with pytest.raises(DatabaseError, match=f"revision 9999.*{REVISION}; install the release"):
        ensure_schema(engine)
    assert described(engine) == before
    engine.dispose()


def test_a_start_with_nothing_to_do_asks_once(database_url: str) -> None:
    engine = connect(database_url)
    ensure_schema(engine)
    asked: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
    ensure_schema(engine)
    assert [statement for statement in asked if not statement.startswith("PRAGMA journal_mode")] == [asked[-1]]
    assert "supabase_bridge_version" in asked[-1]
    engine.dispose()


def test_alembic_is_imported_only_to_create_tables(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("new") / "mlflow.db"
    program = (
        "import sys, sqlalchemy as sa; from supabase_bridge.outbox.schema import ensure_schema;"
        f"ensure_schema(sa.create_engine('sqlite:///{path}')); print('alembic' in sys.modules)"
    )
    imported = [
        run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    assert imported == ["True\n", "False\n"]


def test_mlflow_upgrades_its_tables_and_does_not_see_ours(registry_url: str) -> None:
    store: Any = build(f"supabase+{registry_url}")
    before = described(store.engine)
    record(store.engine)
    _upgrade_db(store.engine)
    assert described(store.engine) == before
    assert claimed(Outbox(store.engine)).model == "a"
    store.engine.dispose()
    stock: Any = SqlAlchemyStore(registry_url)
    assert list(stock.search_registered_models()) == []
    stock.engine.dispose()


@pytest.fixture
def registry_url(sqlite_registry: Any) -> str:
    """A database in which MLflow has made its tables."""
    url: str = sqlite_registry.url
    return url


def test_the_database_itself_refuses_what_must_not_be(engine: Engine) -> None:
    created, other = record(engine), record(engine, model="b")
    second = record(engine, version=2)
    wrong: list[dict[str, Any]] = [
        {"state": "lost"},
        {"state": "done"},
        {"finished_ms": 1},
        {"leased_by": "w"},
        {"leased_until_ms": 1},
        {"leased_by": "w", "leased_until_ms": 1, "state": "done", "finished_ms": 1},
        {"attempts": -1},
    ]
    for values in wrong:
        with pytest.raises(sa.exc.DBAPIError), engine.begin() as connection:
            connection.execute(OUTBOX.update().where(OUTBOX.c.id == created).values(values))
    held = {"leased_by": "w", "leased_until_ms": 1}
    with engine.begin() as connection:
        connection.execute(OUTBOX.update().where(OUTBOX.c.id.in_([created, other])).values(held))
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(OUTBOX.update().where(OUTBOX.c.id == second).values(held))
