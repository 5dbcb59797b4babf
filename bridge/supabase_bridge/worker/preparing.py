"""Run the steps before an event's activations, while its model and the worker's other events go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from supabase_bridge.core import tags as status_tags
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.events import Event
from supabase_bridge.outbox.errors import LeaseLostError
from supabase_bridge.registry.errors import ModelNotFoundError, VersionNotFoundError
from supabase_bridge.releases.verify import VerifiedRelease
from supabase_bridge.settings.steps import StepSettings
from supabase_bridge.steps.errors import StepStoppedError
from supabase_bridge.steps.preparation import Preparation
from supabase_bridge.steps.records import StepRecords
from supabase_bridge.worker.context import ModelContext, Services
from supabase_bridge.worker.decide import Activate, Outcome, decide


@dataclass(frozen=True, kw_only=True)
class Unprepared:
    """An activation whose steps have not all succeeded."""

    action: Activate
    preparation: Preparation
    pending: list[StepSettings]


class EventSteps:
    """The steps before the activations of one event.

    Args:
        now: When the event was claimed.
        still_held: Raises LeaseLostError where another worker has taken over the event.
    """

    def __init__(self, services: Services, event: Event, now: datetime, still_held: Callable[[], None]) -> None:
        self._services = services
        self._event = event
        self._claimed_at = now
        self._start = time.monotonic()
        self._still_held = still_held

    def unprepared(
        self, activations: list[Activate], context: ModelContext, releases: Mapping[int, VerifiedRelease]
    ) -> dict[str, Unprepared]:
        """Return the activations whose steps have not all succeeded, by channel.

        Raises:
            RegistryUnavailableError: the database that remembers did not answer.
        """
        found: dict[str, Unprepared] = {}
        for action in activations:
            if action.version in releases:
                preparation = self._preparation(action, context, releases[action.version])
                if pending := preparation.pending():
                    unprepared = Unprepared(action=action, preparation=preparation, pending=pending)
                    found[action.channel] = unprepared
        return found

    def run(self, unprepared: Unprepared, context: ModelContext) -> None:
        """Run the steps; meanwhile the event does not hold its model, so that every other change goes on.

        Returns where the activation is no longer wanted, too: the caller decides again.

        Raises:
            StepFailedError: see `Preparation.run`.
            LeaseLostError, ContentionError: see `Outbox.end_upload`.
        """
        action = unprepared.action
        # No version has this number: so uploads and the steps of other events go on.
        self._services.outbox.start_upload(self._event, -self._event.id)
        try:
            unprepared.preparation.run(
                unprepared.pending,
                keep_going=lambda: self._check(unprepared),
                started=lambda step: self._show(action, step),
            )
        except StepStoppedError:
            if (version := context.read_again(action.version)) is not None:
                tags = {
                    **status_tags.not_waiting(version.tags),
                    **status_tags.noted(unprepared.preparation.release.meta),
                }
                self._services.registry.set_tags(version, tags)
        self._services.outbox.end_upload(self._event)

    def published_at(self, action: Activate, context: ModelContext) -> datetime:
        """Return the time of an activation: with steps that of its first commit, else that of the first claim."""
        if self._steps(action, context):
            time_of_commit = self._records(context).commit_time(self._event.id, action.channel, self._now())
            return time_of_commit.replace(microsecond=0)
        return (self._event.started_at or self._event.created_at).replace(microsecond=0)

    def _preparation(self, action: Activate, context: ModelContext, release: VerifiedRelease) -> Preparation:
        head = action.head
        return Preparation(
            steps=self._steps(action, context),
            store=context.store,
            release=release,
            channel=action.channel,
            records=self._records(context),
            previous_run_id=None if head is None else head.current.run_id,
            attempt=max(self._event.attempts, 1),
        )

    def _steps(self, action: Activate, context: ModelContext) -> tuple[StepSettings, ...]:
        return self._services.settings.steps_of(self._event.model, context.key, action.channel)

    def _records(self, context: ModelContext) -> StepRecords:
        bucket = self._services.settings.bucket_of(self._event.workspace)
        return StepRecords(self._services.outbox.engine, bucket or context.store.name)

    def _check(self, unprepared: Unprepared) -> None:
        """Decide about the event again, and stop the step where that no longer ends in this activation."""
        action = unprepared.action
        self._still_held()
        context = ModelContext(self._services, self._event.model, self._event.workspace, self._still_held)
        reason = "its version or model is gone"
        try:
            actions = decide(self._event, context.facts(self._event, self._now()))
        except (VersionNotFoundError, ModelNotFoundError):
            actions = ()
        except BridgeError as error:
            if isinstance(error, LeaseLostError) or not error.retryable:
                raise
            return  # It is asked again in two seconds.
        for found in actions:
            if isinstance(found, Activate) and (found.channel, found.version) == (action.channel, action.version):
                return
            reason = found.outcome if isinstance(found, Outcome) else reason
        step, *_ = unprepared.pending
        raise StepStoppedError(step.name, unprepared.preparation.name, reason)

    def _show(self, action: Activate, step: StepSettings) -> None:
        """Show on the version which step runs since when; the step does not depend on that."""
        with suppress(BridgeError):
            version = self._services.registry.version(self._event.model, action.version, self._event.workspace)
            tags = status_tags.preparing(
                version.tags, step.name, self._now().replace(microsecond=0), attempt=max(self._event.attempts, 1)
            )
            self._services.registry.set_tags(version, tags)

    def _now(self) -> datetime:
        return self._claimed_at + timedelta(seconds=time.monotonic() - self._start)
