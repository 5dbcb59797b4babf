"""Read the settings file and the environment as one mapping of raw values, each with a label for error messages."""

from __future__ import annotations

import difflib
import getpass
import os
import stat
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.api_keys import LEGACY_VARIABLES, PUBLISHABLE_KEY, SECRET_KEY, superseded_variables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RawSettings = dict[str, tuple[str, Any]]
"""By the setting's name: the label of its source in an error message, and the value as the source has it."""

_FILE_LIMIT_BYTES = 1_000_000
_SECRET_LIMIT_BYTES = 10_000

_PROJECT_REF = "SUPABASE_PROJECT_REF"

SECRETS = {
    "service_key": SECRET_KEY,
    "anon_key": PUBLISHABLE_KEY,
    "signing_key": "SUPABASE_BRIDGE_SIGNING_KEY",
    "digest_key": "SUPABASE_BRIDGE_DIGEST_KEY",
    "embeddings_url": "SUPABASE_BRIDGE_EMBEDDINGS_URL",
    "usage_url": "SUPABASE_BRIDGE_USAGE_URL",
}
"""The settings that are secret, and the variable of each."""


def read_file(path: Path, *, names: Collection[str], required: bool) -> RawSettings:
    """Read the TOML file.

    Args:
        names: The settings that a file may have, besides the table `channels`.
        required: Whether a missing file is an error.

    Raises:
        SettingsError: the file is missing or malformed, or it has an unknown setting or a secret.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.loads(file.read(_FILE_LIMIT_BYTES).decode())
    except FileNotFoundError:
        if required:
            raise SettingsError("SUPABASE_BRIDGE_CONFIG", f"{path} does not exist") from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(str(path), f"cannot be read: {error}") from error
    for name in table:
        if name in SECRETS or name in SECRETS.values() or name in LEGACY_VARIABLES:
            variable = LEGACY_VARIABLES.get(name, SECRETS.get(name, name))
            problem = f"a secret must not be in a file; set {variable} in the environment"
            raise SettingsError(f"{path}: {name}", problem)
        if name not in names and name != "channels":
            close = difflib.get_close_matches(name, [*names, "channels"], n=1)
            guess = f"did you mean {close[0]}? There are" if close else "there are"
            problem = f"no such setting; {guess} {', '.join(sorted({*names, 'channels'}))}"
            raise SettingsError(f"{path}: {name}", problem)
    channels = table.pop("channels", {})
    if not isinstance(channels, dict) or not set(channels) <= {"stages", "aliases"}:
        raise SettingsError(f"{path}: channels", "expected the tables [channels.stages] and [channels.aliases]")
    found = {
        name: (f"{path}: [{name}]" if isinstance(value, dict) else f"{path}: {name}", value)
        for name, value in table.items()
    }
    return {**found, **{name: (f"{path}: [channels.{name}]", value) for name, value in channels.items()}}


def read_environment(environ: Mapping[str, str]) -> RawSettings:
    """Read the environment's variables; an empty variable sets nothing, and of two for one key the later one counts.

    Raises:
        SettingsError: a variable is malformed.
    """
    found: RawSettings = {}
    for variable, (name, parse) in _VARIABLES.items():
        if text := environ.get(variable, "").strip():
            found[name] = (variable, parse(text))
    if "supabase_url" not in found and (reference := environ.get(_PROJECT_REF, "").strip()):
        if not reference.isalnum():
            raise SettingsError(_PROJECT_REF, "expected the project's reference id, letters and digits only")
        found["supabase_url"] = (_PROJECT_REF, f"https://{reference}.supabase.co")
    return found


def user_cache(environ: Mapping[str, str]) -> Path | None:
    """Return the bridge's folder in the user's cache directory (XDG Base Directory Specification)."""
    given = Path(environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "supabase-bridge"
    try:
        home = Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        return None
    return home / ".cache" / "supabase-bridge" if home.is_absolute() else None


def process_user() -> str:
    """Return the operating-system user of this process, whom records of its changes name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"  # A container's user may have no name.


def child_environment(added: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a child process: that of this process, with more variables, and no ignored key."""
    found = {**os.environ, **added}
    for variable in superseded_variables(found):
        del found[variable]
    return found


_USUAL_VARIABLES = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR")


def limited_environment(names: Collection[str], added: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with the usual variables, these names of this process's own, and more variables.

    No secret is in it that is not named.
    """
    kept = {name: os.environ[name] for name in (*_USUAL_VARIABLES, *names) if name in os.environ}
    return {**kept, **added}


@dataclass(frozen=True, kw_only=True)
class SecretSource:
    """Where a secret is that the settings only refer to: in an environment variable, or in a file."""

    variable: str | None = None
    path: Path | None = None

    def read(self, label: str) -> SecretStr:
        """Return the secret without the space around it.

        Args:
            label: The setting that refers to it, for the error.

        Raises:
            SettingsError: it is missing, or every user of this machine may read its file.
        """
        if self.path is None:
            text = os.environ.get(self.variable or "", "").strip()
            if not text:
                raise SettingsError(label, f"the environment variable {self.variable} is not set")
            return SecretStr(text)
        try:
            with self.path.open("rb") as file:
                text = file.read(_SECRET_LIMIT_BYTES).decode().strip()
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SettingsError(label, f"{self.path} cannot be read: {reason}") from None
        if os.name == "posix" and mode & stat.S_IRWXO:
            raise SettingsError(label, f"every user of this machine may read {self.path}; chmod 600 {self.path}")
        if not text:
            raise SettingsError(label, f"{self.path} is empty")
        return SecretStr(text)


def _key_files(text: str) -> list[str]:
    paths = [path for path in text.split(os.pathsep) if path.strip()]
    if not paths:
        raise SettingsError("SUPABASE_BRIDGE_TRUSTED_KEYS", f"{text!r} names no file")
    return paths


def _scalar(text: str) -> bool | float | str:
    """Read a truth value or a number; any other text stays, and `Settings` refuses it."""
    with suppress(ValueError):
        return float(text)
    return {"true": True, "false": False}.get(text, text)


_VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "SUPABASE_URL": ("supabase_url", str),
    "SUPABASE_SERVICE_ROLE_KEY": ("service_key", str),
    "SUPABASE_ANON_KEY": ("anon_key", str),
    "SUPABASE_SECRET_KEY": ("service_key", str),
    "SUPABASE_PUBLISHABLE_KEY": ("anon_key", str),
    "SUPABASE_BRIDGE_BUCKET": ("bucket", str),
    "SUPABASE_BRIDGE_ARTIFACT_BUCKETS": ("artifact_buckets", str.split),
    "SUPABASE_BRIDGE_DATABASE_URL": ("database_url", str),
    "SUPABASE_BRIDGE_ARTIFACTS_DESTINATION": ("artifacts_destination", str),
    "SUPABASE_BRIDGE_TRACKING_URI": ("tracking_uri", str),
    "SUPABASE_BRIDGE_WATCH_DATABASE_URL": ("watch_database_url", str),
    "SUPABASE_BRIDGE_CACHE": ("cache_dir", str),
    "SUPABASE_BRIDGE_REALTIME": ("realtime", _scalar),
    "SUPABASE_BRIDGE_USAGE_URL": ("usage_url", str),
    "SUPABASE_BRIDGE_USAGE_REPORTS": ("usage_reports", _scalar),
    "SUPABASE_BRIDGE_CONSUMER_NAME": ("consumer_name", str),
    "SUPABASE_BRIDGE_SIGNING_KEY": ("signing_key", str),
    "SUPABASE_BRIDGE_DIGEST_KEY": ("digest_key", str),
    "SUPABASE_BRIDGE_EMBEDDINGS_URL": ("embeddings_url", str),
    "SUPABASE_BRIDGE_SIGNING_KEY_FILE": ("signing_key_file", str),
    "SUPABASE_BRIDGE_TRUSTED_KEYS": ("trusted_keys", _key_files),
    "SUPABASE_BRIDGE_REQUIRE_SIGNATURE": ("require_signature", _scalar),
    "SUPABASE_BRIDGE_MAX_AGE": ("max_age", _scalar),
}
"""The setting of each variable, and how its text is read."""
