"""Shared by the commands: options, text and JSON output, progress bar, signals, logging."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from supabase_bridge.core.errors import SettingsError, redact_credentials
from supabase_bridge.core.text import for_terminal, shown_json, shown_lines

if TYPE_CHECKING:
    from supabase_bridge.releases.channel import Activation
    from supabase_bridge.settings.model import Settings
    from supabase_bridge.storage.base import ObjectStore, Progress

_DATABASE = re.compile(
    r"(?P<scheme>[a-z0-9+]+)://(?:[^?]*@)?(?P<place>(?:\[[0-9a-fA-F:.]+\]|[^:@/?]*)(?::[0-9]+)?(?:/[^@?]*)?)(?:\?.*)?"
)
"""The part of a database URL that may be shown. A URL that does not match is not shown: it can contain a password."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def home_option(command: _Command) -> _Command:
    """--home, for every command that reads the settings.

    The option sets the environment variable too, for child processes and for MLflow's plugins in this process.
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
    """--channel, for every command that changes a channel."""
    return click.option("--channel", default="latest", show_default=True, help="The channel to change.")(command)


def parse_time(option: str, text: str) -> datetime:
    """Return the time that an option names, in UTC if it has no zone.

    Raises:
        SettingsError: the text is no time.
    """
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise SettingsError(option, f"{text!r} is no time; expected one such as 2026-12-27T08:00Z") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)


def load_settings(*, home: Path | None, concurrency: int | None = None, reading: bool = False) -> Settings:
    """Load the settings of a command; see `Settings.load`."""
    # pydantic takes a tenth of a second to import, which would slow --help down.
    from supabase_bridge.settings.model import Settings

    return Settings.load(home=home, concurrency=concurrency, reading=reading)


@contextmanager
def open_bucket(settings: Settings) -> Iterator[ObjectStore]:
    """Open the store of the releases for the length of a block."""
    from supabase_bridge.storage.factory import open_store

    store = open_store(settings, settings.bucket)
    try:
        yield store
    finally:
        store.close()


def print_ignored_keys() -> None:
    """Print on stderr the variables of legacy keys that are ignored."""
    from supabase_bridge.settings.api_keys import superseded_variables

    for ignored, variable in superseded_variables().items():
        click.echo(f"keys:     {ignored} is ignored, because {variable} is set too", err=True)


def print_store(settings: Settings) -> None:
    """Print on stderr where releases go, so that an operator notices a missing SUPABASE_URL, or an ignored key."""
    print_ignored_keys()
    kind = "embedded, no SUPABASE_URL set" if settings.embedded else "a Supabase project"
    with open_bucket(settings) as store:
        click.echo(for_terminal(f"store:    {store.name} ({kind})"), err=True)


def print_database(settings: Settings) -> None:
    """Print on stderr the database of the registry, without a password; the query string can contain one too."""
    found = _DATABASE.fullmatch(settings.database_url)
    place = "a malformed URL" if found is None else f"{found['scheme']}://{found['place']}"
    click.echo(for_terminal(f"database: {place}"), err=True)


def activation_line(manifest_path: str, activation: Activation) -> str:
    """An activation as a line of text."""
    verb, entry = "is now" if activation.activated else "was already", activation.entry
    return for_terminal(f"{manifest_path} {verb} {entry.current.run_id} (entry {entry.sequence})")


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    click.echo(shown_json(value, indent=2))


def upload_bar() -> Callable[[int], Progress] | None:
    """A progress bar for uploads if stderr is a terminal, else None."""
    if not sys.stderr.isatty():
        return None

    def announce(total_bytes: int) -> Progress:
        bar = click.progressbar(length=total_bytes, label="uploading", file=sys.stderr, width=30)
        bar.render_progress()

        lock = threading.Lock()  # Several files are uploaded at once.

        def advance(count: int) -> None:
            with lock:
                bar.update(count)
                if bar.finished:
                    bar.render_finish()

        return advance

    return announce


def stop_on_signals() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set from now on."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


_VERBOSE_LOGGERS = ("alembic.runtime.migration", "mlflow.store.db.utils")
"""They log each migration of MLflow's database. MLflow resets their levels, but not their filters."""

_INDENT = "    "
"""Precedes every line of a traceback, so that a line break in a message cannot imitate a log record."""

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _FactsFormatter(logging.Formatter):
    """Appends the `extra` of a record as name=value, escapes line breaks and removes credentials."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        facts = [f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD]
        line = super().formatMessage(record)
        return for_terminal(
            redact_credentials(f"{line} ({' '.join(facts)})" if facts and not record.exc_info else line)
        )

    def formatException(self, ei: Any) -> str:
        return _INDENT + shown_lines(redact_credentials(super().formatException(ei))).replace("\n", f"\n{_INDENT}")

    def formatStack(self, stack_info: str) -> str:
        return _INDENT + shown_lines(redact_credentials(super().formatStack(stack_info))).replace("\n", f"\n{_INDENT}")


def configure_logging(*, verbose: bool) -> None:
    """Log the warnings of every library, and with `verbose` all records of the bridge."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FactsFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    ours = logging.getLogger("supabase_bridge")
    ours.setLevel(logging.DEBUG if verbose else logging.WARNING)
    # Not through the root logger: MLflow 2 adds a handler to it whenever it opens a database.
    ours.handlers = [handler]
    ours.propagate = False
    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).addFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
