"""The outbox behind a connection pooler in transaction mode, which has no prepared statements."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.engine import Engine

from supabase_bridge.core.events import EventState
from supabase_bridge.outbox.database import connect
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import ensure_schema
from tests.support.databases import DatabaseServer, pooled
from tests.support.outboxes import record

_EVENTS = 12
"""psycopg prepares a statement when it executes it for the sixth time."""


def test_a_pooler_in_transaction_mode_serves_the_outbox(postgresql: DatabaseServer) -> None:
    with pooled(postgresql.create()) as url:
        engines = [connect(url) for _ in range(3)]
        ensure_schema(engines[0])
        for _ in range(_EVENTS):
            record(engines[0], model="a")

        def read(engine: Engine) -> int:
            return sum(len(list(Outbox(engine).events(states=(EventState.PENDING,)))) for _ in range(_EVENTS))

        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(read, engines)) == [_EVENTS * _EVENTS] * 3
        for engine in engines:
            engine.dispose()
