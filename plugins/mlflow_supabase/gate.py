"""The gate in a promotion's own transaction: a version that fails the criteria is refused, and nothing changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from mlflow_supabase.gate_facts import Holding, RegistryFacts
from supabase_bridge.channels import Triggers, channel_triggers, winning_arrival
from supabase_bridge.config import Settings
from supabase_bridge.errors import SettingsError
from supabase_bridge.gates import Baseline, Gate, GateMode, Verdict, judge_version, with_tags
from supabase_bridge.identity import MODEL_KEY_TAG
from supabase_bridge.outbox.events import EventKind, NewEvent
from supabase_bridge.status_tags import promotion_verdict

_REASON_LIMIT = 1_500
"""Characters of a refusal; there may be any number of malformed tags."""


@dataclass(frozen=True, kw_only=True)
class _Rules:
    """What the settings say of gates."""

    settings: Settings
    triggers: tuple[Triggers, ...]


class TransitionGate:
    """Judges promotions of one registry.

    Args:
        load: Reads the settings; called at the first promotion, and again after it failed.
    """

    def __init__(self, load: Callable[[], Settings]) -> None:
        self._load = load
        self._loading = threading.Lock()
        self._rules: _Rules | None = None

    def check(self, facts: RegistryFacts, event: NewEvent, *, left: Collection[Holding]) -> None:
        """Let an event through, its verdict in the version's tag `supabase.verdict`, or refuse it.

        Everything is read and written in the transaction that makes the change.

        Args:
            facts: The event's model.
            left: What versions held until this transaction: the database shows it no more.

        Raises:
            MlflowException: the version fails a gate that is enforced, or the settings cannot be read. The whole
                transaction is to be rolled back.
        """
        if event.version is None or event.kind not in {EventKind.STAGE_CHANGED, EventKind.ALIAS_SET}:
            return
        rules = self._read_rules(event)
        triggers = next((item for item in rules.triggers if item.arrives(event)), None)
        if triggers is None:
            return
        gate = self._gate(rules.settings, facts)
        gated = gate.channels if gate.channels is not None else (rules.settings.main_channel,)
        if not gate.judges or triggers.channel not in gated:
            return
        if not rules.settings.gate_rollbacks and facts.was_current(event.version, triggers):
            facts.tag_version(event.version, *promotion_verdict(_target(event), "not judged: it was current before"))
            return
        verdict = _judge(gate, facts, event.version, triggers, left)
        if not verdict.passed and gate.mode is GateMode.ENFORCE:
            raise _refusal(event, verdict.reason)
        facts.tag_version(event.version, *promotion_verdict(_target(event), str(verdict)))

    def _read_rules(self, event: NewEvent) -> _Rules:
        with self._loading:
            if self._rules is None:
                try:
                    settings = self._load()
                except SettingsError as error:
                    raise _refusal(
                        event, f"the settings, which may hold its criteria, cannot be read: {error}"
                    ) from error
                self._rules = _Rules(settings=settings, triggers=channel_triggers(settings))
            return self._rules

    @staticmethod
    def _gate(settings: Settings, facts: RegistryFacts) -> Gate:
        return with_tags(settings.gate_of(facts.model, facts.tags.get(MODEL_KEY_TAG)), facts.tags)


def _judge(gate: Gate, facts: RegistryFacts, version: int, triggers: Triggers, left: Collection[Holding]) -> Verdict:
    current = _current(facts, version, triggers, left) if gate.asks_current else None
    return judge_version(gate, facts.metrics(version), current)


def _current(facts: RegistryFacts, version: int, triggers: Triggers, left: Collection[Holding]) -> Baseline | None:
    """The metrics of the version that the channel points to, or will once the worker has caught up.

    That is the last to arrive of those that held a trigger until now, else the last that a worker made current: a
    version that leaves without a successor leaves the pointer where it is. A version that is promoted once more is
    compared with the one before it.
    """
    arrivals = facts.arrivals(triggers, other_than=version)
    held = winning_arrival(arrivals, lambda arrival: facts.holds(arrival) or Holding.of(arrival) in left)
    found = held or facts.last_switch(triggers, other_than=version)
    if found is None:
        return None
    return Baseline(name=f"v{found.version}", metrics=facts.metrics(int(found.version or 0)).values)


def _target(event: NewEvent) -> str:
    return event.stage or f"@{event.alias}"


def _refusal(event: NewEvent, reason: str) -> MlflowException:
    """What MLflow's UI shows as a notice, after the code; BAD_REQUEST is HTTP 400, which no client tries again."""
    verb = "go to" if event.stage else "be"
    told = reason if len(reason) <= _REASON_LIMIT else f"{reason[:_REASON_LIMIT]}…"
    return MlflowException(
        f"{event.model} v{event.version} cannot {verb} {_target(event)}: {told}", error_code=BAD_REQUEST
    )
