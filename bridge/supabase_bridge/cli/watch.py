"""`supabase-bridge watch`: do something whenever another release becomes current."""

from __future__ import annotations

import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supabase_bridge.cli.common import home_option
from supabase_bridge.cli.consumer import facts, line, opened
from supabase_bridge.cli.terminal import shown, shown_json
from supabase_bridge.config import child_environment

if TYPE_CHECKING:
    from supabase_bridge.consumer.release import PulledRelease

_GRACE_SECONDS = 5
"""So long a command may take to end when it is asked to."""
_END_SECONDS = 10
_LONGEST_INTERVAL_SECONDS = 86_400

_logger = logging.getLogger(__name__)


def _a_number(_context: click.Context, _option: click.Parameter, value: float) -> float:
    """The range compares, and NaN compares with nothing."""
    if math.isnan(value):
        raise click.BadParameter("nan is no number of seconds")
    return value


@click.command("watch")
@click.argument("reference", metavar="MODEL[@CHANNEL]")
@click.option("--exec", "command_line", metavar="CMD", help="Run for each release, its facts in the environment.")
@click.option(
    "--interval",
    type=click.FloatRange(min=1, max=_LONGEST_INTERVAL_SECONDS),
    callback=_a_number,
    default=30,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each release on stdout.")
@home_option
def command(reference: str, command_line: str | None, interval: float, as_json: bool, home: Path | None) -> None:
    """Pull what is current, and again after each switch; print it, and run CMD, until SIGINT or SIGTERM.

    CMD is split into words as a shell would, and run without one: what a release says goes into the environment and
    never into a command line. For pipes and redirections write --exec 'sh -c "..."'. It finds SUPABASE_RELEASE_MODEL,
    SUPABASE_RELEASE_CHANNEL, SUPABASE_RELEASE_RUN_ID, SUPABASE_RELEASE_SEQUENCE, SUPABASE_RELEASE_DIRECTORY (its files,
    verified) and SUPABASE_RELEASE_ONNX, beside the environment of `watch` itself, keys included. Until it has ended
    nothing else is run; where it fails that is said on stderr, and the next switch runs it again. It runs whether
    anybody reads what is printed or not. A signal that ends the watch ends it too: by SIGTERM, and 5 seconds later by
    SIGKILL. An outage changes nothing.

    \b
    Example:  supabase-bridge watch two_tower@latest --exec 'systemctl reload recommender'

    \b
    Exit codes:  0 stopped by a signal   1 failed   2 wrong use or settings
    """
    try:
        words = [] if command_line is None else shlex.split(command_line)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--exec") from error
    if command_line is not None and not (words and words[0]):
        raise click.BadParameter("it names no command", param_hint="--exec")
    stop = threading.Event()

    def report(pulled: PulledRelease) -> None:
        release = pulled.release
        _print(shown_json({**facts(release), "directory": str(pulled.directory)}) if as_json else line(release))
        if words:
            _run(words, pulled, stop)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with opened(home) as resolver:
        watch = resolver.watch(reference, report, interval=timedelta(seconds=interval), stop=stop, pull=True)
        # A thread that waits without end hears no signal.
        while not (stop.is_set() or watch.wait(timedelta(seconds=0.5))):
            pass
        # A command has ended by then, or was killed; a download that is under way is given up.
        watch.wait(timedelta(seconds=_END_SECONDS))


def _print(text: str) -> None:
    """Print what is current; where that fails (`| head`, a full disk), what comes after it is done all the same."""
    try:
        click.echo(text)
    except BrokenPipeError:
        _logger.warning("Nobody reads what is printed any more; the watch goes on")
        # For later lines, for what the command prints, and for what Python flushes at the end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except OSError as error:
        _logger.warning("What is current cannot be printed", extra={"reason": error.strerror})


def _run(words: list[str], pulled: PulledRelease, stop: threading.Event) -> None:
    """Run the command to its end; a signal that ends the watch ends it too, whatever it does about SIGTERM."""
    release = pulled.release
    named = {
        "MODEL": release.model,
        "CHANNEL": release.channel or "",
        "RUN_ID": release.run_id,
        "SEQUENCE": str(release.sequence or ""),
        "DIRECTORY": str(pulled.directory),
        "ONNX": str(pulled.onnx),
    }
    environment = child_environment({f"SUPABASE_RELEASE_{name}": value for name, value in named.items()})
    try:
        with subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL) as process:
            code = _end_of(process, stop)
    except OSError as error:
        click.echo(shown(f"Error: {words[0]} cannot be run: {(error.strerror or str(error)).lower()}"), err=True)
        return
    if code:
        click.echo(shown(f"Error: {words[0]} ended with exit code {code} for {release.run_id}"), err=True)


def _end_of(process: subprocess.Popen[bytes], stop: threading.Event) -> int:
    """The exit code of a process, once it has ended; after `stop` it is asked to end, and then made to."""
    killed_at: float | None = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.2)
        if stop.is_set():
            now = time.monotonic()
            if killed_at is None:
                process.terminate()
                killed_at = now + _GRACE_SECONDS
            elif now >= killed_at:
                process.kill()
