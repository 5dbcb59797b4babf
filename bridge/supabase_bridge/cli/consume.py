"""Commands for consumers: pull, watch, verify."""

from __future__ import annotations

import logging
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.output import (
    home_option,
    json_option,
    load_settings,
    print_ignored_keys,
    print_json,
    stop_on_signals,
)
from supabase_bridge.core.text import for_terminal, shown_json

if TYPE_CHECKING:
    from supabase_bridge.client.release import PulledRelease, Release
    from supabase_bridge.client.resolver import Resolver

_logger = logging.getLogger(__name__)

_GRACE_SECONDS = 5
"""Time for the command of --exec to end after SIGTERM."""

_END_SECONDS = 10
_LONGEST_INTERVAL_SECONDS = 86_400


@click.command("pull")
@click.argument("reference", metavar="MODEL[@CHANNEL|/RUN_ID]")
@click.argument("dest", type=click.Path(path_type=Path))
@json_option
@home_option
def pull_command(reference: str, dest: Path, as_json: bool, home: Path | None) -> None:
    """Download a release into the directory DEST and verify the SHA-256 of each file.

    Without @CHANNEL or /RUN_ID the release is the one that `latest` names. Afterwards DEST contains the whole release;
    after an error it is unchanged. If the process is killed while DEST is replaced, DEST is missing, and the next pull
    creates it. DEST must be missing, empty, or contain only a release. If DEST is a mount point (a volume), or its
    parent is not writable, name a directory below it. The files are also cached, so the same release is downloaded
    once.

    The command needs no secret key: SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY, or no key for a public bucket.

    \b
    Example:  supabase-bridge pull two_tower@staging ./model

    \b
    Exit codes:  0 DEST contains the release   1 it is not available or not trusted   2 wrong usage or settings
    """
    with _resolver(home) as resolver:
        pulled = resolver.pull(reference, dest)
    if as_json:
        print_json({**_release_object(pulled.release), "directory": str(pulled.directory.absolute())})
        return
    click.echo(_release_line(pulled.release))
    for path in pulled.files.values():
        click.echo(for_terminal(f"  {path}"))


@click.command("verify")
@click.argument("reference", metavar="MODEL[@CHANNEL|/RUN_ID]")
@json_option
@home_option
def verify_command(reference: str, as_json: bool, home: Path | None) -> None:
    """Verify the manifest (signature, sequence, age), then read every file and compare its SHA-256.

    Every byte is read from the store, not from the cache, and no file is kept. A file that cannot be read now, because
    of the network, the server or a timeout, is shown as ???: it can still be correct. The command stores the sequence
    of the manifest like every consumer, so that an older manifest is refused later.

    \b
    Example:  supabase-bridge verify two_tower --json

    \b
    Exit codes:  0 everything is as recorded   1 it is not, not trusted or not readable   2 wrong usage or settings
    """
    with _resolver(home) as resolver:
        release = resolver.resolve(reference)
        verdicts = resolver.verify(release)
    good = all(verdict.problem is None for verdict in verdicts)
    if as_json:
        problems = {verdict.name: verdict.problem for verdict in verdicts if verdict.problem and not verdict.unread}
        unread = {verdict.name: verdict.problem for verdict in verdicts if verdict.unread}
        print_json({**_release_object(release), "verified": good, "problems": problems, "unread": unread})
    else:
        click.echo(_release_line(release))
        for verdict in verdicts:
            word = "ok " if verdict.problem is None else "???" if verdict.unread else "BAD"
            problem = "" if verdict.problem is None else f": {verdict.problem}"
            record = verdict.record
            click.echo(for_terminal(f"  {word} {verdict.name} {record.size_bytes} {record.sha256}{problem}"))
    if not good:
        sys.exit(1)


def _finite(_context: click.Context, _option: click.Parameter, value: float) -> float:
    """Refuse NaN, which no range check refuses."""
    if math.isnan(value):
        raise click.BadParameter("nan is no number of seconds")
    return value


@click.command("watch")
@click.argument("reference", metavar="MODEL[@CHANNEL]")
@click.option("--exec", "command_line", metavar="CMD", help="Run for each release, with its facts in the environment.")
@click.option(
    "--interval",
    type=click.FloatRange(min=1, max=_LONGEST_INTERVAL_SECONDS),
    callback=_finite,
    default=30,
    show_default=True,
    help="Seconds between two polls.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each release on stdout.")
@home_option
def watch_command(reference: str, command_line: str | None, interval: float, as_json: bool, home: Path | None) -> None:
    """Pull the current release now and after each activation, print it, and run CMD, until SIGINT or SIGTERM.

    CMD is split into words like in a shell, but runs without a shell: values from a release are passed in the
    environment and never in a command line. For pipes and redirections write --exec 'sh -c "..."'. CMD gets
    SUPABASE_RELEASE_MODEL, SUPABASE_RELEASE_CHANNEL, SUPABASE_RELEASE_RUN_ID, SUPABASE_RELEASE_SEQUENCE,
    SUPABASE_RELEASE_DIRECTORY (the verified files) and SUPABASE_RELEASE_ONNX, and the environment of `watch` itself,
    including keys. One CMD runs at a time. If it fails, `watch` reports that on stderr, and runs it again for the next
    release. CMD also runs when stdout is closed. A signal that stops `watch` also stops CMD, by SIGTERM and, 5 seconds
    later, by SIGKILL. During an outage `watch` continues with the last release.

    With SUPABASE_BRIDGE_REALTIME=true and a key, `watch` also listens to hints, and polls at once after a switch.

    \b
    Example:  supabase-bridge watch two_tower@latest --exec 'systemctl reload recommender'

    \b
    Exit codes:  0 stopped by a signal   1 failed   2 wrong usage or settings
    """
    try:
        words = [] if command_line is None else shlex.split(command_line)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--exec") from error
    if command_line is not None and not (words and words[0]):
        raise click.BadParameter("it names no command", param_hint="--exec")
    stop = stop_on_signals()

    def report(pulled: PulledRelease) -> bool:
        release = pulled.release
        as_object = {**_release_object(release), "directory": str(pulled.directory)}
        _print(shown_json(as_object) if as_json else _release_line(release))
        return not words or _run(words, pulled, stop)

    with _resolver(home) as resolver:
        watch = resolver.watch(reference, report, interval=timedelta(seconds=interval), stop=stop, pull=True)
        # The main thread handles signals only between waits with a timeout.
        while not (stop.is_set() or watch.wait(timedelta(seconds=0.5))):
            pass
        # By then CMD has ended or is killed; a running download is abandoned.
        watch.wait(timedelta(seconds=_END_SECONDS))


@contextmanager
def _resolver(home: Path | None) -> Iterator[Resolver]:
    """Open a resolver with the settings, and print on stderr where it reads from."""
    from supabase_bridge.client.resolver import Resolver

    print_ignored_keys()
    with Resolver.from_settings(load_settings(home=home, reading=True)) as resolver:
        click.echo(for_terminal(f"store:    {resolver.name}"), err=True)
        yield resolver


def _release_object(release: Release) -> dict[str, Any]:
    """A release as a JSON object."""
    from supabase_bridge.core.text import format_time

    published = release.published_at
    return {
        "model": release.model,
        "channel": release.channel,
        "run_id": release.run_id,
        "sequence": release.sequence,
        "published_at": None if published is None else format_time(published),
        "model_version": release.model_version,
        "signed": release.signed,
        "onnx_path": release.onnx_path,
        "files": {name: {"size_bytes": one.size_bytes, "sha256": one.sha256} for name, one in release.files.items()},
    }


def _release_line(release: Release) -> str:
    """A release as a line of text."""
    channel = "" if release.channel is None else f"@{release.channel}"
    signed = "signed" if release.signed else "not signed"
    return for_terminal(
        f"{release.model}{channel} {release.run_id} ({len(release.files)} files, {release.size_bytes} bytes, {signed})"
    )


def _print(text: str) -> None:
    """Print a line; if that fails (`| head`, a full disk), log a warning and continue."""
    try:
        click.echo(text)
    except BrokenPipeError:
        _logger.warning("stdout is closed; the watch continues")
        # Later lines, the output of CMD and Python's flush at exit go to the null device.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except OSError as error:
        _logger.warning("the release cannot be printed", extra={"reason": error.strerror})


def _run(words: list[str], pulled: PulledRelease, stop: threading.Event) -> bool:
    """Run the command of --exec to its end, or until `stop` is set; return whether it succeeded."""
    from supabase_bridge.settings.sources import child_environment

    release = pulled.release
    facts = {
        "MODEL": release.model,
        "CHANNEL": release.channel or "",
        "RUN_ID": release.run_id,
        "SEQUENCE": str(release.sequence or ""),
        "DIRECTORY": str(pulled.directory),
        "ONNX": str(pulled.onnx),
    }
    environment = child_environment({f"SUPABASE_RELEASE_{name}": value for name, value in facts.items()})
    try:
        with subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL) as process:
            code = _wait(process, stop)
    except OSError as error:
        click.echo(for_terminal(f"Error: {words[0]} cannot be run: {(error.strerror or str(error)).lower()}"), err=True)
        return False
    if code:
        click.echo(for_terminal(f"Error: {words[0]} ended with exit code {code} for {release.run_id}"), err=True)
    return code == 0


def _wait(process: subprocess.Popen[bytes], stop: threading.Event) -> int:
    """Return the exit code of a process. After `stop` is set, send SIGTERM, and SIGKILL after the grace time."""
    kill_at: float | None = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.2)
        if stop.is_set():
            now = time.monotonic()
            if kill_at is None:
                process.terminate()
                kill_at = now + _GRACE_SECONDS
            elif now >= kill_at:
                process.kill()
