"""The API keys of a Supabase project: their kinds, and which of two variables is in force.

Source: https://supabase.com/docs/guides/api/api-keys. A project has publishable and secret keys (`sb_publishable_...`,
`sb_secret_...`), which are no JWTs. The legacy keys `anon` and `service_role` are JWTs and end in 2026.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

SECRET_KEY = "SUPABASE_SECRET_KEY"  # noqa: S105 - the name of a variable
PUBLISHABLE_KEY = "SUPABASE_PUBLISHABLE_KEY"

LEGACY_VARIABLES = {"SUPABASE_SERVICE_ROLE_KEY": SECRET_KEY, "SUPABASE_ANON_KEY": PUBLISHABLE_KEY}
"""The variable of each legacy key, and the variable that takes precedence over it."""


@dataclass(frozen=True, kw_only=True)
class KeyKind:
    """The kind of a key and its facts, as far as its text has them; no server is asked.

    Attributes:
        words: The kind for a person.
        writes: Whether it is exempt from policies; None if the key does not show it.
        project: The project's reference in a legacy key of a hosted project.
        expires: When a legacy key ends.
    """

    words: str
    writes: bool | None = None
    project: str | None = None
    expires: datetime | None = None
    legacy: bool = False


def kind_of_key(secret: str) -> KeyKind:
    """Tell the kind of a key: a secret or publishable key, or a legacy key, whose payload is read and not verified."""
    if secret.startswith("sb_secret_"):
        return KeyKind(words="a secret key", writes=True)
    if secret.startswith("sb_publishable_"):
        return KeyKind(words="a publishable key", writes=False)
    try:
        payload = secret.split(".")[1]
        facts = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        role, reference, ends = str(facts["role"]), facts.get("ref"), facts.get("exp")
        expires = None if ends is None else datetime.fromtimestamp(ends, tz=timezone.utc)
    except (IndexError, ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError):
        return KeyKind(words="no key of a known form")
    return KeyKind(
        words=f"a legacy key of the role {role[:40]}",
        writes={"service_role": True, "anon": False}.get(role),
        project=reference if isinstance(reference, str) else None,
        expires=expires,
        legacy=True,
    )


def superseded_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the legacy variables that are ignored, because another key is in the variable that takes precedence.

    Args:
        environ: The environment; by default that of the process.

    Returns:
        The variable in force by the name of the ignored one.
    """
    environ = os.environ if environ is None else environ
    keys = {variable: environ.get(variable, "").strip() for pair in LEGACY_VARIABLES.items() for variable in pair}
    return {
        legacy: variable
        for legacy, variable in LEGACY_VARIABLES.items()
        if keys[legacy] and keys[variable] and keys[legacy] != keys[variable]
    }
