"""Commands that repair: sync and outbox."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from datetime import datetime
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.output import home_option, json_option, load_settings, print_json, print_store
from supabase_bridge.core.events import Event, EventState
from supabase_bridge.core.text import for_terminal, shown_json

if TYPE_CHECKING:
    from supabase_bridge.app.backfill import DrainResult
    from supabase_bridge.app.runtime import Runtime
    from supabase_bridge.outbox.queue import Outbox
    from supabase_bridge.reconcile.findings import Finding
    from supabase_bridge.worker.worker import EventResult


@click.command("sync")
@click.argument("model", required=False)
@click.option("--dry-run", is_flag=True, help="Change nothing; print what would be done.")
@click.option("--all", "everything", is_flag=True, help="Retry failed events, and work until everything is mirrored.")
@click.option("--deep", is_flag=True, help="Compare every byte of every release with its recorded SHA-256.")
@click.option("--sweep", is_flag=True, help="Delete old incomplete releases that belong to no version.")
@json_option
@home_option
def sync_command(
    model: str | None, dry_run: bool, everything: bool, deep: bool, sweep: bool, as_json: bool, home: Path | None
) -> None:
    """Find and repair differences between MLflow and Supabase, for the registered MODEL or for all.

    It finds changes made by SQL or by a server without the plugin, deleted or edited releases and manifests, and the
    remains of interrupted uploads. A channel that was changed with `activate` stays as it is.

    Missing work is recorded as events for the worker. With --all this command also processes the events, beside any
    other worker, so it mirrors an existing registry. It can be stopped and repeated: complete releases are not
    uploaded again. MODEL limits the search and the retries; --all processes every event that is due, of other models
    too.

    A run's folder without model_meta.json that no version refers to is reported. --sweep deletes it if it is older than
    temporary_keys_age, contains only files of a mirror, no log names it, and no event is waiting.

    \b
    Exit codes:  0 every difference is repaired, or recorded for the worker   1 a difference is left: a failed event, a
    damaged release, or anything else that is only reported   2 wrong usage or settings

    \b
    Example:  supabase-bridge sync --dry-run
              supabase-bridge sync --all
    """
    settings = load_settings(home=home)
    print_store(settings)
    # MLflow takes seconds to import.
    from supabase_bridge.app.backfill import retry_failed
    from supabase_bridge.app.runtime import Stores, open_runtime
    from supabase_bridge.reconcile.release_check import Scope

    with open_runtime(settings) as runtime, closing(Stores(settings, create=False)) as existing:
        reconciler = runtime.reconciler(existing if dry_run else None)
        if everything and not dry_run:
            retry_failed(runtime, model)
        findings: list[Finding] = []
        scope = Scope.DEEP if deep else Scope.FULL
        now = runtime.outbox.now()
        for finding in reconciler.run(now=now, scope=scope, model=model, dry_run=dry_run, sweep=sweep):
            findings.append(finding)
            if not as_json:
                click.echo(_finding_line(finding, dry_run=dry_run))
        if dry_run:
            for finding in _foreseen(runtime, findings, model):
                findings.append(finding)
                if not as_json:
                    click.echo(_finding_line(finding, dry_run=dry_run))
        drained = _drain(runtime, model) if everything and not dry_run else None
        left = [found for found in findings if _is_left(found, dry_run=dry_run)]
        if drained is not None and left:
            # The events may have repaired what the first pass could only report.
            now = runtime.outbox.now()
            again = reconciler.run(now=now, scope=scope, model=model, dry_run=True, sweep=sweep)
            left = [found for found in again if _is_left(found, dry_run=False)]
    _conclude(findings, drained, is_left=bool(left), dry_run=dry_run, as_json=as_json)


def _foreseen(runtime: Runtime, findings: list[Finding], model: str | None) -> Iterator[Finding]:
    """The failures of the events that a pass would record, and of those that wait or failed before."""
    from supabase_bridge.app.foreseen import foreseen_failures

    waiting = runtime.outbox.events(states=(EventState.PENDING, EventState.DEAD), model=model)
    events = [found.event for found in findings if found.event is not None]
    return foreseen_failures(runtime, [*events, *waiting])


def _drain(runtime: Runtime, model: str | None) -> DrainResult:
    """Process the outbox, with a progress bar on a terminal."""
    from supabase_bridge.app.backfill import drain_outbox

    if not sys.stderr.isatty():
        return drain_outbox(runtime, model, on_handled=lambda _: None)
    waiting = sum(1 for _ in runtime.outbox.events(states=(EventState.PENDING,)))
    with click.progressbar(length=waiting, label="mirroring", file=sys.stderr, width=30, show_pos=True) as bar:

        def advance(result: EventResult) -> None:
            if result.state is not EventState.PENDING:
                bar.update(1)

        return drain_outbox(runtime, model, on_handled=advance)


def _is_left(finding: Finding, *, dry_run: bool) -> bool:
    """Whether a pass leaves a difference as it is. A dry run creates no bucket, so a missing bucket does not count."""
    return finding.remedy.value == "reported" and not (dry_run and finding.kind.value == "unchecked")


def _conclude(
    findings: list[Finding], drained: DrainResult | None, *, is_left: bool, dry_run: bool, as_json: bool
) -> None:
    left = () if drained is None else drained.left
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "found": [_finding_object(finding) for finding in findings],
                "carried_out": None if drained is None else drained.done,
                "left": [
                    {
                        "event": item.event.id,
                        "model": item.event.model,
                        "version": item.event.version,
                        "state": item.event.state.value,
                        "reason": item.reason,
                    }
                    for item in left
                ],
            }
        )
    for item in left:
        subject = item.event.model if item.event.version is None else f"{item.event.model} v{item.event.version}"
        click.echo(f"#{item.event.id} {subject} [{item.event.state.value}]: {item.reason}", err=True)
    counts = Counter(finding.remedy.value for finding in findings)
    summary = ", ".join(f"{count} {remedy}" for remedy, count in sorted(counts.items())) or "no differences"
    if dry_run:
        summary += " (nothing was changed)"
    if drained is not None:
        summary += f"; {drained.done} events processed, {len(left)} left"
    click.echo(summary, err=True)
    raise SystemExit(1 if left or is_left else 0)


def _finding_line(finding: Finding, *, dry_run: bool) -> str:
    would = dry_run and finding.remedy.value != "reported"
    remedy = f"would be {finding.remedy.value}" if would else finding.remedy.value
    return f"{finding.kind.value} {finding.subject}: {finding.detail} [{remedy}]"


def _finding_object(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind.value,
        "subject": finding.subject,
        "detail": finding.detail,
        "remedy": finding.remedy.value,
    }


@click.group("outbox")
def outbox_command() -> None:
    """List, retry or discard registry events."""


@outbox_command.command("list")
@click.option(
    "--state",
    type=click.Choice([state.value for state in EventState]),
    multiple=True,
    help="Only events in this state; by default pending and dead.",
)
@click.option("--all", "everything", is_flag=True, help="Finished events too.")
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of events.")
@click.option("--after", type=click.IntRange(min=1), metavar="ID", help="Continue after this event, the last one seen.")
@click.option("--newest", is_flag=True, help="The newest first.")
@json_option
@home_option
def list_command(
    state: tuple[str, ...],
    everything: bool,
    limit: int | None,
    after: int | None,
    newest: bool,
    as_json: bool,
    home: Path | None,
) -> None:
    """List waiting and failed events with the reason, the oldest first.

    With --json each line is one event. --limit and --after list them page by page.

    \b
    Example:  supabase-bridge outbox list --state dead
    """
    states = [EventState(name) for name in state]
    if not states and not everything:
        states = [EventState.PENDING, EventState.DEAD]
    count = 0
    with _open_outbox(home) as outbox:
        for event in islice(outbox.events(states=states, after=after, newest_first=newest), limit):
            count += 1
            click.echo(_event_json(event) if as_json else _event_line(event))
    if not count and not as_json:
        unfiltered = not everything and not state and after is None
        click.echo("no waiting and no failed events" if unfiltered else "none", err=True)


@outbox_command.command("retry")
@click.argument("event_id", type=click.IntRange(min=1))
@home_option
def retry_command(event_id: int, home: Path | None) -> None:
    """Make a failed or waiting event due now.

    \b
    Example:  supabase-bridge outbox retry 12
    """
    with _open_outbox(home) as outbox:
        outbox.retry(event_id)
    click.echo(f"event {event_id} is due; a worker will process it")


@outbox_command.command("discard")
@click.argument("event_id", type=click.IntRange(min=1))
@home_option
def discard_command(event_id: int, home: Path | None) -> None:
    """Discard a failed or waiting event permanently. It is not processed.

    \b
    Example:  supabase-bridge outbox discard 12
    """
    with _open_outbox(home) as outbox:
        outbox.discard(event_id)
    click.echo(f"event {event_id} is discarded")


def _open_outbox(home: Path | None) -> AbstractContextManager[Outbox]:
    # SQLAlchemy takes a third of a second to import.
    from supabase_bridge.outbox.queue import open_outbox

    return open_outbox(load_settings(home=home))


def _event_line(event: Event) -> str:
    version = "" if event.version is None else f" v{event.version}"
    change = event.kind.value
    if event.stage is not None and event.previous_stage is not None:
        change = f"{event.previous_stage} -> {event.stage}"
    elif event.alias is not None:
        change += f" @{event.alias}"
    tried = f" after {event.attempts} attempts" if event.attempts > 1 else ""
    outcome = f": {event.outcome}" if event.outcome else ""
    subject = f"#{event.id} {event.created_at:%Y-%m-%d %H:%M:%S}Z {event.model}{version}"
    return for_terminal(f"{subject} {change} [{event.state.value}{tried}]{outcome}")


def _event_json(event: Event) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value

    return shown_json({name: plain(value) for name, value in asdict(event).items()})
