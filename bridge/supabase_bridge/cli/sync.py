"""`supabase-bridge sync`: find what no event said, and mirror an existing registry."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.common import home_option, json_option, print_json, say_store
from supabase_bridge.config import Settings

if TYPE_CHECKING:
    from supabase_bridge.backfill import Worked
    from supabase_bridge.reconcile_findings import Finding
    from supabase_bridge.runtime import Runtime
    from supabase_bridge.worker import Handled


@click.command("sync")
@click.argument("model", required=False)
@click.option("--dry-run", is_flag=True, help="Change nothing; print what would be done.")
@click.option("--all", "everything", is_flag=True, help="Try again what failed, and work until all is mirrored.")
@click.option("--deep", is_flag=True, help="Compare every file of every release with its record.")
@click.option("--sweep", is_flag=True, help="Delete old half-written releases that belong to no version.")
@json_option
@home_option
def command(
    model: str | None, dry_run: bool, everything: bool, deep: bool, sweep: bool, as_json: bool, home: Path | None
) -> None:
    """Find, for the registered MODEL or for all, what no event said, and bring Supabase in step.

    That is: changes made by SQL or by a server without the plugin, releases and manifests that were deleted or edited
    by hand, and what broken uploads left behind. A pointer that was moved on purpose stays.

    What is missing is recorded for the worker. With --all this command does the work itself, beside any other worker:
    so an existing registry is mirrored. Stop it and run it again at will: what is complete is not uploaded again. MODEL
    says where to look, and what to try again; the work that --all does is whatever is due, of other models too.

    A folder of a run without model_meta.json that no version calls its own is reported. With --sweep it is deleted,
    once it is older than temporary_keys_age, where only a mirror's files are in it, no log names it, and no change is
    on its way.

    \b
    Exit codes:  0 in step   1 something failed, or waits for another attempt   2 wrong use or settings

    \b
    Example:  supabase-bridge sync --dry-run
              supabase-bridge sync --all
    """
    settings = Settings.load(home=home)
    say_store(settings)
    # MLflow takes seconds to import.
    from supabase_bridge.backfill import take_up_failed
    from supabase_bridge.reconcile import Depth
    from supabase_bridge.runtime import existing_stores, runtime

    with runtime(settings) as made, existing_stores(settings) as untouched:
        reconciler = made.reconciler(untouched if dry_run else made.stores)
        if everything and not dry_run:
            take_up_failed(made, model)
        found: list[Finding] = []
        depth = Depth.THOROUGH if deep else Depth.LISTED
        now = made.outbox.now()
        for finding in reconciler.run(now=now, depth=depth, model=model, dry_run=dry_run, sweep=sweep):
            found.append(finding)
            if not as_json:
                click.echo(_line(finding, dry_run=dry_run))
        worked = _work(made, model) if everything and not dry_run else None
    _conclude(found, worked, dry_run=dry_run, as_json=as_json)


def _work(made: Runtime, model: str | None) -> Worked:
    """Do the work, with a bar for a person at a terminal."""
    from supabase_bridge.backfill import work_off
    from supabase_bridge.outbox.events import EventState

    if not sys.stderr.isatty():
        return work_off(made, model, on_handled=lambda _: None)
    waiting = sum(1 for _ in made.outbox.events(states=(EventState.PENDING,)))
    with click.progressbar(length=waiting, label="mirroring", file=sys.stderr, width=30, show_pos=True) as bar:

        def advance(handled: Handled) -> None:
            if handled.state is not EventState.PENDING:
                bar.update(1)

        return work_off(made, model, on_handled=advance)


def _conclude(found: list[Finding], worked: Worked | None, *, dry_run: bool, as_json: bool) -> None:
    left = () if worked is None else worked.left
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "found": [_plain(finding) for finding in found],
                "carried_out": None if worked is None else worked.done,
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
        about = item.event.model if item.event.version is None else f"{item.event.model} v{item.event.version}"
        click.echo(f"#{item.event.id} {about} [{item.event.state.value}]: {item.reason}", err=True)
    counts = Counter(finding.remedy.value for finding in found)
    words = ", ".join(f"{count} {word}" for word, count in sorted(counts.items())) or "everything is in step"
    would = " (nothing was changed)" if dry_run else ""
    done = "" if worked is None else f"; {worked.done} changes carried out, {len(left)} left"
    click.echo(f"{words}{would}{done}", err=True)
    raise SystemExit(1 if left else 0)


def _line(finding: Finding, *, dry_run: bool) -> str:
    remedy = f"would be {finding.remedy.value}" if dry_run else finding.remedy.value
    return f"{finding.kind.value} {finding.subject}: {finding.detail} [{remedy}]"


def _plain(finding: Finding) -> dict[str, Any]:
    return {**asdict(finding), "kind": finding.kind.value, "remedy": finding.remedy.value}
