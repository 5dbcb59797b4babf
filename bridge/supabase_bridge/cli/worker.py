"""`supabase-bridge worker`: carry registry changes over to Supabase."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supabase_bridge.cli.common import home_option, say_database, say_store, upload_bar
from supabase_bridge.cli.terminal import shown
from supabase_bridge.config import Settings

if TYPE_CHECKING:
    from supabase_bridge.worker import Handled


@click.command("worker")
@home_option
@click.option("--once", is_flag=True, help="Do what is due, then exit; 1 if anything failed for good.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    help="Changes of different models carried out at once. [setting concurrency; default: 1]",
)
def command(home: Path | None, once: bool, concurrency: int | None) -> None:
    """Take registry changes from the outbox and bring Supabase in step, until stopped.

    SIGTERM or Ctrl-C stops it after the changes in hand; any number of workers may run.

    \b
    Example:  supabase-bridge worker --once
    """
    settings = Settings.load(home=home, concurrency=concurrency)
    say_store(settings)
    say_database(settings)
    # MLflow takes seconds to import.
    from supabase_bridge.outbox.events import EventState
    from supabase_bridge.runtime import runtime

    failed: list[int] = []

    def show(handled: Handled) -> None:
        if handled.state is EventState.DEAD:
            failed.append(handled.event.id)
        click.echo(handled_line(handled))

    # Several bars at once on one line are none.
    bar = upload_bar() if settings.concurrency == 1 else None
    with runtime(settings, announce=bar) as made:
        worker = made.worker(on_handled=show)
        if once:
            count = worker.drain()
            click.echo(f"{count} changes taken up, {len(failed)} failed", err=True)
            raise SystemExit(1 if failed else 0)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        click.echo("worker:   ready", err=True)
        worker.run(stop)
        click.echo("worker:   stopped", err=True)


def handled_line(handled: Handled) -> str:
    """One event and what came of it, for people."""
    event = handled.event
    what = event.stage if event.kind.value == "stage_changed" else f"@{event.alias}" if event.alias else None
    about = f"{event.model} v{event.version}" if event.version else event.model
    change = event.kind.value if what is None else f"-> {what}"
    state = "waits" if handled.state.value == "pending" else handled.state.value
    return shown(f"#{event.id} {about} {change}: {state}: {handled.outcome}")
