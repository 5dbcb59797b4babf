"""`supabase-bridge watch-registry`: follow an MLflow server that cannot have the plugin."""

from __future__ import annotations

import logging
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supabase_bridge.cli.common import home_option, say_store, upload_bar
from supabase_bridge.config import Settings
from supabase_bridge.errors import BridgeError, WorkerDiedError

if TYPE_CHECKING:
    from supabase_bridge.registry_watch import RegistryWatch
    from supabase_bridge.worker import Handled

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 60.0


@click.command("watch-registry")
@click.option("--tracking-uri", required=True, help="Address of the MLflow server, http:// or https://.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="Seconds between two looks."
)
@click.option(
    "--full-interval",
    type=click.FloatRange(0.1, 86_400),
    default=300.0,
    show_default=True,
    help="Seconds between two looks at every version, which find deletions.",
)
@click.option("--once", is_flag=True, help="Look once, do what is due, then exit; 1 if anything failed for good.")
@home_option
def command(tracking_uri: str, interval: float, full_interval: float, once: bool, home: Path | None) -> None:
    """Follow the registry of an MLflow server over its REST API, and bring Supabase in step, until stopped.

    For a registry that cannot have the plugin: a managed MLflow. What was seen is kept in <home>/watch.db (or where
    SUPABASE_BRIDGE_WATCH_DATABASE_URL says), so that nothing is lost or done twice when this is stopped or killed.
    MLflow's own variables say how to log in: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN.

    \b
    Exit codes:  0 stopped, or done with --once   1 something failed for good (--once), or the worker ended
    unexpectedly   2 wrong use or settings

    \b
    Example:  supabase-bridge watch-registry --tracking-uri https://mlflow.example.com
    """
    settings = Settings.load(home=home)
    say_store(settings)
    # MLflow takes seconds to import.
    from supabase_bridge.cli.worker import handled_line
    from supabase_bridge.outbox.events import EventState
    from supabase_bridge.registry_watching import watching

    failed: list[int] = []

    def show(handled: Handled) -> None:
        if handled.state is EventState.DEAD:
            failed.append(handled.event.id)
        click.echo(handled_line(handled))

    with watching(settings, tracking_uri, announce=upload_bar()) as made:
        worker = made.runtime.worker(on_handled=show)
        if once:
            found = made.watch.poll(full=True)
            count = worker.drain()
            click.echo(f"{len(found.events)} changes seen, {count} taken up, {len(failed)} failed", err=True)
            raise SystemExit(1 if failed else 0)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        died: list[Exception] = []

        def work() -> None:
            try:
                worker.run(stop)
            except Exception as error:  # noqa: BLE001 - the edge of a thread: the command ends with it
                died.append(error)
            finally:
                stop.set()

        working = threading.Thread(target=work, name="worker")
        working.start()
        click.echo("watch:    ready", err=True)
        try:
            follow(made.watch, stop, interval_seconds=interval, full_interval_seconds=full_interval)
        finally:
            stop.set()
            working.join()
        if died:
            raise WorkerDiedError(f"{type(died[0]).__name__}: {died[0]}") from died[0]
        click.echo("watch:    stopped", err=True)


def follow(
    watch: RegistryWatch, stop: threading.Event, *, interval_seconds: float, full_interval_seconds: float
) -> None:
    """Look again and again until `stop` is set; an outage of the server is waited out, with growing pauses."""
    looked_at_all: float | None = None
    failures = 0
    while not stop.is_set():
        pause_seconds = interval_seconds
        begun = time.monotonic()
        try:
            full = looked_at_all is None or begun - looked_at_all >= full_interval_seconds
            if watch.poll(full=full).full:
                looked_at_all = begun
            failures = 0
        except BridgeError as error:
            failures += 1
            pause_seconds = max(
                interval_seconds, min(interval_seconds * 2 ** min(failures - 1, 10), _LONGEST_PAUSE_SECONDS)
            )
            logger.warning("the registry cannot be read", extra={"reason": str(error), "failures": failures})
        stop.wait(pause_seconds)
