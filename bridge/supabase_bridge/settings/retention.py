"""The settings of retention: the tables [retention] for all models and [retention.<model>] for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.retention import LEAST_KEPT, Removal, RetentionPolicy

_FIELDS = {"keep", "min_age_days", "then", "archive_bucket"}
_OFF = "keep"
_LONGEST_DAYS = 36_500


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The policies: one for every model, and those of single models.

    Attributes:
        by_model: None for a model that keeps everything.
    """

    general: RetentionPolicy | None = None
    by_model: Mapping[str, RetentionPolicy | None] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, model: str, model_key: str) -> RetentionPolicy | None:
        """Return the policy of a registered model by its name, else by its folder, else the one for all."""
        for name in (model, model_key):
            if name in self.by_model:
                return self.by_model[name]
        return self.general

    def as_table(self) -> dict[str, RetentionPolicy | None]:
        """Return the policies by model; the one for all has an empty name."""
        return {"": self.general, **self.by_model}

    @property
    def archive_buckets(self) -> frozenset[str]:
        """The buckets of all archives."""
        policies = (self.general, *self.by_model.values())
        return frozenset(policy.archive_bucket for policy in policies if policy and policy.archive_bucket)


def parse_retention(value: Any) -> Retention:
    """Parse the table [retention]; a model's table takes from it what it does not set itself.

    Raises:
        SettingsError: a table has another form.
    """
    if isinstance(value, Retention):
        return value
    if not isinstance(value, Mapping):
        raise SettingsError("[retention]", "expected a table")
    general = {name: item for name, item in value.items() if not isinstance(item, Mapping)}
    models = {name: item for name, item in value.items() if isinstance(item, Mapping)}
    by_model = {name: _policy(f"[retention.{name}]", {**general, **table}) for name, table in models.items()}
    found = _policy("[retention]", general) if general and ("then" in general or not models) else None
    if found is None:
        _check_names("[retention]", general)
    return Retention(general=found, by_model=MappingProxyType(by_model))


def _policy(label: str, table: Mapping[str, Any]) -> RetentionPolicy | None:
    _check_names(label, table)
    then = table.get("then")
    if then == _OFF:
        return None
    if then not in {item.value for item in Removal}:
        raise SettingsError(f"{label} then", 'expected "archive" or "delete", or "keep" to keep every release')
    keep = table.get("keep", LEAST_KEPT)
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < LEAST_KEPT:
        raise SettingsError(f"{label} keep", f"expected a whole number, {LEAST_KEPT} at least")
    days = table.get("min_age_days", 30)
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 <= days <= _LONGEST_DAYS:
        raise SettingsError(f"{label} min_age_days", f"expected a number of days from 0 to {_LONGEST_DAYS}")
    bucket = table.get("archive_bucket")
    archives = then == Removal.ARCHIVE.value
    if archives and not (isinstance(bucket, str) and bucket):
        raise SettingsError(f"{label} archive_bucket", 'missing, while then = "archive"; name a bucket of its own')
    return RetentionPolicy(
        then=Removal(then),
        keep=keep,
        min_age=timedelta(days=days),
        archive_bucket=bucket if archives else None,
    )


def _check_names(label: str, table: Mapping[str, Any]) -> None:
    if unknown := sorted(set(table) - _FIELDS):
        raise SettingsError(f"{label} {unknown[0]}", f"no such field; there are {', '.join(sorted(_FIELDS))}")
