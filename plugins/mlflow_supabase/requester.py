"""Find out who makes a change of the registry, from the request that the MLflow server carries out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from supabase_bridge.core.text import for_database
from supabase_bridge.settings.sources import process_user

_NAME_LIMIT = 256

_logger = logging.getLogger(__name__)


def requester(trusted_header: Callable[[], str | None]) -> str | None:
    """Return the name of the person who makes the current change; None if it is not known.

    In a request of an MLflow server it is the user whom MLflow's basic-auth app has authenticated, or else the user in
    the header that a trusted proxy sets. In any other process it is the operating-system user.

    Args:
        trusted_header: Returns the name of that header; None: no header is trusted.
    """
    if not _in_request():
        name: str | None = process_user()
    else:
        name = _authenticated_user()
        if name is None and (header := trusted_header()) is not None:
            name = _user_in(header)
    return for_database(name, limit=_NAME_LIMIT) if name else None


def _in_request() -> bool:
    """Return whether this thread carries out a request of a server; a process without Flask has none."""
    if "flask" not in sys.modules:
        return False
    from flask import has_request_context

    return has_request_context()


def _authenticated_user() -> str | None:
    """Return the user whom MLflow's basic-auth app has authenticated in this request; None if the app is not used."""
    from flask import current_app, g

    name = getattr(g, "mlflow_authenticated_user", None)
    if name is not None:
        return str(name)
    # MLflow before 3 does not keep the name, and authenticates the request again wherever it needs the name.
    auth = sys.modules.get("mlflow.server.auth")
    if auth is None or auth._before_request not in current_app.before_request_funcs.get(None, []):
        return None
    return getattr(auth.authenticate_request(), "username", None)


def _user_in(header: str) -> str | None:
    """Return the user in a header; None without one. Of two such headers the client may have sent one: also None."""
    from flask import request

    # WSGI decodes headers as Latin-1, whatever the proxy has sent.
    name = request.headers.get(header, "").encode("latin-1", "replace").decode("utf-8", "replace").strip()
    if "," in name:
        _logger.warning("a request names its user twice, so none is recorded", extra={"header": header})
        return None
    return name
