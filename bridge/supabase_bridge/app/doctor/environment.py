"""Checks of this Python environment: Python, packages, MLflow's plugins, signing keys, announcements' secrets."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from supabase_bridge.announce.senders import check_destinations
from supabase_bridge.app.doctor.check import Check, failed, ok, skipped, warning
from supabase_bridge.app.errors import CommandError
from supabase_bridge.app.server import check_plugin
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.settings.announce import Service
from supabase_bridge.settings.model import Settings
from supabase_bridge.trust.load import load_signing_policy, trust_policy

_DISTRIBUTION = "mlflow-supabase-bridge"

_MODULES = {
    "model-signing": "model_signing",
    "psycopg": "psycopg",
    "pyopenssl": "OpenSSL",
}
"""The module of each distribution whose name is another one."""

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?[^;]*?>=(?P<least>[0-9.]+)[^;]*;.*extra == ['\"](?P<extra>\w+)['\"]"
)

_OLD_MLFLOW = (3,)
_NEW_SQLALCHEMY = (2, 1)
"""MLflow 2 does not work with SQLAlchemy 2.1 or later, although its metadata allows it."""


def python() -> Check:
    """Report Python's version; the package does not install on one that is too old."""
    found = ".".join(map(str, sys.version_info[:3]))
    return ok("Python", f"{found}, {sys.executable}")


def packages(settings: Settings, *, consumer: bool) -> Iterator[Check]:
    """Check each extra that these settings need: its packages can be imported, and are new enough."""
    needed = _needed_extras(settings, consumer=consumer)
    for extra, distributions in _extras().items():
        name = f"extra [{extra}]"
        if extra not in needed:
            yield skipped(name, "these settings do not need it")
            continue
        problems = [problem for item, least in distributions.items() if (problem := _package_problem(item, least))]
        if problems:
            yield failed(name, "; ".join(problems), f"pip install '{_DISTRIBUTION}[{','.join(sorted(needed))}]'")
        else:
            yield ok(name, ", ".join(f"{item} {version(item)}" for item in distributions))


def mlflow() -> Check:
    """Check that MLflow can be imported, and that SQLAlchemy fits it."""
    name = "MLflow"
    try:
        found, sqlalchemy = version("mlflow"), version("sqlalchemy")
        importlib.import_module("mlflow")
    except (PackageNotFoundError, ImportError) as error:
        return failed(name, f"cannot be imported: {error}", f"pip install '{_DISTRIBUTION}[mlflow]'")
    if _release(found) < _OLD_MLFLOW and _release(sqlalchemy) >= _NEW_SQLALCHEMY:
        problem = f"MLflow {found} does not work with SQLAlchemy {sqlalchemy}"
        return failed(name, problem, "pip install 'sqlalchemy<2.1', or a newer MLflow")
    return ok(name, f"{found} with SQLAlchemy {sqlalchemy}")


def plugin(settings: Settings) -> Check:
    """Check that MLflow finds and can load the registry store and the artifact repository."""
    name = "MLflow plugin"
    remedy = f"pip install '{_DISTRIBUTION}[mlflow]' in the environment that runs `mlflow server`"
    try:
        check_plugin(settings)
        scheme = settings.registry_uri.partition("://")[0]
        points = [
            *entry_points(group="mlflow.model_registry_store", name=scheme),
            *entry_points(group="mlflow.artifact_repository", name="supabase"),
        ]
        for point in points:
            point.load()
    except (CommandError, ImportError) as error:
        return failed(name, str(error), remedy)
    if len(points) < 2:
        return failed(name, "MLflow finds no artifact repository for supabase://", remedy)
    return ok(name, f"MLflow finds {scheme}:// and supabase:// in this environment")


def signing(settings: Settings, *, consumer: bool) -> Check:
    """Check that the keys can be read, and that the signing key is one of the trusted keys."""
    name = "signing keys"
    if settings.signing_key is None and settings.signing_key_file is None and not settings.trusted_keys:
        return skipped(name, "none are set: nothing is signed, and readers accept unsigned manifests")
    try:
        if consumer:
            return ok(name, f"{len(trust_policy(settings).keys.by_id)} trusted keys")
        policy = load_signing_policy(settings)
    except BridgeError as error:
        return failed(
            name, str(error), "see docs/signatures.md; `supabase-bridge keys list` shows each key that is read"
        )
    trusted = f"{len(policy.keys.by_id)} trusted keys"
    if policy.signer is None:
        remedy = "set signing_key_file where the worker runs, or remove trusted_keys there"
        return warning(name, f"{trusted}, but no signing key: this worker's manifests are unsigned", remedy)
    return ok(name, f"signs with {policy.signer.public.key_id[:12]}, {trusted}")


def announcements(settings: Settings) -> Check:
    """Check that the secrets of every destination of announcements can be read; nothing is sent."""
    name = "announcements"
    if not settings.announce:
        return skipped(name, "no destination is set")
    try:
        check_destinations(settings)
    except (BridgeError, ModuleNotFoundError) as error:
        return failed(name, str(error), "set it where the worker runs; docs/announcements.md")
    return ok(name, f"to {', '.join(settings.announce)}; `supabase-bridge announcements test NAME` sends a message")


def _needed_extras(settings: Settings, *, consumer: bool) -> set[str]:
    needed: set[str] = set()
    if settings.signing_key is not None or settings.signing_key_file is not None or settings.trusted_keys:
        needed.add("signing")
    if settings.embeddings_url is not None:
        needed.add("pgvector")
    if consumer:
        return needed
    if any(item.service is Service.APPRISE for item in settings.announce.values()):
        needed.add("announce")
    scheme = settings.database_url.partition("://")[0]
    needed |= {"mlflow"}
    needed |= {"postgres"} if scheme == "postgresql+psycopg" else set()
    needed |= {"mysql"} if scheme.endswith("+pymysql") else set()
    return needed


def _extras() -> dict[str, dict[str, str]]:
    """Each extra with the least version of its packages, from the metadata of the installed distribution."""
    found: dict[str, dict[str, str]] = {}
    for line in requires(_DISTRIBUTION) or ():
        match = _REQUIREMENT.match(line)
        if match is not None and match["extra"] not in {"test", "docs"}:
            found.setdefault(match["extra"], {})[match["name"].lower()] = match["least"]
    return found


def _package_problem(distribution: str, least: str) -> str | None:
    try:
        found = version(distribution)
        importlib.import_module(_MODULES.get(distribution, distribution))
    except PackageNotFoundError:
        return f"{distribution} is not installed"
    except ImportError as error:
        return f"{distribution} cannot be imported ({error})"
    return f"{distribution} {found} is older than {least}" if _release(found) < _release(least) else None


def _release(text: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version (PEP 440)."""
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()
