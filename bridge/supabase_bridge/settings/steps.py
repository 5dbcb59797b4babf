"""The settings of steps: what must succeed before the pointer of a channel moves to a release."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeAlias

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.sources import SECRETS

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_FIELDS = {"channels", "run", "call", "check", "timeout", "environment"}
_LONGEST_SECONDS = 7 * 86_400
_FORBIDDEN_SETTINGS = ("service_key", "signing_key", "digest_key")
_FORBIDDEN = {*(SECRETS[name] for name in _FORBIDDEN_SETTINGS), "SUPABASE_SERVICE_ROLE_KEY"}
"""A step may need the database of the embeddings, and a key that only reads."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """One step of a model.

    Attributes:
        channels: The channels whose pointer waits for the step; none: all of the model's.
        command: The program and its arguments; empty where `call` names a function.
        call: A Python function, `package.module:function`.
        check: A command that ends with 0 where the step's result is there; empty: there is none.
        environment: The variables of the worker that the step gets.
    """

    name: str
    channels: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    call: str | None = None
    check: tuple[str, ...] = ()
    timeout: timedelta = timedelta(hours=1)
    environment: tuple[str, ...] = ()


Steps: TypeAlias = "Mapping[str, tuple[StepSettings, ...]]"


def parse_steps(value: Any) -> Steps:
    """Parse the tables `[steps.<model>.<name>]`; the order of a model's steps is the file's.

    Raises:
        SettingsError: a table has another form.
    """
    steps: dict[str, tuple[StepSettings, ...]] = {}
    if not isinstance(value, Mapping):
        raise SettingsError("[steps]", "expected a table for each step: [steps.two_tower.embeddings]")
    for model, tables in value.items():
        if isinstance(tables, tuple) and all(isinstance(item, StepSettings) for item in tables):
            steps[model] = tables
            continue
        if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
            raise SettingsError(f"[steps.{model}]", f"expected a table for each step: [steps.{model}.embeddings]")
        steps[model] = tuple(_parse(f"[steps.{model}.{name}]", name, table) for name, table in tables.items())
    return MappingProxyType(steps)


def _parse(label: str, name: str, table: Mapping[str, Any]) -> StepSettings:
    if not _NAME.fullmatch(name):
        raise SettingsError(
            label, "a step's name has lower-case letters, digits, '_' and '-', and begins with a letter"
        )
    if unknown := sorted(set(table) - _FIELDS):
        raise SettingsError(f"{label} {unknown[0]}", f"no such field; there are {', '.join(sorted(_FIELDS))}")
    if ("run" in table) == ("call" in table):
        raise SettingsError(label, "expected either run (a command) or call (a Python function)")
    call = table.get("call")
    if call is not None and not (isinstance(call, str) and _TARGET.fullmatch(call)):
        raise SettingsError(f"{label} call", 'expected "package.module:function"')
    timeout = table.get("timeout", 3600)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 1 <= timeout <= _LONGEST_SECONDS:
        raise SettingsError(f"{label} timeout", f"expected a number of seconds from 1 to {_LONGEST_SECONDS}")
    environment = _texts(label, "environment", table)
    if forbidden := sorted(_FORBIDDEN.intersection(environment)):
        raise SettingsError(f"{label} environment", f"no step gets {forbidden[0]}; a step needs no key of the bucket")
    for field in ("run", "check"):
        if field in table and not table[field]:
            raise SettingsError(f"{label} {field}", "expected a program and its arguments, found nothing")
    return StepSettings(
        name=name,
        channels=_texts(label, "channels", table),
        command=_texts(label, "run", table),
        call=call,
        check=_texts(label, "check", table),
        timeout=timedelta(seconds=timeout),
        environment=environment,
    )


def _texts(label: str, field: str, table: Mapping[str, Any]) -> tuple[str, ...]:
    value = table.get(field, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item and "\0" not in item for item in value):
        raise SettingsError(f"{label} {field}", "expected a list of texts")
    return tuple(value)
