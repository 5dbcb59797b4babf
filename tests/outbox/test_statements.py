"""What the outbox's statements cost."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.core.events import EventState
from supabase_bridge.outbox.queue import Outbox
from tests.support.outboxes import LATEST, LEASE, record


def test_no_statement_is_compiled_twice(engine: Engine) -> None:
    outbox = Outbox(engine)

    def use() -> None:
        record(engine)
        event = outbox.claim("w", lease=LEASE)
        assert event is not None
        outbox.until_due()
        outbox.renew(event, "w", lease=LEASE)
        outbox.assignments(event.workspace, event.model, LATEST)
        outbox.finish(event, "w", EventState.DONE, "done")

    use()
    missed: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, *_: Any) -> None:
        if context.compiled is not None and context.cache_hit.name != "CACHE_HIT":
            missed.append(statement)

    sa.event.listen(engine, "after_cursor_execute", note)
    use()
    assert missed == []
