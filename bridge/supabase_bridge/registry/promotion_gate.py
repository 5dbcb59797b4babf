"""Decide whether a version may be promoted: allow, warn or refuse.

`decide` is the only policy. The plugin asks it inside MLflow's transaction and can refuse the promotion itself.
`PromotionGate` asks it about promotions that bypassed the plugin: MLflow has committed them already, so a refused
promotion is not enqueued. The channel stays, and each later pass finds the promotion and decides again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import sqlalchemy as sa

from supabase_bridge.core.criteria import Baseline, GateMode, VersionMetrics, judge_version, with_tags
from supabase_bridge.core.documents import EvaluationProtocol
from supabase_bridge.core.evaluation import incomparable, protocol_of
from supabase_bridge.core.events import Event, EventKind, NewEvent, Triggers, effective_assignment
from supabase_bridge.core.layout import is_model_key
from supabase_bridge.core.tags import MODEL_GUIDE, MODEL_KEY_TAG, Tags, blocked, promotion_verdict
from supabase_bridge.outbox.database import database_errors
from supabase_bridge.outbox.freezes import Freeze, covering, load_freezes
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.registry.client import RegisteredVersion, Registry
from supabase_bridge.registry.errors import ModelNotFoundError, RegistryRefusedError, VersionNotFoundError
from supabase_bridge.registry.tables import load_model_tags
from supabase_bridge.settings.model import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Allow:
    """The promotion is allowed; `verdict` is None if no criterion applies to it."""

    verdict: str | None = None


@dataclass(frozen=True, kw_only=True)
class Warn:
    """The version fails its criteria, or its files cannot become a release, and the settings only ask for a warning."""

    verdict: str


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """The channel is frozen, or the version fails enforced criteria, or its files cannot become a release.

    Attributes:
        reason: What MLflow's UI shows: the freeze, or the failures.
    """

    verdict: str
    reason: str


class PromotionFacts(Protocol):
    """The facts about one registered model that a decision needs; each is read when it is asked for."""

    @property
    def tags(self) -> Mapping[str, str]:
        """The tags of the registered model."""
        ...

    def metrics(self, version: int) -> VersionMetrics:
        """Return the metrics of a version."""
        ...

    def protocol(self, version: int) -> EvaluationProtocol | None:
        """Return the protocol of a version's evaluation; None if its run records none."""
        ...

    def rejection(self, version: int) -> str | None:
        """Return the reason why a version's own files cannot become a release; None if the worker shall try it."""
        ...

    def was_current(self, version: int, triggers: Triggers) -> bool:
        """Return whether a worker has activated a version in a channel before."""
        ...

    def freeze(self, triggers: Triggers) -> Freeze | None:
        """Return a freeze of a channel that is in force; None if there is none."""
        ...

    def current(self, triggers: Triggers, *, other_than: int) -> int | None:
        """Return the version that a channel points to, or will point to when the worker has finished its events.

        Args:
            other_than: A version to ignore: a version that is promoted again is compared with the one before it.
        """
        ...


def decide(event: NewEvent, settings: Settings, facts: PromotionFacts) -> Allow | Warn | Refuse:
    """Decide about an event; an event that assigns no stage or alias of a channel is allowed."""
    triggers = assigned_channel(event, settings)
    if triggers is None:
        return Allow()
    freeze, version = facts.freeze(triggers), int(event.version or 0)
    if freeze is None:
        return _judge_version(event, settings, facts, triggers)
    if not facts.was_current(version, triggers):
        reason = f"{freeze}. Only a version that was current before may come back"
        return Refuse(verdict=f"failed: {reason}", reason=reason)
    decision = _judge_version(event, settings, facts, triggers)
    if not isinstance(decision, Allow):
        return decision
    logger.warning(
        "a version comes back during a freeze",
        extra={"model": event.model, "version": version, "freeze": str(freeze)},
    )
    return Allow(verdict=f"{decision.verdict or 'allowed: it was current before'}, although {freeze}")


def _judge_version(
    event: NewEvent, settings: Settings, facts: PromotionFacts, triggers: Triggers
) -> Allow | Warn | Refuse:
    """Decide about the promotion of a version by its files and by the gate of its model."""
    version = int(event.version or 0)
    rejection = facts.rejection(version)
    if rejection is not None and not facts.was_current(version, triggers):
        guide = "" if MODEL_GUIDE in rejection else f" (see {MODEL_GUIDE})"
        reason = f"its files cannot become a release{guide}: {rejection}"
        failed = f"failed: {reason}"
        return Refuse(verdict=failed, reason=reason) if settings.refuse_rejected else Warn(verdict=failed)
    gate = with_tags(settings.gate_of(event.model, facts.tags.get(MODEL_KEY_TAG)), facts.tags)
    gated = gate.channels if gate.channels is not None else settings.main_channels
    if not gate.judges or triggers.channel not in gated:
        return Allow()
    if not settings.gate_rollbacks and facts.was_current(version, triggers):
        return Allow(verdict="not judged: it was current before")
    baseline: Baseline | None = None
    if gate.asks_current and (current := facts.current(triggers, other_than=version)) is not None:
        problem = incomparable(facts.protocol(version), facts.protocol(current))
        baseline = Baseline(name=f"v{current}", metrics=facts.metrics(current).values, problem=problem)
    verdict = judge_version(gate, facts.metrics(version), baseline)
    if verdict.passed:
        return Allow(verdict=str(verdict))
    if gate.mode is GateMode.ENFORCE:
        return Refuse(verdict=str(verdict), reason=verdict.reason)
    return Warn(verdict=str(verdict))


def assigned_channel(event: NewEvent, settings: Settings) -> Triggers | None:
    """Return the triggers of the channel to which an event assigns its version; None if it assigns none."""
    return next((item for item in settings.triggers if item.assigns(event)), None)


def current_version(
    assignments: Sequence[Event], holds: Callable[[Event], bool], last_activated: Callable[[], Event | None]
) -> int | None:
    """Return the version of the newest assignment that still holds, else the version that a worker activated last.

    A version that leaves its stage without a successor leaves the channel where it is.
    """
    found = effective_assignment(assignments, holds) or last_activated()
    return None if found is None else found.version


def target_of(event: NewEvent) -> str:
    """Return the stage, or the alias with an @, that an event assigns."""
    return event.stage or f"@{event.alias}"


class RegistryFacts:
    """Facts that MLflow's client and the outbox give; a version that was deleted has no metrics.

    Args:
        allowed: From a channel to the version of the promotion into it that this pass allowed last.
        read_tags: Selects the tags of a model in the outbox's database, see `load_model_tags`; None: MLflow is asked.
    """

    def __init__(
        self,
        registry: Registry,
        outbox: Outbox,
        *,
        workspace: str,
        model: str,
        allowed: Mapping[str, int],
        read_tags: sa.Select[Any] | None,
    ) -> None:
        self._registry = registry
        self._outbox = outbox
        self._workspace = workspace
        self._model = model
        self._allowed = allowed
        self._read_tags = read_tags

    @cached_property
    def tags(self) -> Mapping[str, str]:
        if self._read_tags is None or not is_model_key(self._model):
            # SQL may have written a name that MLflow refuses; the refusal is the decision.
            return self._registry.model(self._model, self._workspace).tags
        # MLflow reads the model's newest versions, too, which takes twenty times as long.
        with database_errors("read the tags of a model"), self._outbox.engine.connect() as connection:
            return load_model_tags(connection, self._read_tags, self._workspace, self._model)

    def metrics(self, version: int) -> VersionMetrics:
        found = self._version(version)
        if found is None:
            return VersionMetrics(values={})
        if found.run_id is None:
            return VersionMetrics(values={}, problem="the version has no run, and so no metrics")
        try:
            return VersionMetrics(values=self._registry.metrics(found.run_id, self._workspace))
        except RegistryRefusedError as error:
            return VersionMetrics(values={}, problem=f"its metrics cannot be read: {error}")

    def protocol(self, version: int) -> EvaluationProtocol | None:
        found = self._version(version)
        if found is None or found.run_id is None:
            return None
        try:
            return protocol_of(self._registry.params(found.run_id, self._workspace))
        except RegistryRefusedError:
            return None  # Its metrics cannot be read either, which is the verdict.

    def rejection(self, version: int) -> str | None:  # noqa: ARG002
        """Return None: MLflow has committed the promotion already, so the worker tries the version again."""
        return None

    def was_current(self, version: int, triggers: Triggers) -> bool:
        return self._outbox.was_activated(self._workspace, self._model, triggers, version=version)

    def freeze(self, triggers: Triggers) -> Freeze | None:
        return covering(load_freezes(self._outbox.engine, self._workspace, self._model), triggers.channel)

    def current(self, triggers: Triggers, *, other_than: int) -> int | None:
        allowed = self._allowed.get(triggers.channel)
        if allowed is not None and allowed != other_than:
            return allowed
        assignments = self._outbox.assignments(self._workspace, self._model, triggers)
        return current_version(
            [assignment for assignment in assignments if assignment.version != other_than],
            self._holds,
            lambda: self._outbox.last_activated(self._workspace, self._model, triggers, other_than=other_than),
        )

    def _holds(self, assignment: Event) -> bool:
        version = self._version(int(assignment.version or 0))
        if version is None:
            return False
        if assignment.kind is EventKind.ALIAS_SET:
            return assignment.alias in version.aliases
        return assignment.stage == version.stage

    def _version(self, version: int) -> RegisteredVersion | None:
        try:
            return self._registry.version(self._model, version, self._workspace)
        except VersionNotFoundError:
            return None


class PromotionGate:
    """Decides about the promotions that one pass finds.

    Args:
        refused: Promotions that an earlier pass blocked, with the reasons; the gate does not decide about them again.
        dry_run: Write no tags.
        read_tags: See `RegistryFacts`.

    Attributes:
        blocked: The promotions that are refused, with the reasons.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        registry: Registry,
        outbox: Outbox,
        refused: Mapping[NewEvent, str] | None = None,
        dry_run: bool = False,
        read_tags: sa.Select[Any] | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._outbox = outbox
        self._refused = dict(refused or {})
        self._dry_run = dry_run
        self._read_tags = read_tags
        self._admitted: set[NewEvent] = set()
        self._facts: dict[tuple[str, str], RegistryFacts] = {}
        self._allowed: dict[tuple[str, str], dict[str, int]] = {}
        self.blocked: dict[NewEvent, str] = {}

    def admits(self, event: NewEvent) -> bool:
        """Return whether an event may be enqueued; a promotion without a decision may not. Reads nothing."""
        return event in self._admitted or assigned_channel(event, self._settings) is None

    def undecided(self, event: NewEvent) -> bool:
        """Return whether the gate has yet to decide about an event."""
        return not (self.admits(event) or event in self.blocked or event in self._refused)

    def judge(self, events: Iterable[NewEvent]) -> None:
        """Decide about the promotions among some events, in the order in which they count as made.

        The verdict is on the version before a worker can see the event.

        Raises:
            RegistryUnavailableError: MLflow did not answer; promotions without a decision are not admitted.
        """
        for event in events:
            triggers = assigned_channel(event, self._settings)
            if triggers is None or event in self._admitted or event in self.blocked:
                continue
            if event in self._refused:
                self.blocked[event] = self._refused[event]
                continue
            try:
                self._judge(event, triggers)
            except (ModelNotFoundError, VersionNotFoundError):
                continue  # It was deleted; the next pass finds the deletion.
            except RegistryRefusedError as error:
                self.blocked[event] = f"no verdict is possible: {error}"

    def _judge(self, event: NewEvent, triggers: Triggers) -> None:
        place, number = (event.workspace, event.model), int(event.version or 0)
        allowed = self._allowed.setdefault(place, {})
        if place not in self._facts:
            self._facts[place] = RegistryFacts(
                self._registry,
                self._outbox,
                workspace=event.workspace,
                model=event.model,
                allowed=allowed,
                read_tags=self._read_tags,
            )
        decision = decide(event, self._settings, self._facts[place])
        if decision.verdict is not None:
            version = self._registry.version(event.model, number, event.workspace)
            if isinstance(decision, Refuse):
                self.blocked[event] = decision.reason
                tags = blocked(version.tags, target_of(event), decision.verdict, channel=triggers.channel)
                if any(version.tags.get(name) != value for name, value in tags.items()):
                    facts = {"model": version.model, "version": version.version, "reason": decision.reason}
                    logger.warning("the promotion gate blocked a version", extra=facts)
                self._show(version, tags)
                return
            self._show(version, dict([promotion_verdict(target_of(event), decision.verdict)]))
        self._admitted.add(event)
        allowed[triggers.channel] = number

    def _show(self, version: RegisteredVersion, tags: Tags) -> None:
        """Write tags; a registry that refuses them changes no decision."""
        if self._dry_run:
            return
        try:
            self._registry.set_tags(version, tags)
        except RegistryRefusedError as error:
            facts = {"model": version.model, "version": version.version, "reason": str(error)}
            logger.warning("the verdict of the promotion gate cannot be written to the version", extra=facts)
