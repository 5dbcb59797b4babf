"""Promotions from many clients at once while storage fails and workers are killed; afterwards nothing may be missing.

Every model has two channels, one moved by a stage and one by an alias, and a version that no worker can read. An
operator rolls channels back meanwhile.

`python -m tests.crash.soak` is the long form; it needs PostgreSQL, takes minutes, and prints its figures.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.events import DEFAULT_WORKSPACE, Event, EventKind, EventState, Triggers, effective_assignment
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.outbox.queue import Outbox, open_outbox
from supabase_bridge.settings.model import FILE_NAME, Settings
from tests.crash.driver import UNMOUNTED
from tests.crash.soak_parts import ALIAS, BUCKET, Clients, Rollbacks, Workers, faults
from tests.crash.soak_reader import Reader
from tests.support.databases import running_postgresql
from tests.support.processes import mlflow_command, serving, surroundings
from tests.support.scene import registry_client, supabase_environment
from tests.support.served import until
from tests.support.simulators.storage import StorageSimulator

LATEST = Triggers(channel="latest", stages=("Production",), aliases=())
CHAMPION = Triggers(channel=ALIAS, stages=(), aliases=(ALIAS,))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is asked of everybody.

    Attributes:
        versions: Of each model.
        clients: How many promote at the same time.
        pause: How long a client waits after a promotion at most, in seconds.
        kill_every: How long a worker lives before one of them is killed, in seconds.
        kills: How many are killed at most: where a worker starts more slowly than that, none would do anything.
        faulty: Which part of the storage requests goes wrong.
        limit_seconds: Within how long everything must be done once the last promotion was answered.
        longest_seconds: How long any promotion may take from the change in the registry to its event's end.
    """

    servers: int = 2
    workers: int = 3
    models: int = 10
    versions: int = 4
    promotions: int = 500
    clients: int = 8
    pause: float = 4.0
    kill_every: float = 5.0
    kills: int = 25
    faulty: float = 0.05
    limit_seconds: float = 400.0
    longest_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a soak came to; latencies are from the change in the registry to the event's end, in seconds."""

    promotions: int
    rollbacks: int
    events: int
    switches: int
    superseded: int
    killed: int
    requests: int
    faults: dict[str, int]
    manifests_read: int
    manifests_checked: int
    steps_back: int
    latency_median: float
    latency_p99: float
    latency_longest: float
    drained_after: float
    seconds: float


def soak(plan: Plan, directory: Path, database_url: str, simulator: StorageSimulator) -> Figures:
    """Let everybody work, and check what is left.

    Raises:
        AssertionError: a promise was broken; the message says which.
    """
    environment = surroundings(directory, SUPABASE_BRIDGE_DATABASE_URL=database_url, **supabase_environment(simulator))
    settings = _settings(directory / "home", environment)
    started = time.monotonic()
    with ExitStack() as stack:
        urls = [_server(stack, settings, directory, environment) for _ in range(plan.servers)]
        outbox = stack.enter_context(open_outbox(settings))
        clients = Clients(urls, models=plan.models, versions=plan.versions)
        clients.register()
        for fault in faults(plan.faulty):
            simulator.inject(fault)
        for model in clients.models:
            registry_client(settings).create_model_version(model, str(directory / UNMOUNTED / "model"))
        workers = stack.enter_context(Workers(plan.workers, settings.home, environment, directory))
        until(lambda: _mirrored(outbox, plan), "every version to be mirrored", limit_seconds=plan.limit_seconds)
        reader = stack.enter_context(Reader(simulator, clients.models))
        stop_killing = stack.enter_context(workers.killed_every(plan.kill_every, plan.kills))
        rollbacks = stack.enter_context(Rollbacks(clients.models, settings.home, environment, directory))
        clients.promote(plan.promotions, at_once=plan.clients, pause=plan.pause)
        rollbacks.stop()
        _replace_blocked(clients)
        answered = time.monotonic()
        until(
            lambda: not _pending(outbox, clients.blocked),
            "every event to be done with",
            limit_seconds=plan.limit_seconds,
        )
        drained_after = time.monotonic() - answered
        stop_killing.set()
        workers.stop()
        events = list(outbox.events())
        switches = 0
        for model in clients.models:
            stages, aliases = clients.stages(model), clients.aliases(model)
            switches += _check_channel(
                simulator, outbox, model, LATEST, {number for number in stages if stages[number] == "Production"}
            )
            switches += _check_channel(
                simulator, outbox, model, CHAMPION, {number for number in aliases if ALIAS in aliases[number]}
            )
    reader.check()
    ended = {EventState.DONE, EventState.SUPERSEDED}
    assert [event for event in events if event.state not in ended and not _of_blocked(event, clients.blocked)] == []
    latencies = _latencies([event for event in events if event.version != clients.blocked])
    assert latencies["latency_longest"] <= plan.longest_seconds
    return Figures(
        promotions=clients.promoted,
        rollbacks=rollbacks.done,
        events=len(events),
        switches=switches,
        superseded=sum(event.state is EventState.SUPERSEDED for event in events),
        killed=workers.killed,
        requests=len(simulator.calls()),
        faults={str(fault.action): count for fault, count in simulator.struck()},
        manifests_read=reader.read,
        manifests_checked=reader.checked,
        steps_back=reader.steps_back,
        **latencies,
        drained_after=round(drained_after, 1),
        seconds=round(time.monotonic() - started, 1),
    )


def _latencies(events: Sequence[Event]) -> dict[str, float]:
    promotions = [event for event in events if event.kind is EventKind.STAGE_CHANGED and event.stage == "Production"]
    waits = [(event.finished_at - event.created_at).total_seconds() for event in promotions if event.finished_at]
    return {
        "latency_median": round(median(waits), 3),
        "latency_p99": round(quantiles(waits, n=100, method="inclusive")[98], 3),
        "latency_longest": round(max(waits), 3),
    }


def _settings(home: Path, environment: Mapping[str, str]) -> Settings:
    """What everybody works by: a killed worker's event is free again soon, and a failed one is due again soon."""
    home.mkdir()
    times = "lease = 4\nretry_cap = 3\npoll_interval = 0.2\nrequest_timeout = 5\n"
    sources = json.dumps([str(home.parent / UNMOUNTED)])
    (home / FILE_NAME).write_text(f'{times}allowed_sources = {sources}\n[channels.aliases]\n{ALIAS} = "{ALIAS}"\n')
    return Settings.load(home=home, environ=environment)


def _server(stack: ExitStack, settings: Settings, directory: Path, environment: dict[str, str]) -> str:
    cwd = Path(tempfile.mkdtemp(dir=directory, prefix="server-"))
    command = mlflow_command("server", "--host", "127.0.0.1", "--workers", "1")
    stores = [f"--backend-store-uri={settings.database_url}", f"--registry-store-uri={settings.registry_uri}"]
    artifacts = f"--artifacts-destination={settings.artifacts_destination}"
    return stack.enter_context(serving([*command, *stores, artifacts], cwd=cwd, env=environment))


def _of_blocked(event: Event, blocked: int) -> bool:
    """Return whether the event waits for ever: it makes the release of a version that no worker can read."""
    return event.version == blocked and event.kind is EventKind.VERSION_CREATED


def _pending(outbox: Outbox, blocked: int) -> bool:
    return any(not _of_blocked(event, blocked) for event in outbox.events(states=[EventState.PENDING]))


def _replace_blocked(clients: Clients) -> None:
    """Promote another version where a channel waits for the one that cannot be read, so that everything can end."""
    for model in clients.models:
        if clients.stages(model)[clients.blocked] == "Production":
            clients.promote_version(model, 1)
        if ALIAS in clients.aliases(model)[clients.blocked]:
            clients.set_alias(model, 1)


def _mirrored(outbox: Outbox, plan: Plan) -> bool:
    done = [event for event in outbox.events(states=[EventState.DONE]) if event.kind is EventKind.VERSION_CREATED]
    return len(done) == plan.models * plan.versions


def _check_channel(
    simulator: StorageSimulator, outbox: Outbox, model: str, triggers: Triggers, holders: Collection[int]
) -> int:
    """No switch lost, none doubled, and consumers see what the registry says; returns the number of switches.

    Args:
        holders: The versions that hold the channel's stage or alias.
    """
    paths = ChannelPaths(model_key=model, channel=triggers.channel)
    entries = [simulator.object_bytes(BUCKET, key) for key in simulator.object_keys(BUCKET, paths.history_prefix)]
    log = [Manifest.parse(entry) for entry in entries]
    assert [entry.sequence for entry in log] == list(range(1, len(log) + 1))
    causes = [entry.cause.event_id for entry in log if entry.cause is not None]
    assert causes == sorted(set(causes), key=lambda event: event or 0), f"{model}: {causes}"
    for before, after in pairwise(log):
        # The same release again: an entry that bars a worker which lost its lease.
        repeated = after.current.run_id == before.current.run_id and after.previous == before.previous
        assert repeated or after.previous[0].run_id == before.current.run_id, (
            f"{model}: entry {after.sequence} forgets the one before"
        )
    for entry, event_id in zip(log, causes, strict=True):
        # Superseded too: a worker was killed behind the entry, and a later promotion came before it was tried again.
        event = outbox.get(event_id or 0)
        assert event.model == model
        assert event.version == entry.current.model_version or triggers.unassigns(event)
    assignments = outbox.assignments(DEFAULT_WORKSPACE, model, triggers)
    winner = effective_assignment(assignments, lambda arrival: arrival.version in holders)
    if not entries:
        assert winner is None
        return 0
    assert simulator.object_bytes(BUCKET, paths.manifest) == entries[-1]
    assert winner is not None
    assert log[-1].current.model_version == winner.version, f"{model} lost the promotion of version {winner.version}"
    return len(log)


def main() -> None:
    """The long form."""
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as directory,
        StorageSimulator() as simulator,
        running_postgresql() as server,
    ):
        figures = soak(Plan(), Path(directory), server.create(), simulator)
    sys.stdout.write(json.dumps(asdict(figures), indent=2) + "\n")


if __name__ == "__main__":
    main()
