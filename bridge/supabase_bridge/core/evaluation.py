"""The protocol of an evaluation in MLflow's names, and whether the metrics of two evaluations can be compared.

The same model has recall@20 0.14 or 0.65 by protocol alone: among all items or among 100 sampled ones, with the items
that a user has seen or without them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from supabase_bridge.core.documents import EvaluationProtocol
from supabase_bridge.core.errors import InvalidDocumentError

_PREFIX = "protocol."
PROTOCOL_PARAMS = tuple(_PREFIX + name for name in EvaluationProtocol.model_fields)
"""The params of a run that hold its protocol: `protocol.split`, ..."""
REFERENCE_PREFIX = "reference/"
"""The prefix of a run's metrics of another method on the same data, as in `reference/popularity/recall_at_20`."""
_SHOWN = 80

_Value = TypeVar("_Value")


def protocol_of(params: Mapping[str, str]) -> EvaluationProtocol | None:
    """Return the protocol that a run's params hold; None if they hold no part of one."""
    found: dict[str, object] = {
        name.removeprefix(_PREFIX): params[name].strip() for name in PROTOCOL_PARAMS if params.get(name, "").strip()
    }
    if re.fullmatch(r"[0-9]{1,9}(\s*,\s*[0-9]{1,9})*", text := str(found.get("k", ""))):
        numbers = [int(number) for number in text.split(",")]
        found["k"] = numbers if len(numbers) > 1 else numbers[0]
    return EvaluationProtocol.from_object(found) if found else None


def read_protocol(value: object) -> EvaluationProtocol | None:
    """Return the protocol in a training's own metrics.json; None if it is of another form."""
    try:
        return EvaluationProtocol.from_object(dict(value)) if isinstance(value, Mapping) else None
    except InvalidDocumentError:
        return None


def protocol_params(protocol: EvaluationProtocol) -> dict[str, str]:
    """Return the params in which a run holds a protocol."""
    return {_PREFIX + name: _text(value) for name, value in protocol.to_object().items()}


def incomparable(own: EvaluationProtocol | None, other: EvaluationProtocol | None) -> str | None:
    """Return why metrics of two protocols cannot be compared; None if the protocols are equal, or neither is recorded.

    Args:
        own: The protocol of the version that is judged.
        other: The protocol of the one that it is compared with.
    """
    if own is None or other is None:
        return None if own is other else f"{'it' if own is None else 'the other'} has no evaluation protocol"
    here, there = own.to_object(), other.to_object()
    for name in sorted(here.keys() | there.keys()):
        left, right = (_text(value[name])[:_SHOWN] if name in value else "not recorded" for value in (here, there))
        if (name in here) != (name in there) or _text(here[name]) != _text(there[name]):
            return f"its protocol has {name} {left!r}, the other has {right!r}"
    return None


def without_references(metrics: Mapping[str, _Value]) -> tuple[dict[str, _Value], dict[str, dict[str, _Value]]]:
    """Return a run's own metrics, and those of other methods by the method and the metric."""
    own: dict[str, _Value] = {}
    references: dict[str, dict[str, _Value]] = {}
    for name, value in metrics.items():
        method, mark, metric = name.removeprefix(REFERENCE_PREFIX).partition("/")
        if name.startswith(REFERENCE_PREFIX) and mark and method and metric:
            references.setdefault(method, {})[metric] = value
        else:
            own[name] = value
    return own, references


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
