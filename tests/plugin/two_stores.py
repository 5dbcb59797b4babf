"""Our registry store beside MLflow's own: the same calls to both, and what each gives back in a form to compare."""

from __future__ import annotations

import itertools
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
from mlflow.entities._mlflow_object import _MlflowObject
from mlflow.exceptions import MlflowException
from mlflow.store.db.base_sql_model import Base
from mlflow.store.model_registry import sqlalchemy_store
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from tests.support.registry_stores import REGISTRY_TABLES

Call: TypeAlias = Callable[[Any], Any]
"""A call to a store, which MLflow does not annotate."""

WEBHOOK_TABLES = tuple(name for name in ("webhook_events", "webhooks") if name in Base.metadata.tables)
FIRST_MOMENT = 1_761_900_000_000


class TwoStores:
    """Two stores in step: every call sees the same time and ids in both, so that results are equal in every field."""

    def __init__(self, ours: Any, stock: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stores = (ours, stock)
        self._monkeypatch = monkeypatch
        self._moment = FIRST_MOMENT

    def check(self, *calls: Call) -> list[Any]:
        """Make each call to both stores; what comes of it must be equal. Returns what came of each."""
        return [self._check(call) for call in calls]

    def clear(self) -> None:
        """Forget every model and webhook, in both."""
        for store in self._stores:
            with store.engine.begin() as connection:
                for name in (*WEBHOOK_TABLES, *reversed(REGISTRY_TABLES)):
                    connection.execute(Base.metadata.tables[name].delete())

    def _check(self, call: Call) -> Any:
        self._moment += 1_000
        ours, stock = (self._outcome(call, store) for store in self._stores)
        assert ours == stock
        return ours

    def _outcome(self, call: Call, store: Any) -> Any:
        moments = itertools.count(self._moment)
        numbers = itertools.count(self._moment << 64)
        self._monkeypatch.setattr(sqlalchemy_store, "get_current_time_millis", lambda: next(moments))
        if hasattr(sqlalchemy_store, "uuid"):  # Webhooks have ids, not before MLflow 3.
            counted = SimpleNamespace(uuid4=lambda: uuid.UUID(int=next(numbers)))
            self._monkeypatch.setattr(sqlalchemy_store, "uuid", counted)
        try:
            with warnings.catch_warnings():
                # Stages are deprecated.
                warnings.simplefilter("ignore", FutureWarning)
                return plain(call(store))
        except MlflowException as error:
            return type(error).__name__, error.error_code, error.message
        except (AttributeError, TypeError, ValueError) as error:
            return type(error).__name__, str(error)


def plain(value: Any) -> Any:
    """MLflow's entities as dictionaries of every field, however deep they lie; pages keep their order and their tokens.

    MLflow asks for no order in other lists, so PostgreSQL gives any.
    """
    if isinstance(value, Enum) or value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, _MlflowObject):
        return {"type": type(value).__name__, **{name: plain(field) for name, field in vars(value).items()}}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | Iterable):
        items = [plain(item) for item in value]
        return {"items": items, "token": value.token} if hasattr(value, "token") else {"items": sorted(items, key=repr)}
    return {"type": type(value).__name__, **{name: plain(field) for name, field in vars(value).items()}}


def call(method: str, *arguments: Any, **named: Any) -> Call:
    """The call of a store's method."""
    return lambda store: getattr(store, method)(*arguments, **named)
