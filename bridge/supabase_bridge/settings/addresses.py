"""Addresses in the settings: the project's URL and database URLs, in the forms in which people paste them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from supabase_bridge.core.errors import SettingsError

_DATABASE_URL = "SUPABASE_BRIDGE_DATABASE_URL"

_BACKENDS = {"sqlite", "postgresql", "mysql"}

_INSTEAD = {"postgres": "postgresql", "pgsql": "postgresql", "mariadb": "mysql+pymysql", "sqlite3": "sqlite"}
"""Schemes of other programs, and the one to write here."""

_API = re.compile(r"/(?:storage|rest|auth|functions|realtime|graphql)/v1(?:/.*)?$")
_DASHBOARDS = {"supabase.com", "www.supabase.com", "app.supabase.com"}
_REFERENCE = re.compile(r"/project/([a-z0-9]+)")


def project_url(url: str) -> str:
    """Return the URL of a project without the path of one of its services, such as /storage/v1.

    Raises:
        SettingsError: it is no URL of a project.
    """
    if not names_a_host(url):
        raise SettingsError("SUPABASE_URL", "expected https://<project>.supabase.co (http:// for a local one)")
    parts = urlsplit(url)
    if parts.hostname in _DASHBOARDS:
        found = _REFERENCE.search(parts.path)
        own = "<project>" if found is None else found[1]
        raise SettingsError(
            "SUPABASE_URL", f"the address of the dashboard; the project's own is https://{own}.supabase.co"
        )
    return _API.sub("", url.rstrip("/")).rstrip("/")


def check_database_url(url: str) -> None:
    """Check the scheme of a database URL. No message shows more of it, because it may hold a password.

    Raises:
        SettingsError: MLflow's registry has no such database; the message names the scheme to write.
    """
    if url[:1] in {'"', "'"}:
        raise SettingsError(_DATABASE_URL, "begins with a quote, which is no part of a URL; remove both quotes")
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise SettingsError(_DATABASE_URL, "expected <kind of database>://...")
    backend, _, _driver = scheme.lower().partition("+")
    if backend in _INSTEAD:
        raise SettingsError(_DATABASE_URL, f"{backend}:// is no scheme of SQLAlchemy's; write {_INSTEAD[backend]}://")
    if backend not in _BACKENDS:
        raise SettingsError(
            _DATABASE_URL, f"{backend!r:.40} is not supported; use sqlite://, postgresql:// or mysql+pymysql://"
        )


def names_a_host(url: str) -> bool:
    """True for an http(s) URL without anything in it that could be a secret."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return named and parts.scheme in {"http", "https"} and not {"@", "?", "#"} & set(url)
