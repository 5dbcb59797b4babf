"""The command history: what was current when, who made it so, and whether the log was rewritten."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.output import home_option, json_option, load_settings, open_bucket, parse_time, print_json
from supabase_bridge.core.text import for_terminal, format_time, shown_json

if TYPE_CHECKING:
    from supabase_bridge.app.history import ChannelHistory, HistoryRow, LogProof
    from supabase_bridge.core.documents import Manifest, ReleasePointer
    from supabase_bridge.core.layout import ChannelPaths

_METRICS_SHOWN = 6
_COLUMNS = (
    *("model", "channel", "sequence", "at", "kind", "by", "from_run_id", "from_version", "run_id", "version"),
    *("event_id", "during_freeze", "steps_skipped", "reason", "metrics", "until", "problem"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@click.command("history")
@click.argument("subject", metavar="MODEL[@CHANNEL]")
@click.option("--at", help="Only what was current at this time (ISO 8601, UTC if it has no zone).")
@click.option("--verify", is_flag=True, help="Read every entry from the bucket, and verify digests and signatures.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the newest entries, this many.  [default: all]")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV on stdout, with a line of headings.")
@home_option
def history_command(
    subject: str, at: str | None, verify: bool, limit: int | None, as_json: bool, as_csv: bool, home: Path | None
) -> None:
    """Show every switch of a channel of MODEL, or of all its channels: when, by whom, why, from which release to which.

    MODEL is the registered model's name, or its folder in the bucket. The newest entry comes first. Freezes of the
    model are among the entries, as far as the registry's database can be read. Entries that were read once are cached.

    --verify proves that each entry is the one that the entry after it names, and with trusted keys that one of them
    signed it. A missing and a rewritten entry is named. Without keys a rewritten newest entry cannot be noticed.

    \b
    Exit codes:  0 done   1 nothing was current, or an entry is missing or was rewritten   2 wrong usage or settings

    \b
    Example:  supabase-bridge history two_tower@latest
              supabase-bridge history two_tower --at 2025-11-01T12:00Z
              supabase-bridge history two_tower --verify
    """
    if (at is not None) + verify + as_csv > 1:
        raise click.UsageError("use one of --at, --verify and --csv")
    time = None if at is None else parse_time("--at", at)
    settings = load_settings(home=home)
    from supabase_bridge.app.history import current_at, history, verify_logs
    from supabase_bridge.trust.load import load_signing_policy

    signing = load_signing_policy(settings)
    with open_bucket(settings) as store:
        if time is not None:
            _print_current(list(current_at(settings, store, subject, time, signing=signing)), time, as_json=as_json)
        elif verify:
            _print_proofs(list(verify_logs(settings, store, subject, signing=signing)), as_json=as_json)
        else:
            found = list(history(settings, store, subject, signing=signing))
            _print_history(found, limit, as_json=as_json, as_csv=as_csv)


def _print_history(found: Sequence[ChannelHistory], limit: int | None, *, as_json: bool, as_csv: bool) -> None:
    shown = [(one, row) for one in found for row in one.rows[:limit]]
    if as_json:
        print_json([_plain(one, row) for one, row in shown])
    elif as_csv:
        text = io.StringIO()
        table = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows({name: _cell(value) for name, value in _plain(one, row).items()} for one, row in shown)
        click.echo(text.getvalue(), nl=False)
    else:
        for one in found:
            click.echo(for_terminal(f"{one.model}@{one.paths.channel}"))
            click.echo("\n".join(for_terminal(line) for row in one.rows[:limit] for line in _lines(row)))
    if any(row.problem for _, row in shown):
        click.echo("an entry is missing or was rewritten: run history --verify", err=True)


def _plain(one: ChannelHistory, row: HistoryRow) -> dict[str, Any]:
    cause = row.cause
    return {
        "model": one.model,
        "channel": one.paths.channel,
        "sequence": row.sequence,
        "at": None if row.at is None else format_time(row.at),
        "kind": row.kind,
        "by": row.by,
        "from_run_id": None if row.before is None else row.before.run_id,
        "from_version": None if row.before is None else row.before.model_version,
        "run_id": None if row.current is None else row.current.run_id,
        "version": None if row.current is None else row.current.model_version,
        "event_id": None if cause is None else cause.event_id,
        "during_freeze": None if cause is None else cause.during_freeze,
        "steps_skipped": None if cause is None else cause.steps_skipped,
        "reason": row.reason,
        "metrics": {one.name: {"before": one.before, "after": one.after} for one in row.metrics.changes},
        "metrics_problem": row.metrics.problem,
        "until": None if row.until is None else format_time(row.until),
        "problem": row.problem,
    }


def _cell(value: Any) -> Any:
    """A value as a cell: a spreadsheet must not take a foreign text for a formula."""
    if isinstance(value, dict | list):
        return shown_json(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _lines(row: HistoryRow) -> Iterator[str]:
    """The lines of one row: what, then the details below it."""
    number = "" if row.sequence is None else str(row.sequence)
    at = "" if row.at is None else format_time(row.at.replace(microsecond=0))
    by = "" if row.by is None else f" by {row.by}"
    if row.current is None:
        until = "" if row.until is None else f" until {format_time(row.until)}"
        about = f": {row.reason}" if row.reason else ""
        yield f"{number:>6}  {at:<20}  {row.kind}{until}{by}{about}"
    else:
        event = "" if row.cause is None or row.cause.event_id is None else f" (event {row.cause.event_id})"
        yield f"{number:>6}  {at:<20}  {_named(row.before)} -> {_named(row.current)}  {row.kind}{by}{event}"
        yield from (f"{'':8}{line}" for line in _details(row))
    if row.problem is not None:
        yield f"{'':8}PROBLEM: {row.problem}"


def _details(row: HistoryRow) -> Iterator[str]:
    if row.cause is not None and row.cause.during_freeze is not None:
        yield f"during a freeze: {row.cause.during_freeze}"
    if row.cause is not None and row.cause.steps_skipped:
        yield f"steps skipped: {', '.join(row.cause.steps_skipped)}"
    if row.reason:
        yield row.reason
    from supabase_bridge.core.comparison_text import metric_line

    moved = [change for change in row.metrics.changes if change.before != change.after]
    comparable = row.metrics.problem is None
    if moved and row.before is not None and row.before.run_id != (row.current and row.current.run_id):
        shown = "; ".join(metric_line(change, comparable=comparable) for change in moved[:_METRICS_SHOWN])
        more = f"; and {len(moved) - _METRICS_SHOWN} more" if len(moved) > _METRICS_SHOWN else ""
        problem = "" if comparable else f" (not comparable: {row.metrics.problem})"
        yield f"{shown}{more}{problem}"


def _named(release: ReleasePointer | None) -> str:
    if release is None:
        return "nothing"
    return release.run_id if release.model_version is None else f"{release.run_id} (v{release.model_version})"


def _print_current(found: Sequence[tuple[ChannelPaths, Manifest | None]], time: datetime, *, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "channel": paths.channel,
                    "at": format_time(time),
                    "sequence": None if entry is None else entry.sequence,
                    "run_id": None if entry is None else entry.current.run_id,
                    "version": None if entry is None else entry.current.model_version,
                    "since": None if entry is None else format_time(entry.current.published_at),
                    "by": None if entry is None or entry.cause is None else entry.cause.by,
                }
                for paths, entry in found
            ]
        )
    else:
        for paths, entry in found:
            subject = f"{paths.model_key}@{paths.channel}"
            if entry is None:
                click.echo(for_terminal(f"{subject}: nothing was current at {format_time(time)}"))
                continue
            by = "" if entry.cause is None or entry.cause.by is None else f" by {entry.cause.by}"
            since = format_time(entry.current.published_at)
            click.echo(for_terminal(f"{subject}: {_named(entry.current)} since {since}{by} (entry {entry.sequence})"))
    if all(entry is None for _, entry in found):
        raise SystemExit(1)


def _print_proofs(found: Sequence[LogProof], *, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "channel": proof.paths.channel,
                    "entries": proof.length,
                    "problems": [{"sequence": sequence, "problem": problem} for sequence, problem in proof.problems],
                    "unproven": proof.unproven,
                    "signed": proof.signed,
                }
                for proof in found
            ]
        )
    else:
        for proof in found:
            click.echo("\n".join(map(for_terminal, _proof_lines(proof))))
    if any(proof.problems for proof in found):
        raise SystemExit(1)


def _proof_lines(proof: LogProof) -> Iterator[str]:
    subject = f"{proof.paths.model_key}@{proof.paths.channel}"
    for sequence, problem in proof.problems:
        yield f"{subject} entry {sequence}: {problem}"
    if not proof.problems:
        yield f"{subject}: {proof.length} entries, none is missing, and none that a later one names was rewritten"
    if proof.unproven:
        yield f"{subject}: no later entry names the digest of {proof.unproven} entries, which an earlier bridge wrote"
    if proof.signed is None:
        yield f"{subject}: no key is trusted, so a rewritten newest entry cannot be noticed; see docs/signatures.md"
    else:
        yield f"{subject}: a trusted key signed {proof.signed} of {proof.length} entries"
