"""Commands that run until they are stopped: server, worker, watch-registry; and the demo."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supabase_bridge.cli.output import (
    home_option,
    load_settings,
    print_database,
    print_store,
    stop_on_signals,
    upload_bar,
)
from supabase_bridge.core.text import for_terminal

if TYPE_CHECKING:
    import threading

    from supabase_bridge.app.runtime import Runtime
    from supabase_bridge.worker.worker import EventResult, Worker


@click.command("demo")
@home_option
@click.option("--model", help="Registered model to use. [default: two_tower; with a real project two_tower_demo]")
def demo_command(home: Path | None, model: str | None) -> None:
    """Train two small two-tower models, log them to MLflow, promote 1, then 2, and roll back to 1.

    The training, the MLflow database and the worker are real; only the data is generated. Each run adds two versions.

    \b
    Example:  supabase-bridge demo --home /tmp/try
    """
    settings = load_settings(home=home)
    name = model or ("two_tower" if settings.embedded else "two_tower_demo")
    print_store(settings)
    print_database(settings)
    # NumPy reads it when it is imported. On matrices this small, several threads mostly wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    def progress(step: str) -> None:
        click.echo(f"demo:     {step}", err=True)

    progress("loading MLflow")
    # MLflow takes seconds to import.
    from supabase_bridge.app.runtime import open_runtime
    from supabase_bridge.demo import run as demo

    demo.prepare(settings)
    with open_runtime(settings, announce=upload_bar()) as runtime:
        manifest = demo.run(runtime, name, click.echo, progress)
    at_home = "" if home is None else f" --home {home}"
    click.echo(
        f"\n{manifest.model_name}/latest/manifest.json, as a consumer reads it:\n\n{manifest.to_bytes().decode()}\n"
        "Next steps:\n"
        f"  supabase-bridge status{at_home}\n"
        f"  supabase-bridge server{at_home}     then promote a version in the browser, http://127.0.0.1:5000/#/models/{name}\n"
    )


@click.command("server")
@home_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- MLFLOW SERVER OPTIONS]")
def server_command(home: Path | None, host: str, port: int, more: tuple[str, ...]) -> None:
    """Run `mlflow server` with the plugins and one worker, until SIGTERM or Ctrl-C, which stop both.

    The options after -- are passed to `mlflow server` unchanged.

    \b
    Example:  supabase-bridge server --port 5001 -- --workers 2
    """
    from supabase_bridge.app.server import Address, check_options, check_plugin, run_server

    settings = load_settings(home=home)
    check_options(more)
    check_plugin(settings)
    if settings.announce:
        from supabase_bridge.announce.senders import check_destinations

        check_destinations(settings)  # The worker does not start without them.
    settings.home.mkdir(parents=True, exist_ok=True)
    print_store(settings)
    print_database(settings)
    address = Address(host=host, port=port)

    def ready() -> None:
        click.echo(f"server:   {address.url} (Ctrl-C stops it)", err=True)

    def wait(seconds: float) -> None:
        click.echo(f"server:   starting, {seconds:.0f} seconds so far (Ctrl-C stops it)", err=True)

    raise SystemExit(run_server(settings, address, more, on_ready=ready, on_wait=wait))


@click.command("worker")
@home_option
@click.option("--once", is_flag=True, help="Process due events, then exit; 1 if any failed permanently.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    help="Number of events, of different models, processed at once. [setting concurrency; default: 1]",
)
@click.option("--after-input", is_flag=True, hidden=True, help="Begin after a line on the standard input.")
def worker_command(home: Path | None, once: bool, concurrency: int | None, after_input: bool) -> None:
    """Process registry events from the outbox: upload releases and update manifests, until stopped.

    SIGTERM or Ctrl-C stops the worker: it finishes what takes up to five seconds, and gives the other events back. Any
    number of workers may run.

    \b
    Example:  supabase-bridge worker --once
    """
    settings = load_settings(home=home, concurrency=concurrency)
    print_store(settings)
    print_database(settings)
    # MLflow takes seconds to import.
    from supabase_bridge.app.runtime import open_runtime, prepare_imports

    if after_input:
        prepare_imports()
        if not sys.stdin.readline():
            return  # The server ended before it answered.
    # Several progress bars cannot share one line.
    bar = upload_bar() if settings.concurrency == 1 else None
    with open_runtime(settings, announce=bar) as runtime:
        runtime.announcer.open()
        results = _Results()
        worker = runtime.worker(on_handled=results)
        stop = stop_on_signals()
        if once:
            results.conclude(runtime, worker, stop)
        click.echo("worker:   ready", err=True)
        worker.run(stop)
        click.echo("worker:   stopped", err=True)
    _exit_if_gave_back(worker)


@click.command("watch-registry")
@click.option("--tracking-uri", required=True, help="Address of the MLflow server, http:// or https://.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="Seconds between two polls."
)
@click.option(
    "--full-interval",
    type=click.FloatRange(0.1, 86_400),
    default=300.0,
    show_default=True,
    help="Seconds between two polls that read every version. Only these find deletions.",
)
@click.option("--once", is_flag=True, help="Poll once, process due events, then exit; 1 if any failed permanently.")
@home_option
def watch_registry_command(
    tracking_uri: str, interval: float, full_interval: float, once: bool, home: Path | None
) -> None:
    """Follow the registry of an MLflow server over its REST API, and update Supabase, until stopped.

    For a registry that cannot load the plugin, such as a managed MLflow. The state of the last poll is stored in
    <home>/watch.db, or in the database of SUPABASE_BRIDGE_WATCH_DATABASE_URL, so that a restart neither loses nor
    repeats an event. The credentials come from MLflow's own variables: MLFLOW_TRACKING_USERNAME,
    MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN.

    \b
    Exit codes:  0 stopped, or done with --once   1 an event failed permanently (--once), or the worker ended
    unexpectedly   2 wrong usage or settings

    \b
    Example:  supabase-bridge watch-registry --tracking-uri https://mlflow.example.com
    """
    settings = load_settings(home=home)
    print_store(settings)
    # MLflow takes seconds to import.
    from supabase_bridge.app.follower import follow_registry
    from supabase_bridge.app.runtime import open_runtime

    with open_runtime(settings, remote=tracking_uri, announce=upload_bar()) as runtime:
        runtime.announcer.open()
        results = _Results()
        worker = runtime.worker(on_handled=results)
        stop = stop_on_signals()
        if once:
            found = runtime.poller.poll(full=True)
            results.conclude(runtime, worker, stop, f"{len(found.events)} changes found, ")
        click.echo("watch:    ready", err=True)
        follow_registry(
            runtime.poller,
            worker,
            stop,
            interval=timedelta(seconds=interval),
            full_interval=timedelta(seconds=full_interval),
        )
        click.echo("watch:    stopped", err=True)
    _exit_if_gave_back(worker)


def _exit_if_gave_back(worker: Worker, code: int = 0) -> None:
    """End this process at once if the worker gave an event back: Python would wait for the threads of its upload."""
    if worker.gave_back:
        for child in multiprocessing.active_children():
            child.kill()
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)


class _Results:
    """Prints the result of each event and counts the permanent failures."""

    def __init__(self) -> None:
        self._failed = 0

    def __call__(self, result: EventResult) -> None:
        event, state = result.event, result.state.value
        self._failed += state == "dead"
        change = event.kind.value
        if change == "stage_changed":
            change = f"-> {event.stage}"
        elif event.alias:
            change = f"-> @{event.alias}"
        subject = f"{event.model} v{event.version}" if event.version else event.model
        state = "waits" if state == "pending" else state
        click.echo(for_terminal(f"#{event.id} {subject} {change}: {state}: {result.outcome}"))

    def conclude(self, runtime: Runtime, worker: Worker, stop: threading.Event, found: str = "") -> None:
        """Process every event that is due, or until `stop` is set, print the counts, and end the command."""
        count = worker.drain(stop=stop)
        runtime.announcer.deliver_due(stop)
        click.echo(f"{found}{count} events processed, {self._failed} failed", err=True)
        code = 1 if self._failed else 0
        _exit_if_gave_back(worker, code)
        raise SystemExit(code)
