"""The settings that come from the environment: what each variable may be, and what a wrong one is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from supabase_bridge.errors import SettingsError
from supabase_bridge.secret import Secret
from supabase_bridge.settings_file import complaint, is_span


def settings_in_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the environment sets; an empty variable sets nothing.

    Raises:
        SettingsError: a variable is malformed.
    """
    values: dict[str, Any] = {}
    for variable, name in (
        ("SUPABASE_URL", "supabase_url"),
        ("SUPABASE_BRIDGE_BUCKET", "bucket"),
        ("SUPABASE_BRIDGE_DATABASE_URL", "database_url"),
        ("SUPABASE_BRIDGE_ARTIFACTS_DESTINATION", "artifacts_destination"),
        ("SUPABASE_BRIDGE_TRACKING_URI", "tracking_uri"),
        ("SUPABASE_BRIDGE_WATCH_DATABASE_URL", "watch_database_url"),
    ):
        if text := environ.get(variable, "").strip():
            values[name] = text
    if names := environ.get("SUPABASE_BRIDGE_ARTIFACT_BUCKETS", "").split():
        values["artifact_buckets"] = tuple(names)
    if "supabase_url" not in values and (reference := environ.get("SUPABASE_PROJECT_REF", "").strip()):
        if not reference.isalnum():
            raise SettingsError("SUPABASE_PROJECT_REF", "expected the project's reference id, letters and digits only")
        values["supabase_url"] = f"https://{reference}.supabase.co"
    if key := environ.get("SUPABASE_SERVICE_ROLE_KEY", "").strip():
        values["service_key"] = Secret(key)
    if key := environ.get("SUPABASE_ANON_KEY", "").strip():
        values["anon_key"] = Secret(key)
    if directory := environ.get("SUPABASE_BRIDGE_CACHE", "").strip():
        values["cache_dir"] = Path(directory).absolute()
    return values | _trust_from_environment(environ)


def _trust_from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the environment sets of keys and trust."""
    values: dict[str, Any] = {}
    if pem := environ.get("SUPABASE_BRIDGE_SIGNING_KEY", "").strip():
        values["signing_key"] = Secret(pem)
    if file := environ.get("SUPABASE_BRIDGE_SIGNING_KEY_FILE", "").strip():
        values["signing_key_file"] = Path(file).absolute()
    if paths := environ.get("SUPABASE_BRIDGE_TRUSTED_KEYS", "").strip():
        values["trusted_keys"] = tuple(Path(path).absolute() for path in paths.split(os.pathsep) if path.strip())
        if not values["trusted_keys"]:
            raise SettingsError("SUPABASE_BRIDGE_TRUSTED_KEYS", f"{paths!r} names no file")
    if word := environ.get("SUPABASE_BRIDGE_REQUIRE_SIGNATURE", "").strip():
        if word not in {"true", "false"}:
            raise SettingsError("SUPABASE_BRIDGE_REQUIRE_SIGNATURE", "expected true or false")
        values["require_signature"] = word == "true"
    if text := environ.get("SUPABASE_BRIDGE_MAX_AGE", "").strip():
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not is_span(seconds, "max_age"):
            raise SettingsError("SUPABASE_BRIDGE_MAX_AGE", complaint("max_age"))
        values["max_age"] = timedelta(seconds=seconds)
    return values


def user_cache(environ: Mapping[str, str]) -> Path | None:
    """The bridge's place in the user's cache directory (XDG Base Directory Specification)."""
    given = Path(environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "supabase-bridge"
    try:
        home = Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        return None
    return home / ".cache" / "supabase-bridge" if home.is_absolute() else None
