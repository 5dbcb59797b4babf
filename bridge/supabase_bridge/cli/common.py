"""What commands share: options, the line that says which store is in use, progress bars."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from supabase_bridge.cli.terminal import shown, shown_json
from supabase_bridge.config import Settings
from supabase_bridge.object_store import Progress
from supabase_bridge.object_store.opening import open_store

if TYPE_CHECKING:
    from supabase_bridge.activate import Switch

_DATABASE = re.compile(
    r"(?P<scheme>[a-z0-9+]+)://(?:[^?]*@)?(?P<place>(?:\[[0-9a-fA-F:.]+\]|[^:@/?]*)(?::[0-9]+)?(?:/[^@?]*)?)(?:\?.*)?"
)
"""What may be shown of a database URL; of one that is not clear nothing is, since it may be a part of a password."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def home_option(command: _Command) -> _Command:
    """--home, for every command that reads the settings.

    What the command starts, and MLflow's plugins in its own process, find the same home in the environment.
    """

    def share(_context: click.Context, _option: click.Parameter, home: Path | None) -> Path | None:
        if home is not None:
            os.environ["SUPABASE_BRIDGE_HOME"] = str(home.absolute())
        return home

    return click.option(
        "--home",
        callback=share,
        type=click.Path(file_okay=False, path_type=Path),
        help="Home directory: the embedded database, artifacts and store. [SUPABASE_BRIDGE_HOME; default: mlruns]",
    )(command)


def json_option(command: _Command) -> _Command:
    """--json, for every command that reports."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(command)


def channel_option(command: _Command) -> _Command:
    """--channel, for every command that moves a pointer."""
    return click.option("--channel", default="latest", show_default=True, help="The pointer to move.")(command)


def say_store(settings: Settings) -> None:
    """Say on stderr where releases go, so that nobody mirrors into a folder by mistake."""
    place = open_store(settings, settings.bucket).name
    kind = "embedded, no SUPABASE_URL set" if settings.embedded else "a Supabase project"
    click.echo(shown(f"store:    {place} ({kind})"), err=True)


def say_database(settings: Settings) -> None:
    """Say on stderr which registry is served, without a password in it; drivers take one from the query too."""
    found = _DATABASE.fullmatch(settings.database_url)
    place = "a malformed URL" if found is None else f"{found['scheme']}://{found['place']}"
    click.echo(shown(f"database: {place}"), err=True)


def switch_line(manifest_key: str, switch: Switch) -> str:
    """A pointer's move, for people."""
    verb = "is now" if switch.switched else "was already"
    return shown(f"{manifest_key} {verb} {switch.entry.current.run_id} (entry {switch.entry.sequence})")


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    click.echo(shown_json(value, indent=2))


def upload_bar() -> Callable[[int], Progress] | None:
    """What shows uploads to a person at a terminal; None where nobody watches."""
    if not sys.stderr.isatty():
        return None

    def announce(total_bytes: int) -> Progress:
        bar = click.progressbar(length=total_bytes, label="uploading", file=sys.stderr, width=30)
        bar.render_progress()

        moving = threading.Lock()  # Several files are on their way at once.

        def advance(count: int) -> None:
            with moving:
                bar.update(count)
                if bar.finished:
                    bar.render_finish()

        return advance

    return announce
