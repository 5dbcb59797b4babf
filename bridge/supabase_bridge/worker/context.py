"""What one event reads of MLflow and the bucket, each thing once, and the tags that it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial

from supabase_bridge.core.consumers import Consumers
from supabase_bridge.core.criteria import Gate, with_tags
from supabase_bridge.core.documents import Cause
from supabase_bridge.core.errors import InvalidNameError
from supabase_bridge.core.events import Event, EventKind, EventState, Triggers, effective_assignment
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.core.tags import MODEL_KEY_TAG, RUN_ID_TAG, STATUS_TAG, Status, Tags, inherited
from supabase_bridge.mirror.sources import Sources, VersionSource
from supabase_bridge.outbox.artifact_roots import load_artifact_roots
from supabase_bridge.outbox.freezes import freeze_at
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.registry.client import RegisteredModel, RegisteredVersion, Registry
from supabase_bridge.registry.errors import ModelNotFoundError, NoReleasePlaceError, VersionNotFoundError
from supabase_bridge.registry.naming import claimed_key, model_key
from supabase_bridge.releases.archive import Bucket
from supabase_bridge.releases.channel import Channel, KnownHeads
from supabase_bridge.releases.heads import in_parallel
from supabase_bridge.releases.verify import VerificationAhead, VerifiedReleases
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy
from supabase_bridge.worker.decide import ChannelFacts, Facts, concerned, may_be_late, needs_head


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the worker reads from and writes to.

    Attributes:
        open_store: From a bucket's name to its object store; the same store for the same name.
        on_switch: Called with the bucket and the channel after each switch; none of them raises, or waits for a server.
    """

    settings: Settings
    registry: Registry
    outbox: Outbox
    open_store: Callable[[str], ObjectStore]
    signing: SigningPolicy = NO_SIGNING
    on_switch: tuple[Callable[[str, ChannelPaths], None], ...] = ()

    @cached_property
    def sources(self) -> Sources:
        """Finds the files of model versions; an MLflow server may record its artifact roots at any time."""
        recorded = partial(load_artifact_roots, self.outbox.engine)
        return Sources(self.registry, self.settings, open_store=self.open_store, recorded=recorded)

    @cached_property
    def heads(self) -> KnownHeads:
        """The heads of logs that this process has read or written."""
        return KnownHeads()

    @cached_property
    def verified(self) -> VerifiedReleases:
        """The releases that this process has verified."""
        return VerifiedReleases(self.signing)

    def archives(self) -> list[Bucket]:
        """Open the buckets from which removed releases are restored."""
        buckets = sorted(self.settings.retention.archive_buckets)
        return [Bucket(name=name, store=self.open_store(name)) for name in buckets]

    @cached_property
    def registry_id(self) -> str:
        """The identity of the registry, which log entries name."""
        return self.outbox.registry_id()


class ModelContext:
    """A registered model, its versions and its channels, as one event finds them, and the tags that it changes.

    Args:
        still_held: Raises LeaseLostError where another worker has taken over the event.

    Raises (every method):
        RegistryUnavailableError: MLflow did not answer.
        InvalidModelKeyError, NoReleasePlaceError, ModelNotFoundError: where the model's key is needed; see `model_key`.
    """

    def __init__(
        self, services: Services, model: str, workspace: str, still_held: Callable[[], None] = lambda: None
    ) -> None:
        self._services = services
        self._name = model
        self._workspace = workspace
        self._versions: dict[int, RegisteredVersion | None] = {}
        self._tags: dict[int, dict[str, str | None]] = {}
        self.still_held = still_held
        self.sources: dict[int, VersionSource] = {}
        self.releases = VerificationAhead(services.verified)

    @cached_property
    def store(self) -> ObjectStore:
        """The object store of the workspace's releases.

        Raises:
            NoReleasePlaceError: the settings name no bucket for the workspace.
        """
        bucket = self._services.settings.bucket_of(self._workspace)
        if bucket is None:
            raise NoReleasePlaceError.no_bucket(self._workspace)
        return self._services.open_store(bucket)

    def switched(self, channel: Channel) -> None:
        """Call what wants to know that a channel has switched."""
        bucket = self._services.settings.bucket_of(self._workspace)
        if bucket is not None:
            for call in self._services.on_switch:
                call(bucket, channel.paths)

    @cached_property
    def key(self) -> str:
        """The model's folder in the bucket."""
        return model_key(self._services.registry, self.store, self._model)

    @property
    def gate(self) -> Gate:
        """The model's release criteria."""
        tags = self._model.tags
        return with_tags(self._services.settings.gate_of(self._name, tags.get(MODEL_KEY_TAG)), tags)

    @property
    def trial_warns(self) -> bool:
        """True if a failed trial of a version's ONNX model is only a note."""
        return self._services.settings.trial_warns(self._name, self._model.tags)

    @property
    def consumers(self) -> Consumers:
        """The consumers that must be able to load the model."""
        return self._services.settings.consumers_of(self._name, self._model.tags.get(MODEL_KEY_TAG))

    def channel(self, name: str) -> Channel:
        """A channel of the model."""
        return self._channel(self.key, name)

    def _channel(self, key: str, name: str) -> Channel:
        paths = ChannelPaths(model_key=key, channel=name)
        return Channel(self.store, paths, self._services.signing, at_once=in_parallel)

    def version(self, number: int | None) -> RegisteredVersion | None:
        """A version of the model; None where there is none, or it was deleted."""
        if number is not None and number not in self._versions:
            with suppress(ModelNotFoundError, VersionNotFoundError):
                newest = self._model.newest.get(number)
                self._versions[number] = self.read_again(number) if newest is None else self._with_own_tags(newest)
        return None if number is None else self._versions.get(number)

    def existing_version(self, number: int | None) -> RegisteredVersion:
        """A version of the model.

        Raises:
            VersionNotFoundError: there is none, or it was deleted.
        """
        if (found := self.version(number)) is None:
            raise VersionNotFoundError(self._name, number or 0)
        return found

    def read_again(self, number: int) -> RegisteredVersion | None:
        """Read a version as it is now: an upload may have taken hours."""
        self._versions[number] = None
        with suppress(VersionNotFoundError):
            found = self._services.registry.version(self._name, number, self._workspace)
            self._versions[number] = self._with_own_tags(found)
        return self._versions[number]

    def tags(self, version: RegisteredVersion) -> dict[str, str]:
        """The tags of a version, with the changes that `tag` collected."""
        tags = {**version.tags, **self._tags.get(version.version, {})}
        return {name: value for name, value in tags.items() if value is not None}

    def tag(self, version: RegisteredVersion, tags: Tags) -> None:
        """Collect changes of a version's tags for `write_tags`."""
        self._tags.setdefault(version.version, {}).update(tags)

    def write_tags(self, number: int | None) -> None:
        """Write the collected tags, once for each version, in the order in which the versions were tagged.

        Args:
            number: The version that the event is about. Any other one may be deleted meanwhile.

        Raises:
            LeaseLostError: another worker has taken over the event.
            VersionNotFoundError: the event's version was deleted meanwhile.
        """
        for tagged, tags in self._tags.items():
            self.still_held()
            with nullcontext() if tagged == number else suppress(VersionNotFoundError):
                self._services.registry.set_tags(self.existing_version(tagged), tags)

    def still_holds(self, assignment: Event) -> bool:
        """Whether the version of an assignment still has its stage or alias."""
        version = self.version(assignment.version)
        if version is None:
            return False
        if assignment.kind is EventKind.ALIAS_SET:
            return assignment.alias in version.aliases
        return assignment.stage == version.stage

    def facts(self, event: Event, now: datetime) -> Facts:
        """The facts that `decide` needs about an event of this model.

        Raises:
            SourceRefusedError: see `Sources.locate`.
            UntrustedLogError, InvalidDocumentError: see `Channel.read_head`.
            ReleaseConflictError: see `Channel.check_owner`.
        """
        services = self._services
        cause = Cause(registry_id=services.registry_id, event_id=event.id, by=event.made_by)
        if event.version is None or event.kind is not EventKind.VERSION_CREATED:
            triggers = concerned(event, services.settings.triggers)
            channels = [self._channel_facts(event, item, now) for item in triggers]
            return Facts(now=now, cause=cause, channels=tuple(self._with_heads(channels)))
        _ = self.store  # A workspace without a bucket is refused before its files are looked up.
        if (version := self.version(event.version)) is None:
            return Facts(now=now, cause=cause, version_exists=False)
        source = self.sources[version.version] = services.sources.locate(version)
        running = version.run_id if source.running else None
        promoted = any(
            version.stage in item.stages or version.aliases.intersection(item.aliases)
            for item in services.settings.triggers
        )
        waits = running is None and version.run_id is not None and not promoted
        return Facts(
            now=now,
            cause=cause,
            running=running,
            run_grace=services.settings.run_grace,
            ended_at=source.facts.ended_at,
            missing_metrics=self.gate.missing(source.facts.metrics) if waits else (),
        )

    def cause_in(self, channel: str, event: Event, cause: Cause) -> Cause:
        """Return the cause of an activation with the freeze that was in force when the event was made."""
        engine = self._services.outbox.engine
        freeze = freeze_at(engine, self._workspace, self._name, channel, event.created_at)
        return cause if freeze is None else cause.model_copy(update={"during_freeze": str(freeze)})

    def _with_own_tags(self, version: RegisteredVersion) -> RegisteredVersion:
        """Remove the tags that MLflow copied from another version, where no plugin of ours has kept them out."""
        if not (changes := inherited(version.source, version.tags)):
            return version
        self._services.registry.set_tags(version, changes)
        tags = {**version.tags, **changes}
        return replace(version, tags={name: value for name, value in tags.items() if value is not None})

    @cached_property
    def _model(self) -> RegisteredModel:
        return self._services.registry.model(self._name, self._workspace)

    def _channel_facts(self, event: Event, triggers: Triggers, now: datetime) -> ChannelFacts:
        version = self.version(event.version)
        is_active = version is not None and version.tags.get(STATUS_TAG) == Status.ACTIVE.value
        assignments = self._services.outbox.assignments(self._workspace, self._name, triggers)
        effective = effective_assignment(assignments, self.still_holds)
        late = may_be_late(event, assignments, now)
        facts = ChannelFacts(triggers=triggers, effective=effective, version_is_active=is_active, late=late)
        if not needs_head(event, facts):
            return facts
        return replace(facts, needs_head=True)

    def _with_heads(self, channels: Sequence[ChannelFacts]) -> Iterator[ChannelFacts]:
        """Read the heads that the decision needs, and begin to verify the releases that may become current."""
        needed = [facts.triggers.channel for facts in channels if facts.needs_head]
        if not needed:
            yield from channels
            return
        # Whether the model may have this folder is checked while the logs are read.
        logs = {name: self._channel(claimed_key(self._model), name) for name in needed}
        with ThreadPoolExecutor(len(needed), thread_name_prefix="reading") as pool:
            reads = {name: pool.submit(self._services.heads.read, log) for name, log in logs.items()}
            _ = self.key
            self.releases.begin(self.store, self._candidates(channels))
            heads = {name: read.result().head for name, read in reads.items()}
        for facts in channels:
            if facts.needs_head:
                head = heads[facts.triggers.channel]
                logs[facts.triggers.channel].check_owner(head, self._services.registry_id)
                yield replace(facts, head=head)
            else:
                yield facts

    def _candidates(self, channels: Sequence[ChannelFacts]) -> Iterator[ReleasePaths]:
        """The releases of the versions whose assignment no worker has carried out yet."""
        pending = [facts.effective for facts in channels if facts.effective is not None and facts.needs_head]
        numbers = {assignment.version for assignment in pending if assignment.state is EventState.PENDING}
        for version in map(self.version, numbers):
            if version is not None and (run_id := version.tags.get(RUN_ID_TAG)) is not None:
                with suppress(InvalidNameError):
                    yield ReleasePaths(model_key=self.key, run_id=RunId.parse(run_id))
