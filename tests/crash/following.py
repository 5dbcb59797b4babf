"""Follows a stock server once for each commit, killed before or after it, and each time once more to the end.

python -m tests.crash.following URL SERVER HOME RUNS: SERVER is the database of the server at URL, and is set back for
each run; HOME has followed it and has not seen its last changes, and is copied for each run. A line of JSON on stdout
says how each run ended. The processes are forked from this one; see `tests.crash.driver`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from supabase_bridge.settings.model import Settings
from supabase_bridge.worker.worker import Worker
from tests.crash.driver import QUERIES, RECOVERED_AT, STARTED_AT, forked, recorded
from tests.crash.effects import Effects, Kill
from tests.support.databases import copy_sqlite

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from supabase_bridge.app.runtime import open_runtime


_RENEWAL = "UPDATE supabase_outbox SET leased_until_ms="


def count_commits(effects: Effects) -> None:
    """Make every commit that writes a side effect of this process, named by its last statement.

    Lease renewals aside, which come by the clock on the wall.
    """
    written = threading.local()
    changed: Any = DefaultDialect
    commit = changed.do_commit

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(("SELECT", "PRAGMA", "BEGIN", _RENEWAL)):
            written.last = " ".join(statement.split())[:60]

    def counted(dialect: DefaultDialect, connection: Any) -> None:
        last, written.last = getattr(written, "last", None), None
        if last is None:
            commit(dialect, connection)
        else:
            effects(f"commit {last}", lambda: commit(dialect, connection))

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", note)
    changed.do_commit = counted


def follow(settings: Settings, url: str, now: datetime) -> None:
    """Look once at a server, and carry out what is due."""
    with open_runtime(settings, remote=url) as made:
        made.poller.poll()
        worker = Worker(
            name=f"worker {os.getpid()}",
            settings=settings,
            outbox=made.outbox,
            processor=made.processor,
            clock=lambda: now,
        )
        worker.drain()


def main() -> None:
    """Run undisturbed, then once for each point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("server", type=Path)
    parser.add_argument("home", type=Path)
    parser.add_argument("runs", type=Path)
    asked = parser.parse_args()
    before = asked.runs / "server.db"
    copy_sqlite(asked.server, before)
    tables = {name: query for name, query in QUERIES.items() if name != "events"}

    def run(name: str, kill: Kill | None) -> None:
        copy_sqlite(before, asked.server)
        home = asked.runs / "running"
        shutil.copytree(asked.home, home)
        settings = Settings.load(home=home)

        def work(log: str, kill: Kill | None, now: datetime) -> int:
            def act() -> None:
                count_commits(Effects(home / log, kill))
                follow(settings, asked.url, now)

            return forked(act)

        if name == "rehearsal":
            # In this process: see `tests.crash.driver.Stage.run`.
            follow(settings, asked.url, STARTED_AT)
            shutil.rmtree(home)
            return
        codes = [work("effects", kill, STARTED_AT)]
        if kill is not None:
            codes.append(work("recovery", None, RECOVERED_AT))
        rows = recorded(settings.watch_database_url, {"events": QUERIES["events"]})
        rows |= recorded(f"sqlite:///{asked.server}", tables)
        home.rename(asked.runs / name)
        sys.stdout.write(json.dumps({"name": name, "codes": codes, "rows": rows}) + "\n")
        sys.stdout.flush()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run("rehearsal", None)
        run("undisturbed", None)
        count = len((asked.runs / "undisturbed" / "effects").read_text().splitlines())
        for number in range(1, count + 1):
            for moment in ("before", "after"):
                run(f"{moment}-{number:03d}", Kill(number, moment))


if __name__ == "__main__":
    main()
