"""Logging as the command line sets it up: one line a record on stderr, with its facts."""

from __future__ import annotations

import logging

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _FactsFormatter(logging.Formatter):
    """Appends what a record carries in `extra`, as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        facts = [f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD]
        line = super().format(record)
        return f"{line} ({' '.join(facts)})" if facts and not record.exc_info else line


def configure_logging(*, verbose: bool) -> None:
    """Log our own warnings, or everything of ours where a person asks for it; of libraries only warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FactsFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("supabase_bridge").setLevel(logging.DEBUG if verbose else logging.WARNING)
    # Both announce every migration of a new MLflow database.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
