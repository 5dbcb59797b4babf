"""A gate before arrivals that nobody could refuse: the changes of a registry that did not go through our plugin.

MLflow has made such a change when it is found. What a gate can still do is not to let it reach a channel: its event is
not recorded, so the pointer stays, and every pass that finds the difference asks again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from supabase_bridge.channels import Triggers, channel_triggers, winning_arrival
from supabase_bridge.config import Settings
from supabase_bridge.errors import ModelNotFoundError, RegistryRefusedError, VersionNotFoundError
from supabase_bridge.gates import Baseline, Gate, GateMode, Verdict, VersionMetrics, judge_version, with_tags
from supabase_bridge.identity import MODEL_KEY_TAG
from supabase_bridge.outbox.events import Event, EventKind, EventState, NewEvent
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.rows import to_event
from supabase_bridge.outbox.tables import OUTBOX
from supabase_bridge.registry import RegisteredVersion, Registry
from supabase_bridge.status_tags import Tags, promotion_verdict, withheld

logger = logging.getLogger(__name__)


class ArrivalGate:
    """Judges what one pass finds.

    Args:
        refused: Arrivals that an earlier pass withheld, with the reasons; they are not judged anew.
        dry_run: Write no tags.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        registry: Registry,
        outbox: Outbox,
        refused: Mapping[NewEvent, str] | None = None,
        dry_run: bool = False,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._outbox = outbox
        self._triggers = channel_triggers(settings)
        self._refused = dict(refused or {})
        self._dry_run = dry_run
        self._gates: dict[tuple[str, str], Gate] = {}
        self._admitted: set[NewEvent] = set()
        self._arrived: dict[tuple[str, str, str], int] = {}
        self.withheld: dict[NewEvent, str] = {}
        """What does not pass, and why."""

    def admits(self, event: NewEvent) -> bool:
        """Whether an event may be recorded. Asks nobody: an arrival that was not judged may not."""
        return event in self._admitted or self._arrival_of(event) is None

    def undecided(self, event: NewEvent) -> bool:
        """Whether an event has yet to be judged."""
        return not (self.admits(event) or event in self.withheld or event in self._refused)

    def judge(self, events: Iterable[NewEvent]) -> None:
        """Judge the arrivals among some events, in the order in which they will count as having come.

        What is judged shows on its version, before its event can be seen by a worker.

        Raises:
            RegistryUnavailableError: MLflow did not answer; what is not judged is not admitted.
        """
        for event in events:
            triggers = self._arrival_of(event)
            if triggers is None or event in self._admitted or event in self.withheld:
                continue
            if event in self._refused:
                self.withheld[event] = self._refused[event]
                continue
            try:
                self._judge(event, triggers)
            except (ModelNotFoundError, VersionNotFoundError):
                continue  # It is gone; the next pass sees that.

    def _arrival_of(self, event: NewEvent) -> Triggers | None:
        return next((item for item in self._triggers if item.arrives(event)), None)

    def _judge(self, event: NewEvent, triggers: Triggers) -> None:
        gate = self._gate(event)
        gated = gate.channels if gate.channels is not None else (self._settings.main_channel,)
        if gate.judges and triggers.channel in gated:
            version = self._registry.version(event.model, int(event.version or 0), event.workspace)
            target = event.stage or f"@{event.alias}"
            if not self._settings.gate_rollbacks and self._last_done(event, triggers, itself=True) is not None:
                self._show(version, dict([promotion_verdict(target, "not judged: it was current before")]))
            else:
                verdict = self._verdict(gate, version, event, triggers)
                if not verdict.passed and gate.mode is GateMode.ENFORCE:
                    self.withheld[event] = verdict.reason
                    tags = withheld(version.tags, target, str(verdict), channel=triggers.channel)
                    if any(version.tags.get(name) != value for name, value in tags.items()):
                        facts = {"model": version.model, "version": version.version, "reason": verdict.reason}
                        logger.warning("an arrival fails its gate and is not carried out", extra=facts)
                    self._show(version, tags)
                    return
                self._show(version, dict([promotion_verdict(target, str(verdict))]))
        self._admitted.add(event)
        self._arrived[event.workspace, event.model, triggers.channel] = int(event.version or 0)

    def _gate(self, event: NewEvent) -> Gate:
        place = (event.workspace, event.model)
        if place not in self._gates:
            tags = self._registry.model_tags(event.model, event.workspace)
            self._gates[place] = with_tags(self._settings.gate_of(event.model, tags.get(MODEL_KEY_TAG)), tags)
        return self._gates[place]

    def _verdict(self, gate: Gate, version: RegisteredVersion, event: NewEvent, triggers: Triggers) -> Verdict:
        current = self._current(event, triggers) if gate.asks_current else None
        return judge_version(gate, self._metrics(version), current)

    def _metrics(self, version: RegisteredVersion) -> VersionMetrics:
        if version.run_id is None:
            return VersionMetrics(values={}, problem="the version has no run, and so no metrics")
        try:
            return VersionMetrics(values=self._registry.metrics(version.run_id, version.workspace))
        except RegistryRefusedError as error:
            return VersionMetrics(values={}, problem=f"its metrics cannot be read: {error}")

    def _current(self, event: NewEvent, triggers: Triggers) -> Baseline | None:
        """The metrics of the version that is current, or will be once the worker has caught up; see docs/gate.md."""
        number = self._arrived.get((event.workspace, event.model, triggers.channel))
        if number is None or number == event.version:
            arrivals = self._outbox.arrivals(
                event.workspace, event.model, stages=triggers.stages, aliases=triggers.aliases
            )
            others = [arrival for arrival in arrivals if arrival.version != event.version]
            found = winning_arrival(others, self._holds) or self._last_done(event, triggers, itself=False)
            if found is None:
                return None
            number = int(found.version or 0)
        try:
            metrics = self._metrics(self._registry.version(event.model, number, event.workspace)).values
        except VersionNotFoundError:
            metrics = {}
        return Baseline(name=f"v{number}", metrics=metrics)

    def _holds(self, arrival: Event) -> bool:
        try:
            version = self._registry.version(arrival.model, int(arrival.version or 0), arrival.workspace)
        except VersionNotFoundError:
            return False
        if arrival.kind is EventKind.ALIAS_SET:
            return arrival.alias in version.aliases
        return arrival.stage == version.stage

    def _last_done(self, event: NewEvent, triggers: Triggers, *, itself: bool) -> Event | None:
        """The newest arrival that a worker has carried out, of the event's own version, or of the others."""
        staged = (OUTBOX.c.kind == EventKind.STAGE_CHANGED.value) & OUTBOX.c.stage.in_(triggers.stages)
        aliased = (OUTBOX.c.kind == EventKind.ALIAS_SET.value) & OUTBOX.c.alias.in_(triggers.aliases)
        same = OUTBOX.c.version == event.version
        query = (
            OUTBOX.select()
            .where(OUTBOX.c.workspace == event.workspace, OUTBOX.c.model == event.model, same if itself else ~same)
            .where(staged | aliased, OUTBOX.c.state == EventState.DONE.value, ~OUTBOX.c.model_deleted)
            .order_by(OUTBOX.c.id.desc())
            .limit(1)
        )
        with self._outbox.engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else to_event(row)

    def _show(self, version: RegisteredVersion, tags: Tags) -> None:
        """Write tags; a registry that does not allow it changes no verdict."""
        if self._dry_run:
            return
        try:
            self._registry.set_tags(version, tags)
        except RegistryRefusedError as error:
            facts = {"model": version.model, "version": version.version, "reason": str(error)}
            logger.warning("what the gate said cannot be shown on the version", extra=facts)
