"""The outbox's tables through time: made anew or migrated they are the same, by however many servers at once."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from subprocess import run
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow.store.db.utils import _upgrade_db
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.engine import Engine

from mlflow_supabase.registry_store import build
from supabase_bridge.errors import OutboxNewerError
from supabase_bridge.outbox.events import EventState
from supabase_bridge.outbox.migrating import migrate
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import OUTBOX, REVISION, ensure_schema
from supabase_bridge.outbox.tables import METADATA, VERSION
from tests.compatibility.outboxes import claimed, connect, in_hand, prepare_with_others, record

REGISTRY_ID = "6c9b1c1e-0d0b-4d0e-9d4f-3a3b5a1c2d3e"
AT_REVISION_1 = (
    "INSERT INTO supabase_outbox (id, created_ms, kind, workspace, model, version, stage, previous_stage,"
    " model_deleted, state, attempts, not_before_ms, started_ms, finished_ms, leased_by, leased_until_ms, outcome)"
    " VALUES (:id, 1761998400000, 'stage_changed', 'default', 'a', :id, 'Production', 'None', :no,"
    " :state, 1, 0, 1761998400000, :finished_ms, :leased_by, :leased_until_ms, 'outcome')"
)


def at_revision_1(url: str) -> Engine:
    """A database as the first revision left it: two finished events, two that are in hand, the newest one removed."""
    engine = connect(url)
    with engine.begin() as connection:
        migrate(connection, "base", to="0001")
        VERSION.drop(connection)
        identity = sa.text("INSERT INTO supabase_bridge_meta (id, schema_version, registry_id) VALUES (1, 1, :id)")
        connection.execute(identity, {"id": REGISTRY_ID})
        finished: dict[str, Any] = {"no": False, "finished_ms": 1, "leased_by": None, "leased_until_ms": None}
        held = {"no": False, "state": "pending", "finished_ms": None, "leased_by": "w", "leased_until_ms": 1}
        rows = [
            {"id": 1, "state": "done", **finished},
            {"id": 2, "state": "dead", **finished},
            {"id": 3, **held},
            {"id": 4, **held},
            {"id": 5, "state": "done", **finished},
        ]
        connection.execute(sa.text(AT_REVISION_1), rows)
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT setval(pg_get_serial_sequence('supabase_outbox', 'id'), 5)"))
        connection.execute(sa.text("DELETE FROM supabase_outbox WHERE id = 5"))
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


def test_a_migrated_database_and_a_new_one_are_the_same(database_url: str, second_url: str) -> None:
    migrated, fresh = at_revision_1(database_url), connect(second_url)
    for engine in (migrated, fresh):
        ensure_schema(engine)
    assert set(described(fresh)) == set(METADATA.tables)
    assert described(migrated) == described(fresh)
    assert conditions_of_indexes(migrated) == conditions_of_indexes(fresh)
    migrated.dispose()
    fresh.dispose()


def test_a_migration_keeps_events_and_identity_and_lets_go_what_was_in_hand(database_url: str) -> None:
    engine = at_revision_1(database_url)
    ensure_schema(engine)
    outbox = Outbox(engine)
    assert outbox.registry_id() == REGISTRY_ID
    states = {event.id: event.state for event in outbox.events()}
    assert states == {1: EventState.DONE, 2: EventState.DEAD, 3: EventState.PENDING, 4: EventState.PENDING}
    assert (outbox.get(1).outcome, outbox.get(1).version, outbox.get(1).stage) == ("outcome", 1, "Production")
    assert in_hand(outbox) == [3]
    assert record(engine, model="b") > 5
    engine.dispose()


@pytest.mark.parametrize("prepare", [at_revision_1, connect], ids=["at revision 1", "empty"])
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
    engine, other = at_revision_1(database_url), connect(database_url)
    starts: list[Future[None]] = []
    with ThreadPoolExecutor(1) as pool:

        def about_to_commit(_: object) -> None:
            if not starts:
                starts.append(pool.submit(ensure_schema, other))
                # Longer than a migration takes: one that did not wait would have met the first one's work by then.
                wait(starts, timeout=1)

        sa.event.listen(engine, "commit", about_to_commit)
        ensure_schema(engine)
        starts[0].result(60)
    assert in_hand(Outbox(engine)) == [3]
    engine.dispose()
    other.dispose()


def test_a_migration_that_was_cut_short_goes_on(database_url: str) -> None:
    engine = at_revision_1(database_url)
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
    assert in_hand(Outbox(engine)) == [3]
    engine.dispose()


def test_a_database_that_a_later_release_has_migrated_is_refused_and_left_alone(database_url: str) -> None:
    engine = connect(database_url)
    ensure_schema(engine)
    with engine.begin() as connection:
        connection.execute(VERSION.update().values(version_num="9999"))
    before = described(engine)
    with pytest.raises(OutboxNewerError, match="install the release") as refused:
        ensure_schema(engine)
    assert (refused.value.found, refused.value.known) == ("9999", REVISION)
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


def test_alembic_is_imported_only_to_migrate(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("new") / "mlflow.db"
    program = (
        "import sys, sqlalchemy as sa; from supabase_bridge.outbox.schema import ensure_schema;"
        f"ensure_schema(sa.create_engine('sqlite:///{path}')); print('alembic' in sys.modules)"
    )
    done = run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


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
