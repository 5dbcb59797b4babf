"""Settings of announcements: who hears of a switch, over which address, and where its secrets are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from supabase_bridge.core.announcement import OPTIONAL, AnnouncementKind
from supabase_bridge.core.errors import InvalidNameError, SettingsError
from supabase_bridge.core.layout import check_channel
from supabase_bridge.settings.sources import SecretSource

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KINDS = tuple(kind.value for kind in (AnnouncementKind.ACTIVATED, *OPTIONAL))
_LISTS = {"models", "channels", "events"}
_LONGEST_SECONDS = 30


class Service(str, Enum):
    """The protocol of a destination."""

    WEBHOOK = "webhook"
    SLACK = "slack"
    APPRISE = "apprise"


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A destination of announcements.

    Attributes:
        address: The URL, where it is no secret; only a webhook's may stand in the settings.
        address_source: Where the URL is otherwise.
        secret_source: Where a webhook's signing secrets are.
        models: The folders of the models whose changes are announced; none: all.
        channels: The channels whose switches are announced; none: all.
        allow_private: Whether the address may lead into a private network.
        timeout: For one attempt: until the destination has taken the message, and until it answers.
    """

    name: str
    service: Service
    address: str | None = None
    address_source: SecretSource | None = None
    secret_source: SecretSource | None = None
    models: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    kinds: frozenset[AnnouncementKind] = frozenset({AnnouncementKind.ACTIVATED})
    allow_private: bool = False
    timeout: timedelta = timedelta(seconds=10)

    @property
    def label(self) -> str:
        """Its name in error messages."""
        return f"[announce.{self.name}]"

    def wants(self, kind: AnnouncementKind, model: str, channel: str | None) -> bool:
        """Return whether it hears of a change; `channel` is None for one that concerns no channel."""
        named = not self.models or model in self.models
        return kind in self.kinds and named and (channel is None or not self.channels or channel in self.channels)


Destinations: TypeAlias = Mapping[str, Destination]


def parse_announce(value: Any) -> Destinations:
    """Parse the tables `[announce.<name>]`.

    Raises:
        SettingsError: a table has another form.
    """
    if not isinstance(value, Mapping) or not all(isinstance(table, Mapping | Destination) for table in value.values()):
        raise SettingsError("[announce]", "expected a table for each destination: [announce.slack]")
    return MappingProxyType(
        {
            name: table if isinstance(table, Destination) else _parse(f"[announce.{name}]", name, table)
            for name, table in value.items()
        }
    )


def _parse(label: str, name: str, table: Mapping[str, Any]) -> Destination:
    if not _NAME.fullmatch(name):
        problem = "a destination's name has lower-case letters, digits, '_' and '-', and begins with a letter"
        raise SettingsError(label, problem)
    given = dict(table)
    addresses: dict[str, tuple[Service, SecretSource | str]] = {}
    for prefix, service in (("url", Service.WEBHOOK), ("slack", Service.SLACK), ("apprise", Service.APPRISE)):
        if (source := _source(label, prefix, given)) is not None:
            addresses[prefix] = (service, source)
        if prefix in given:
            addresses[prefix] = (service, _address(label, prefix, given.pop(prefix)))
    if len(addresses) != 1:
        problem = "expected one address: url, url_env, url_file, slack_env, slack_file, apprise_env or apprise_file"
        raise SettingsError(label, problem)
    ((service, address),) = addresses.values()
    secret = _source(label, "secret", given)
    if (secret is None) == (service is Service.WEBHOOK):
        problem = (
            "a webhook is signed: set secret_env or secret_file"
            if secret is None
            else "only a webhook (url) has a secret"
        )
        raise SettingsError(label, problem)
    lists = {field: _texts(label, field, given.pop(field, [])) for field in sorted(_LISTS)}
    private, timeout = given.pop("allow_private", False), given.pop("timeout", 10)
    if given:
        known = "url, url_env, url_file, slack_env, slack_file, apprise_env, apprise_file, secret_env, secret_file, "
        known += "models, channels, events, allow_private, timeout"
        raise SettingsError(f"{label} {min(given)}", f"no such field; there are {known}")
    if not isinstance(private, bool) or (private and service is Service.APPRISE):
        raise SettingsError(f"{label} allow_private", "expected true or false, and not for Apprise")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= _LONGEST_SECONDS:
        raise SettingsError(f"{label} timeout", f"expected a number of seconds, {_LONGEST_SECONDS} at most")
    return Destination(
        name=name,
        service=service,
        address=address if isinstance(address, str) else None,
        address_source=address if isinstance(address, SecretSource) else None,
        secret_source=secret,
        models=lists["models"],
        channels=_channels(label, lists["channels"]),
        kinds=_kinds(label, lists["events"]),
        allow_private=private,
        timeout=timedelta(seconds=timeout),
    )


def _source(label: str, prefix: str, given: dict[str, Any]) -> SecretSource | None:
    """Take the variable or the file of a secret out of a table; None if it names neither."""
    variable, path = given.pop(f"{prefix}_env", None), given.pop(f"{prefix}_file", None)
    if variable is None and path is None:
        return None
    if variable is not None and path is not None:
        raise SettingsError(f"{label} {prefix}_env", f"set beside {prefix}_file; keep one")
    if path is not None:
        if not isinstance(path, str) or not path:
            raise SettingsError(f"{label} {prefix}_file", "expected the path of a file")
        return SecretSource(path=Path(path).expanduser().absolute())
    if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
        # A message must not repeat it: it may be the secret itself.
        raise SettingsError(f"{label} {prefix}_env", "expected the name of an environment variable, not its value")
    return SecretSource(variable=variable)


def _address(label: str, field: str, value: Any) -> str:
    if field != "url":
        problem = f"this address is a secret and must not be in a file of settings; set {field}_env or {field}_file"
        raise SettingsError(f"{label} {field}", problem)
    if not isinstance(value, str) or {"@", "?", "#"} & set(value):
        problem = "expected an address without user, query and fragment; one with a secret in it belongs to url_env"
        raise SettingsError(f"{label} url", problem)
    if "hooks.slack.com" in value.lower():
        raise SettingsError(f"{label} url", "Slack's address is a secret; set slack_env or slack_file instead")
    return value


def _channels(label: str, names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(map(check_channel, names))
    except InvalidNameError as error:
        raise SettingsError(f"{label} channels", str(error)) from error


def _kinds(label: str, names: tuple[str, ...]) -> frozenset[AnnouncementKind]:
    if unknown := sorted(set(names) - set(_KINDS)):
        raise SettingsError(f"{label} events", f"no such event {unknown[0]!r:.60}; there are {', '.join(_KINDS)}")
    return frozenset(map(AnnouncementKind, names)) or frozenset({AnnouncementKind.ACTIVATED})


def _texts(label: str, field: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise SettingsError(f"{label} {field}", "expected a list of texts")
    return tuple(value)
