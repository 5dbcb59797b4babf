"""`supabase-bridge watch`: do something whenever another release becomes current."""

from __future__ import annotations

import shlex
import signal
import subprocess
import threading
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

_END_SECONDS = 10


@click.command("watch")
@click.argument("reference", metavar="MODEL[@CHANNEL]")
@click.option("--exec", "command_line", metavar="CMD", help="Run for each release, its facts in the environment.")
@click.option(
    "--interval", type=click.FloatRange(min=1), default=30, show_default=True, help="Seconds between two looks."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each release on stdout.")
@home_option
def command(reference: str, command_line: str | None, interval: float, as_json: bool, home: Path | None) -> None:
    """Pull what is current, and again after each switch; print it, and run CMD, until SIGINT or SIGTERM.

    CMD is split into words as a shell would, and run without one: what a release says goes into the environment and
    never into a command line. For pipes and redirections write --exec 'sh -c "..."'. It finds SUPABASE_RELEASE_MODEL,
    SUPABASE_RELEASE_CHANNEL, SUPABASE_RELEASE_RUN_ID, SUPABASE_RELEASE_SEQUENCE, SUPABASE_RELEASE_DIRECTORY (its files,
    verified) and SUPABASE_RELEASE_ONNX. Until it has ended nothing else is run; where it fails that is said on stderr,
    and the next switch runs it again. An outage changes nothing.

    \b
    Example:  supabase-bridge watch two_tower@latest --exec 'systemctl reload recommender'

    \b
    Exit codes:  0 stopped by a signal   1 failed   2 wrong use or settings
    """
    try:
        words = [] if command_line is None else shlex.split(command_line)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--exec") from error
    stop = threading.Event()

    def report(pulled: PulledRelease) -> None:
        release = pulled.release
        if as_json:
            click.echo(shown_json({**facts(release), "directory": str(pulled.directory)}))
        else:
            click.echo(line(release))
        if words:
            _run(words, pulled, stop)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with opened(home) as resolver:
        watch = resolver.watch(reference, report, interval=timedelta(seconds=interval), stop=stop, pull=True)
        # A thread that waits without end hears no signal.
        while not (stop.is_set() or watch.wait(timedelta(seconds=0.5))):
            pass
        # A command is ended by then; a download that is under way is given up.
        watch.wait(timedelta(seconds=_END_SECONDS))


def _run(words: list[str], pulled: PulledRelease, stop: threading.Event) -> None:
    """Run the command to its end; a signal that ends the watch ends it too."""
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
            while True:
                try:
                    code = process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    if stop.is_set():
                        process.terminate()
    except OSError as error:
        click.echo(shown(f"Error: {words[0]} cannot be run: {(error.strerror or str(error)).lower()}"), err=True)
        return
    if code:
        click.echo(shown(f"Error: {words[0]} ended with exit code {code} for {release.run_id}"), err=True)
