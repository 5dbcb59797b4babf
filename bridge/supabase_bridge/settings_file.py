"""The settings file: what each of its lines may be, and what a wrong one is told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from supabase_bridge.errors import InvalidGateError, SettingsError
from supabase_bridge.gates import Gate, parse_gate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FILE_LIMIT_BYTES = 1_000_000
_SHORTEST_SECONDS = {"temporary_keys_age": 86_400}
"""Of a span of time, where 0.001 is too short: a younger upload may still be gone on with."""
_SECONDS = (
    "poll_interval",
    "outbox_retention",
    "lease",
    "retry_cap",
    "give_up_after",
    "run_grace",
    "request_timeout",
    "max_age",
    "check_timeout",
    "reconcile_interval",
    "temporary_keys_age",
)
COUNTS = {"concurrency": 64}
_TEXTS = ("supabase_url", "bucket", "database_url", "artifacts_destination", "tracking_uri", "watch_database_url")
_NEVER = ("reconcile_interval",)
"""Which spans may be 0: what happens after them does not happen."""
_LISTS = ("artifact_buckets", "allowed_sources", "allowed_pickle_globals")
_PATHS = ("cache_dir", "signing_key_file")
_PATH_LISTS = ("trusted_keys",)
_SECRETS = {
    "service_key": "SUPABASE_SERVICE_ROLE_KEY",
    "anon_key": "SUPABASE_ANON_KEY",
    "signing_key": "SUPABASE_BRIDGE_SIGNING_KEY",
}
_SIZES = ("cache_limit_bytes", "resumable_threshold_bytes", "check_memory_bytes")
_SWITCHES = ("gate_rollbacks", "require_signature")
_TABLES = ("channels", "workspaces", "gates")
_KNOWN = frozenset(
    {*_SECONDS, *COUNTS, *_TEXTS, *_LISTS, *_PATHS, *_PATH_LISTS, *_SIZES, *_SWITCHES, *_TABLES},
)


def settings_in(path: Path, *, required: bool) -> dict[str, Any]:
    """What the TOML file sets.

    Raises:
        SettingsError: it is missing though named, malformed, or sets something unknown (a secret in a file is refused).
    """
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT_BYTES)
        table = tomllib.loads(data.decode())
    except FileNotFoundError:
        if required:
            raise SettingsError("SUPABASE_BRIDGE_CONFIG", f"{path} does not exist") from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(str(path), f"cannot be read: {error}") from error
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name == "channels" and isinstance(value, dict) and set(value) <= {"stages", "aliases"}:
            values.update({part: _text_table(path, f"channels.{part}", value[part]) for part in value})
        elif name == "workspaces":
            values[name] = _text_table(path, name, value)
        elif name == "gates":
            values[name] = _gates(path, value)
        elif name in _SWITCHES and isinstance(value, bool):
            values[name] = value
        elif name in _SECONDS and is_span(value, name):
            values[name] = timedelta(seconds=value)
        elif name in _TEXTS and isinstance(value, str) and value:
            values[name] = value
        elif name in _PATHS and isinstance(value, str) and value:
            values[name] = _expanded(path, name, value)
        elif (name in _SIZES and _is_size(value)) or (name in COUNTS and is_count(value, COUNTS[name])):
            values[name] = value
        elif name in _LISTS and isinstance(value, list) and all(isinstance(item, str) for item in value):
            values[name] = tuple(value)
        elif name in _PATH_LISTS and isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            values[name] = tuple(_expanded(path, name, item) for item in value)
        else:
            raise SettingsError(f"{path}: {name}", complaint(name))
    return values


def _expanded(path: Path, name: str, value: str) -> Path:
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:
        raise SettingsError(f"{path}: {name}", "names the home directory of nobody here") from error


def is_span(seconds: object, name: str) -> bool:
    """Whether this is a number of seconds that a setting may have."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return False
    return (seconds == 0 and name in _NEVER) or _SHORTEST_SECONDS.get(name, 0.001) <= seconds <= 1e9


def _is_size(size_bytes: object) -> bool:
    return isinstance(size_bytes, int) and not isinstance(size_bytes, bool) and size_bytes >= 0


def is_count(number: object, most: int) -> bool:
    """Whether this is a whole number from 1 to `most`."""
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= most


def _text_table(path: Path, name: str, value: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) and text for text in value.values()):
        raise SettingsError(f"{path}: [{name}]", 'expected lines of the form name = "text"')
    return MappingProxyType(dict(value))


def _gates(path: Path, value: object) -> Mapping[str, Gate]:
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise SettingsError(f"{path}: [gates]", "expected a table for each model: [gates.two_tower]")
    found: dict[str, Gate] = {}
    for model, table in value.items():
        try:
            found[model] = parse_gate(table)
        except InvalidGateError as error:
            raise SettingsError(f"{path}: [gates.{model}]", str(error)) from error
    return MappingProxyType(found)


def complaint(name: str) -> str:
    """What a line of the file with this name should have been."""
    if name in _SECRETS:
        return f"a secret does not belong in a file; set {_SECRETS[name]} in the environment"
    if name not in _KNOWN:
        return f"no such setting; there are {', '.join(sorted(_KNOWN))}"
    if name in _SECONDS:
        never = ", or 0 for never" if name in _NEVER else ""
        return f"expected a number of seconds, {_SHORTEST_SECONDS.get(name, 0.001)} at least and 1e9 at most{never}"
    if name in _SWITCHES:
        return "expected true or false"
    if name in COUNTS:
        return f"expected a whole number, 1 at least and {COUNTS[name]} at most"
    if name in _SIZES:
        return "expected a whole number of bytes, 0 at least"
    return "expected a list of texts" if name in _LISTS + _PATH_LISTS else "expected a text"
