"""Logging as the command line sets it up: one line a record on stderr, with its facts."""

from __future__ import annotations

import logging
from typing import Any

from supabase_bridge.cli.terminal import shown, shown_lines
from supabase_bridge.errors import without_credentials

_CHATTY = ("alembic.runtime.migration", "mlflow.store.db.utils")
"""They announce what they do to MLflow's database; MLflow sets their levels when it opens one, but leaves filters."""
_INDENT = "    "
"""Before every line of a traceback: the message in it may have line breaks, and only a record begins a line."""
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _FactsFormatter(logging.Formatter):
    """Appends what a record carries in `extra`, as name=value; no text in it can begin a line or hold a password."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        facts = [f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD]
        line = super().formatMessage(record)
        return shown(without_credentials(f"{line} ({' '.join(facts)})" if facts and not record.exc_info else line))

    def formatException(self, ei: Any) -> str:
        return _INDENT + shown_lines(without_credentials(super().formatException(ei))).replace("\n", f"\n{_INDENT}")

    def formatStack(self, stack_info: str) -> str:
        return _INDENT + shown_lines(without_credentials(super().formatStack(stack_info))).replace("\n", f"\n{_INDENT}")


def configure_logging(*, verbose: bool) -> None:
    """Log our own warnings, or everything of ours where a person asks for it; of libraries only warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FactsFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    ours = logging.getLogger("supabase_bridge")
    ours.setLevel(logging.DEBUG if verbose else logging.WARNING)
    # Not through the root: MLflow 2 puts a handler of its own there whenever it opens a database.
    ours.handlers = [handler]
    ours.propagate = False
    for name in _CHATTY:
        logging.getLogger(name).addFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
