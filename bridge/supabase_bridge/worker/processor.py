"""Carry out the actions that an event requires, and show the result on the versions as tags."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta

from supabase_bridge.core import tags as status_tags
from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.events import OF_ALIASES, Event, EventKind, EventState
from supabase_bridge.core.release_log import pinned
from supabase_bridge.mirror import job
from supabase_bridge.mirror.checks.sandbox import Checks
from supabase_bridge.outbox.errors import ContentionError, LeaseLostError
from supabase_bridge.registry.client import RegisteredVersion
from supabase_bridge.releases.heads import HeadState
from supabase_bridge.releases.verify import VerifiedRelease
from supabase_bridge.storage.base import Progress
from supabase_bridge.worker.context import ModelContext, Services
from supabase_bridge.worker.decide import (
    Action,
    Activate,
    Facts,
    Mirror,
    Outcome,
    Repair,
    Stay,
    Wait,
    combine,
    decide,
    promotion_target,
    stays_pinned,
)
from supabase_bridge.worker.preparing import EventSteps, Unprepared

logger = logging.getLogger(__name__)

_NO_UPLOAD = "this worker uploads as many versions as it may (setting concurrency)"
_BUSY = "another worker carries out a change of the model, or uploads the version's files"
_PAUSE = timedelta(seconds=1)
_ROUNDS = 4
"""One to upload, one to run steps, one to activate, and one where the registry changed meanwhile."""

STEPS_AT_ONCE = 16
"""How many events of a process may run steps at the same time."""


class _NoUploadError(BridgeError):
    """The worker uploads as many versions as it may."""


class Processor:
    """Carries out events. Every step may run twice: a step that is done already changes nothing.

    Args:
        announce: See the upload job's `run`.
    """

    def __init__(self, services: Services, *, announce: Callable[[int], Progress] | None = None) -> None:
        self._services = services
        self._announce = announce
        self._uploads = threading.BoundedSemaphore(services.settings.concurrency)
        self.preparing: set[int] = set()
        """The events that run steps now; they take no worker's place."""

    def process(self, event: Event, now: datetime, *, still_held: Callable[[], None]) -> Outcome | Wait:
        """Carry out what an event requires, if it is still wanted.

        Args:
            still_held: Called before each attempt to move a pointer, and before tags are written; raises LeaseLostError
                where another worker has taken over the event.

        Raises:
            BridgeError: the event failed; `retryable` says whether the same attempt may succeed later.
        """
        try:
            steps = EventSteps(self._services, event, now, still_held)
            for _ in range(_ROUNDS):
                if (result := self._process_once(event, now, still_held, steps)) is not None:
                    return result
        except ContentionError:
            # It waits for the other event, or a second where that is about another version.
            return Wait(until=None if event.outcome != _BUSY else now + _PAUSE, reason=_BUSY)
        except _NoUploadError as error:
            # A rollback needs no upload. So it must find a thread free.
            return Wait(until=now + _PAUSE, reason=str(error))
        return Wait(until=now + _PAUSE, reason="the release was uploaded, and is not complete")

    def _process_once(
        self, event: Event, now: datetime, still_held: Callable[[], None], steps: EventSteps
    ) -> Outcome | Wait | None:
        """Carry out the event; None where files were uploaded or steps ran, so that the registry must be read again."""
        context = ModelContext(self._services, event.model, event.workspace, still_held)
        facts = context.facts(event, now)
        actions = decide(event, facts)
        self._supersede_earlier(event, facts, actions, context)
        failures: list[BridgeError] = []
        releases: dict[int, job.Mirrored] = {}
        activations = [action for action in actions if isinstance(action, Activate)]
        for number in dict.fromkeys(action.version for action in activations):
            with _collected(failures):
                version = context.existing_version(number)
                renew = not any(_was_current(version, action.head) for action in activations)
                releases[number] = self._mirror(context, version, event, renew=renew)
        if any(mirrored.uploaded for mirrored in releases.values()):
            return None
        if failures and len(actions) > 1:
            self._services.outbox.end_upload(event)
        outcomes: list[Outcome] = []
        verified = {number: mirrored.release for number, mirrored in releases.items()}
        unprepared = steps.unprepared(activations, context, verified)
        for action in actions:
            if isinstance(action, Wait):
                if action.note is not None:
                    context.tag(context.existing_version(event.version), {status_tags.NOTE_TAG: action.note})
                    context.write_tags(event.version)
                return action
            if not isinstance(action, Activate) or (action.version in releases and action.channel not in unprepared):
                # A channel that fails, or that has steps to run, does not delay the others.
                with _collected(failures):
                    outcomes.append(self._execute(action, event, context, releases, steps))
        _note_unmapped(event, facts, context)
        context.write_tags(event.version)
        if unprepared:
            return self._run_steps(unprepared.values(), event, now, context, steps)
        if failures:
            raise failures[0]
        triggers = [channel.triggers for channel in facts.channels]
        return combine(event, triggers, outcomes) if triggers else outcomes[0]

    def _supersede_earlier(self, event: Event, facts: Facts, actions: Sequence[Action], context: ModelContext) -> None:
        """Close the earlier changes of the channels that follow this assignment, before its files are uploaded."""
        followed = [
            channel.triggers
            for channel, action in zip(facts.channels, actions, strict=False)
            if isinstance(action, Activate | Repair) and channel.effective is not None
            if channel.effective.id == event.id
        ]
        if followed:
            others = [item for item in self._services.settings.triggers if item not in followed]
            for number in self._services.outbox.supersede(event, followed, others, now=facts.now):
                if number != event.version and (version := context.version(number)) is not None:
                    context.tag(version, status_tags.not_waiting(version.tags))

    def report_waiting(self, event: Event, reason: str) -> None:
        """Show on the version of a change what the change waits for, if the version still exists."""
        if event.kind is EventKind.VERSION_CREATED:
            return
        version = ModelContext(self._services, event.model, event.workspace).version(event.version)
        if version is not None:
            self._services.registry.set_tags(version, status_tags.waiting(reason))

    def report_failure(self, event: Event, reason: str, *, retrying: bool, rejected: bool = False) -> None:
        """Show a failure on the event's version, if that still exists."""
        version = ModelContext(self._services, event.model, event.workspace).version(event.version)
        if version is not None:
            tags = status_tags.failed(version.tags, reason, retrying=retrying, rejected=rejected)
            self._services.registry.set_tags(version, tags)

    def mirror(self, version: RegisteredVersion, *, remake: bool = False) -> str:
        """Make the release of a version complete, tag it, and return its run_id.

        Args:
            remake: See the upload job's `run`.
        """
        context = ModelContext(self._services, version.model, version.workspace)
        mirrored = self._mirror(context, context.existing_version(version.version), None, remake=remake)
        _tag_mirrored(mirrored, version.version, context)
        context.write_tags(version.version)
        return str(mirrored.release.paths.run_id)

    def _execute(
        self,
        action: Outcome | Mirror | Activate | Repair | Stay,
        event: Event,
        context: ModelContext,
        releases: Mapping[int, job.Mirrored],
        steps: EventSteps,
    ) -> Outcome:
        """Carry out one action, and collect the tags that it changes."""
        match action:
            case Outcome():
                return action
            case Mirror():
                return self._mirror_new(event, context)
            case Activate():
                return self._activate(action, event, context, releases[action.version].release, steps)
            case Repair():
                channel = context.channel(action.channel)
                channel.repair_manifest()
                context.switched(channel)  # The worker of the attempt that committed may not have done it.
                version = context.existing_version(action.entry.current.model_version)
                outcome = _activated(action.entry, version, context)
                if action.lost is not None:
                    context.tag(version, status_tags.left_without_successor(action.lost, action.channel))
                return outcome
            case Stay():
                return _stay(action, event, context)

    def _mirror_new(self, event: Event, context: ModelContext) -> Outcome:
        version = context.existing_version(event.version)
        mirrored = self._mirror(context, version, event)
        # The reason of a promotion that failed meanwhile stays visible.
        if not self._services.outbox.has_failed_since(event):
            _tag_mirrored(mirrored, version.version, context)
        return Outcome(state=EventState.DONE, outcome=f"mirrored as {mirrored.release.paths.run_id}")

    def _run_steps(
        self,
        unprepared: Iterable[Unprepared],
        event: Event,
        now: datetime,
        context: ModelContext,
        steps: EventSteps,
    ) -> Wait | None:
        """Run the steps of each channel; None: decide again. Meanwhile the event takes no worker's place."""
        if len(self.preparing) >= STEPS_AT_ONCE:
            return Wait(until=now + _PAUSE, reason=f"this worker runs {STEPS_AT_ONCE} steps already")
        self.preparing.add(event.id)
        try:
            for item in unprepared:
                steps.run(item, context)
        finally:
            self.preparing.discard(event.id)
        return None

    def _activate(
        self, action: Activate, event: Event, context: ModelContext, release: VerifiedRelease, steps: EventSteps
    ) -> Outcome:
        """Make the release of a version current in one channel, unless an operator moves the pointer meanwhile."""
        channel = context.channel(action.channel)

        def still_wanted(newest: Manifest | None) -> bool:
            channel.check_owner(newest, self._services.registry_id)
            if pinned(newest, promoted_at=action.promoted_at):
                return False
            context.still_held()
            return True

        activation = channel.activate(
            release,
            head=action.head,
            cause=context.cause_in(action.channel, event, action.cause),
            published_at=steps.published_at(action, context),
            still_wanted=still_wanted,
            always=action.always,
        )
        if activation.activated:
            context.switched(channel)
        self._services.heads.keep(channel, HeadState.published(activation.head))
        if activation.entry.current.run_id != str(release.paths.run_id):
            return stays_pinned(activation.entry)
        version = context.existing_version(action.version)
        outcome = _activated(activation.entry, version, context)
        context.tag(version, status_tags.noted(release.meta))
        return outcome

    def _mirror(
        self,
        context: ModelContext,
        version: RegisteredVersion,
        event: Event | None,
        *,
        remake: bool = False,
        renew: bool = False,
    ) -> job.Mirrored:
        """Make the release of a version complete; one that is complete is verified only.

        The event holds its model, but not while files are uploaded.
        """
        services = self._services
        mirror = job.Mirror(
            services.registry,
            services.sources,
            context.store,
            baseline_channel=services.settings.main_channels[0],
            checks=Checks.of(services.settings, trial_warns=context.trial_warns, consumers=context.consumers),
            channels=[item.channel for item in services.settings.triggers],
            gate=context.gate,
            signing=services.signing,
            verified=context.releases,
            heads=services.heads,
            bucket=services.settings.bucket_of(version.workspace) or "",
            archives=services.archives,
        )
        source = context.sources.get(version.version)
        with ExitStack() as stack:

            def start_upload() -> None:
                if event is not None:
                    if not self._uploads.acquire(blocking=False):
                        raise _NoUploadError(_NO_UPLOAD)
                    stack.callback(self._uploads.release)
                    services.outbox.start_upload(event, version.version)

            mirrored = mirror.run(
                version,
                model_key=context.key,
                source=source,
                announce=self._announce,
                before_upload=start_upload,
                remake=remake,
                renew=renew,
            )
        if mirrored.uploaded:
            if event is not None:
                services.outbox.end_upload(event)
            context.read_again(version.version)
        return mirrored


@contextmanager
def _collected(failures: list[BridgeError]) -> Iterator[None]:
    """Keep the error of one channel; an event that is lost, or that another one keeps waiting, ends at once."""
    try:
        yield
    except (LeaseLostError, ContentionError, _NoUploadError):
        raise
    except BridgeError as error:
        failures.append(error)


def _was_current(version: RegisteredVersion, head: Manifest | None) -> bool:
    """Whether the release of a version was ever current: its tags or the channel's newest entry say so."""
    named = [] if head is None else [head.current.run_id, *(item.run_id for item in head.previous)]
    tagged = any(name.startswith(status_tags.CHANNEL_TAG) for name in version.tags)
    return tagged or version.tags.get(status_tags.RUN_ID_TAG) in named


def _tag_mirrored(mirrored: job.Mirrored, number: int, context: ModelContext) -> None:
    """Tag a version that was mirrored, with the verdict of its gate."""
    version = context.existing_version(number)
    if mirrored.verdict is not None:
        context.tag(version, status_tags.mirrored_verdict(version.tags, str(mirrored.verdict)))
    context.tag(version, status_tags.mirrored(version.tags, mirrored.release.meta))


def _activated(entry: Manifest, version: RegisteredVersion, context: ModelContext) -> Outcome:
    """Tag the version that is current now, and the one that was current before."""
    context.tag(version, status_tags.activated(context.tags(version), entry))
    before = entry.previous[0].model_version if entry.previous else None
    if before != version.version and (former := context.version(before)) is not None:
        context.tag(former, status_tags.superseded(context.tags(former), entry))
    if (failing := status_tags.passed_with_warning(version.tags)) is not None:
        facts = {"model": version.model, "version": version.version, "verdict": failing}
        logger.warning("a version that fails its gate became current", extra=facts)
    outcome = f"{entry.channel} is {entry.current.run_id} (entry {entry.sequence})"
    return Outcome(state=EventState.DONE, outcome=outcome)


def _note_unmapped(event: Event, facts: Facts, context: ModelContext) -> None:
    """Note on a version that its new stage or alias moves no channel, and remove the note when that is over."""
    if event.kind not in {EventKind.STAGE_CHANGED, *OF_ALIASES}:
        return
    target = promotion_target(event)
    unmapped = target is not None and not any(channel.triggers.assigns(event) for channel in facts.channels)
    over = f"alias `{event.alias}`" if event.alias is not None else f"stage {event.previous_stage}"
    for number in (event.version, event.previous_version if unmapped else None):
        if (version := context.version(number)) is not None:
            context.tag(version, status_tags.not_unmapped(version.tags, over))
        if unmapped and version is not None and number == event.version and context.still_holds(event):
            context.tag(version, status_tags.moves_no_channel(str(target)))


def _stay(action: Stay, event: Event, context: ModelContext) -> Outcome:
    """Keep the channel where it is, and note it on the version that it points to."""
    if action.is_current:
        version = context.existing_version(event.version)
        context.tag(version, status_tags.left_without_successor(action.lost, action.channel))
    facts = {"model": event.model, "channel": action.channel, "left": action.lost}
    logger.warning("a channel has no successor and stays where it is", extra=facts)
    outcome = f"{action.channel} stays where it is: nothing else holds {action.lost}"
    return Outcome(state=EventState.DONE, outcome=outcome)
