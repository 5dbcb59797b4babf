"""Run every check of an installation, in an order in which a problem comes before what it causes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from supabase_bridge.app.doctor import environment
from supabase_bridge.app.doctor.check import Check, failed, ok, skipped
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.api_keys import superseded_variables
from supabase_bridge.settings.model import Settings


def examine(
    *, home: Path | None = None, environ: Mapping[str, str] | None = None, consumer: bool = False
) -> Iterator[Check]:
    """Yield the result of each check as soon as it is known. Nothing is written, neither locally nor on a server.

    Args:
        home: The home directory from the command line.
        environ: The environment; by default that of the process.
        consumer: The installation only reads releases; by default it runs the MLflow server and the worker.
    """
    yield environment.python()
    try:
        settings = Settings.load(home=home, environ=environ, reading=True)
    except SettingsError as error:
        yield failed("settings", str(error), "docs/settings.md lists every setting with its variable")
        return
    yield ok("settings", f"home {settings.home}")
    yield from environment.packages(settings, consumer=consumer)
    if consumer:
        yield from (skipped(name, "a consumer does not need it") for name in ("MLflow", "MLflow plugin", "database"))
    else:
        yield environment.mlflow()
        yield environment.plugin(settings)
        yield from _database(settings)
    yield environment.signing(settings, consumer=consumer)
    if not consumer:
        yield environment.announcements(settings)
    yield from _project(settings, superseded_variables(environ), consumer=consumer)


def _database(settings: Settings) -> Iterator[Check]:
    if not (_is_importable("sqlalchemy") and _is_importable("mlflow")):
        yield skipped("database", "MLflow or SQLAlchemy is missing")
    else:
        from supabase_bridge.app.doctor.database import database_checks

        yield from database_checks(settings)


def _project(settings: Settings, ignored: Mapping[str, str], *, consumer: bool) -> Iterator[Check]:
    from supabase_bridge.app.doctor.project import project_checks

    yield from project_checks(settings, ignored, consumer=consumer)


def _is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
