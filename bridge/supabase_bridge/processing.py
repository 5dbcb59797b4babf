"""What one event asks for: bring Supabase to what the registry says now, and say so on the versions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from supabase_bridge import status_tags
from supabase_bridge.activate import Switch, switch
from supabase_bridge.channel_log import ChannelLog
from supabase_bridge.channels import Triggers, channel_triggers, winning_arrival
from supabase_bridge.checks import Checks
from supabase_bridge.config import Settings
from supabase_bridge.documents import Cause, Manifest
from supabase_bridge.errors import VersionNotFoundError, WorkspaceNotMappedError
from supabase_bridge.gates import with_tags
from supabase_bridge.identity import MODEL_KEY_TAG, model_key
from supabase_bridge.layout import ChannelKeys
from supabase_bridge.mirror import Mirror, Mirrored
from supabase_bridge.object_store import ObjectStore, Progress
from supabase_bridge.outbox.events import Event, EventKind, EventState
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.registry import RegisteredVersion, Registry
from supabase_bridge.release_log import commits, pinned
from supabase_bridge.signing import UNSEALED, Seal
from supabase_bridge.source import Sources
from supabase_bridge.status_tags import Tags
from supabase_bridge.verified_releases import VerifiedReleases

logger = logging.getLogger(__name__)

_RUN_POLL = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """An event is done with, one way or the other."""

    state: EventState
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """An event is not due yet; nothing went wrong."""

    until: datetime
    reason: str


class Processor:
    """Carries out events. Every step may run twice: what is done already is found done.

    Args:
        open_store: From a bucket's name to its object store; the same store for the same name.
        announce: See `Mirror.run`.
        seal: See `Mirror` and `ChannelLog`.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        registry: Registry,
        outbox: Outbox,
        open_store: Callable[[str], ObjectStore],
        announce: Callable[[int], Progress] | None = None,
        seal: Seal = UNSEALED,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._outbox = outbox
        self._open_store = open_store
        self._announce = announce
        self._seal = seal
        self._verified = VerifiedReleases(seal)
        self._sources = Sources(registry, settings, open_store=open_store)
        self._registry_id: str | None = None

    def process(self, event: Event, now: datetime, *, still_held: Callable[[], None]) -> Finished | Waiting:
        """Do what an event asks for, if it still is wanted.

        Args:
            still_held: Called before each try to move a pointer, and before tags say what came of it; raises
                LeaseLostError where the event is another worker's by now.

        Raises:
            BridgeError: it could not be done; `retryable` says whether the same attempt may succeed later.
        """
        if event.version is None:
            return Finished(state=EventState.DONE, outcome="releases stay where they are")
        if event.kind is EventKind.VERSION_CREATED:
            return self._mirror_new(event, now, still_held)
        concerned = [item for item in channel_triggers(self._settings) if item.arrives(event) or item.leaves(event)]
        if not concerned:
            return Finished(state=EventState.DONE, outcome="no channel follows this change")
        outcomes = [self._switch(event, triggers, still_held) for triggers in concerned]
        # An arrival that is done says that its version was current: a gate lets such a version back.
        arrived = [outcome for triggers, outcome in zip(concerned, outcomes, strict=True) if triggers.arrives(event)]
        done = any(outcome.state is EventState.DONE for outcome in arrived or outcomes)
        state = EventState.DONE if done else EventState.SUPERSEDED
        return Finished(state=state, outcome="; ".join(outcome.outcome for outcome in outcomes))

    def report_failure(self, event: Event, reason: str, *, retrying: bool, rejected: bool = False) -> None:
        """Show on the version that something went wrong; a version that is gone shows nothing."""
        version = self._version(event)
        if version is not None:
            tags = status_tags.failed(version.tags, reason, retrying=retrying, rejected=rejected)
            self._registry.set_tags(version, tags)

    def mirror(self, version: RegisteredVersion) -> str:
        """Make the release of a version complete, tag it, and return its run_id."""
        mirrored = self._mirror(version).run(version, model_key=self._key(version), announce=self._announce)
        self._show_mirrored(version, mirrored)
        return str(mirrored.release.keys.run_id)

    def _mirror_new(self, event: Event, now: datetime, still_held: Callable[[], None]) -> Finished | Waiting:
        version = self._version(event)
        if version is None:
            return Finished(state=EventState.SUPERSEDED, outcome="the version is gone")
        mirror = self._mirror(version)
        source = self._sources.of(version)
        if source.running and now < event.created_at + self._settings.run_grace:
            return Waiting(until=now + _RUN_POLL, reason=f"run {version.run_id} has not ended yet")
        mirrored = mirror.run(version, model_key=self._key(version), source=source, announce=self._announce)
        still_held()
        # Why a promotion failed meanwhile stays to be read.
        if not self._outbox.has_failed_since(event):
            self._show_mirrored(version, mirrored)
        return Finished(state=EventState.DONE, outcome=f"mirrored as {mirrored.release.keys.run_id}")

    def _show_mirrored(self, version: RegisteredVersion, mirrored: Mirrored) -> None:
        said = mirrored.verdict

        def change(tags: dict[str, str]) -> Tags:
            return {**status_tags.mirrored(tags), **(status_tags.mirrored_verdict(tags, str(said)) if said else {})}

        self._tag(version, change)

    def _switch(self, event: Event, triggers: Triggers, still_held: Callable[[], None]) -> Finished:
        """Bring one channel to the version that should be current, if this event is the one to do it."""
        # One that a person retries has its attempts counted anew; what became of it before is still said.
        tried_before = event.attempts > 1 or event.outcome is not None
        if tried_before and (done := self._finish_committed(event, triggers, still_held)) is not None:
            return done
        winner = self._winner(event, triggers)
        if triggers.arrives(event):
            if winner is None or winner.id != event.id:
                return _superseded(event, triggers, winner)
            return self._activate(event, winner, triggers, still_held)
        if winner is None:
            return self._leave(event, triggers, still_held)
        if winner.state is EventState.PENDING:
            return _superseded(event, triggers, winner)
        return self._activate(event, winner, triggers, still_held)

    def _activate(self, event: Event, winner: Event, triggers: Triggers, still_held: Callable[[], None]) -> Finished:
        """Make the winner's release current, and let the versions concerned show it."""
        version = self._registry.version(winner.model, int(winner.version or 0), winner.workspace)
        key = self._key(version)
        log = self._log(key, version.workspace, triggers.channel)
        head = log.look().head
        promoted_at = event.created_at if triggers.arrives(event) else None
        if head is not None and pinned(head, promoted_at=promoted_at):
            return _stays(head)
        if winner.id != event.id and head is not None and head.current.model_version == winner.version:
            return Finished(state=EventState.DONE, outcome=f"{triggers.channel} is version {winner.version} already")
        mirrored = self._mirror(version).run(version, model_key=key, announce=self._announce)
        still_held()
        switched = switch(
            log,
            head,
            mirrored.release,
            cause=Cause(registry_id=self._identity(), event_id=event.id),
            published_at=(event.started_at or event.created_at).replace(microsecond=0),
            still_wanted=lambda newest: newest is head or _may_follow(newest, promoted_at, still_held),
        )
        if switched.entry.current.run_id != str(mirrored.release.keys.run_id):
            return _stays(switched.entry)
        still_held()
        return self._switched(switched, version, triggers)

    def _finish_committed(self, event: Event, triggers: Triggers, still_held: Callable[[], None]) -> Finished | None:
        """What an earlier attempt committed before it was cut off is published, still wanted or not: the log has it."""
        key = model_key(self._registry, self._store(event.workspace), event.model, event.workspace)
        log = self._log(key, event.workspace, triggers.channel)
        head = log.look().head
        if head is None or not commits(head, Cause(registry_id=self._identity(), event_id=event.id)):
            return None
        log.heal()
        version = self._registry.version(event.model, int(head.current.model_version or 0), event.workspace)
        still_held()
        return self._switched(Switch(entry=head, switched=True, head=head), version, triggers)

    def _switched(self, switched: Switch, version: RegisteredVersion, triggers: Triggers) -> Finished:
        """Let the versions concerned show a switch that was made."""
        self._show(switched, version)
        if (failing := status_tags.let_through(version.tags)) is not None:
            facts = {"model": version.model, "version": version.version, "verdict": failing}
            logger.warning("a version that fails its gate became current", extra=facts)
        done = f"{triggers.channel} is {switched.entry.current.run_id} (entry {switched.entry.sequence})"
        return Finished(state=EventState.DONE, outcome=done)

    def _show(self, switched: Switch, version: RegisteredVersion) -> None:
        """Tag the version that is current and the one that was."""
        entry = switched.entry
        self._tag(version, lambda _: status_tags.activated(entry))
        before = entry.previous[0] if entry.previous else None
        if before is None or before.model_version in {None, version.version}:
            return
        try:
            former = self._registry.version(version.model, int(before.model_version or 0), version.workspace)
            self._registry.set_tags(former, status_tags.superseded(former.tags, entry))
        except VersionNotFoundError:
            return

    def _leave(self, event: Event, triggers: Triggers, still_held: Callable[[], None]) -> Finished:
        """Nothing comes after a version that left: the pointer stays, and the version says so."""
        version = self._version(event)
        left = event.previous_stage or f"@{event.alias}"
        if version is not None and self._is_current(version, triggers.channel):
            still_held()
            self._registry.set_tags(version, status_tags.left_without_successor(left, triggers.channel))
        facts = {"model": event.model, "channel": triggers.channel, "left": left}
        logger.warning("a channel has no successor and stays where it is", extra=facts)
        outcome = f"{triggers.channel} stays where it is: nothing else holds {left}"
        return Finished(state=EventState.DONE, outcome=outcome)

    def _is_current(self, version: RegisteredVersion, channel: str) -> bool:
        """Whether a channel points to a version's release; its tags do not know of a pointer moved by hand."""
        if version.tags.get(status_tags.STATUS_TAG) != status_tags.Status.ACTIVE.value:
            return False
        head = self._log(self._key(version), version.workspace, channel).look().head
        return head is not None and head.current.model_version == version.version

    def _winner(self, event: Event, triggers: Triggers) -> Event | None:
        arrivals = self._outbox.arrivals(event.workspace, event.model, stages=triggers.stages, aliases=triggers.aliases)

        def still_holds(arrival: Event) -> bool:
            version = self._version(arrival)
            if version is None:
                return False
            if arrival.kind is EventKind.ALIAS_SET:
                return arrival.alias in version.aliases
            return arrival.stage == version.stage

        return winning_arrival(arrivals, still_holds)

    def _version(self, event: Event) -> RegisteredVersion | None:
        if event.version is None:
            return None
        try:
            return self._registry.version(event.model, event.version, event.workspace)
        except VersionNotFoundError:
            return None

    def _tag(self, version: RegisteredVersion, tags: Callable[[dict[str, str]], Tags]) -> None:
        """Write tags that depend on those the version has now."""
        now = self._registry.version(version.model, version.version, version.workspace)
        self._registry.set_tags(now, tags(dict(now.tags)))

    def _mirror(self, version: RegisteredVersion) -> Mirror:
        tags = self._registry.model_tags(version.model, version.workspace)
        return Mirror(
            self._registry,
            self._sources,
            self._store(version.workspace),
            baseline_channel=self._settings.main_channel,
            checks=Checks.of(self._settings),
            gate=with_tags(self._settings.gate_of(version.model, tags.get(MODEL_KEY_TAG)), tags),
            seal=self._seal,
            verified=self._verified,
        )

    def _key(self, version: RegisteredVersion) -> str:
        return model_key(self._registry, self._store(version.workspace), version.model, version.workspace)

    def _log(self, model_key: str, workspace: str, channel: str) -> ChannelLog:
        return ChannelLog(self._store(workspace), ChannelKeys(model_key=model_key, channel=channel), self._seal)

    def _store(self, workspace: str) -> ObjectStore:
        bucket = self._settings.bucket_of(workspace)
        if bucket is None:
            raise WorkspaceNotMappedError(workspace)
        return self._open_store(bucket)

    def _identity(self) -> str:
        if self._registry_id is None:
            self._registry_id = self._outbox.registry_id()
        return self._registry_id


def _superseded(event: Event, triggers: Triggers, winner: Event | None) -> Finished:
    if winner is not None and winner.id > event.id:
        reason = f"version {winner.version} came to {triggers.channel} after version {event.version}"
    else:
        reason = f"version {event.version} no longer holds what makes it {triggers.channel}"
    return Finished(state=EventState.SUPERSEDED, outcome=reason)


def _may_follow(head: Manifest | None, promoted_at: datetime | None, still_held: Callable[[], None]) -> bool:
    """Whether a promotion may still move the pointer on from `head`, which another writer has made meanwhile."""
    if pinned(head, promoted_at=promoted_at):
        return False
    still_held()
    return True


def _stays(head: Manifest) -> Finished:
    """A pointer that a person moved by hand stays: it was moved after this promotion, or nobody promoted since."""
    outcome = f"{head.channel} was moved to {head.current.run_id} by hand and stays there until somebody promotes"
    return Finished(state=EventState.SUPERSEDED, outcome=outcome)
