"""The command status: what is current, what waits, and what needs a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.output import home_option, json_option, load_settings, print_json, print_store
from supabase_bridge.core.text import for_terminal, format_time

if TYPE_CHECKING:
    from supabase_bridge.app.status import ModelReport, Overview, VersionReport

_MODELS_SHOWN = 10
_VERSIONS_SHOWN = 40
"""The largest registry of which each version is shown without --all, and the most versions of one model."""

_FREEZES_SHOWN = 2
"""Freezes that an overview lists: one screen has room for two."""

_WIDTH = 200
"""The longest line of an overview, in characters."""

_NEEDS_A_PERSON = {"failed", "rejected"}


@click.command("status")
@click.argument("model", required=False)
@click.option("--failing", is_flag=True, help="Only versions and channels with a problem; of each, all that is known.")
@click.option("--all", "everything", is_flag=True, help="Every version of every model, however many there are.")
@json_option
@home_option
def status_command(model: str | None, failing: bool, everything: bool, as_json: bool, home: Path | None) -> None:
    """Show the channels and versions of the registered MODEL, or of all, and the number of waiting and failed events.

    Versions that need a person come first, in red; versions that are retried follow in yellow. Colours are for
    terminals only, and NO_COLOR switches them off. A registry of more than 10 models or 40 versions is shown in
    numbers, after the first problems; --all, --failing and --json show all that is known.

    \b
    Example:  supabase-bridge status two_tower --json
    """
    settings = load_settings(home=home)
    print_store(settings)
    # SQLAlchemy takes a third of a second to import.
    from supabase_bridge.app.status import open_view

    with open_view(settings) as view:
        if model is None and not (failing or everything or as_json):
            overview = view.overview()
            if overview.models > _MODELS_SHOWN or overview.versions > _VERSIONS_SHOWN:
                for line in _overview(overview):
                    click.echo(line)
                return
        models = view.reports(model)
        announcements = () if as_json else view.announcements()
    if failing:
        models = [item for one in models if (item := _failing(one)) is not None]
    if as_json:
        print_json([_plain(item) for item in models])
        return
    for item in models:
        click.echo(_text(item, everything=everything or failing))
    for line in announcements:
        click.echo(_announcements(line))
    if not models and not (failing and announcements):
        click.echo("nothing fails" if failing else "no registered models yet", err=True)


def _plain(item: ModelReport) -> dict[str, Any]:
    value = asdict(item)
    for channel in value["channels"]:
        channel["published_at"] = format_time(channel["published_at"])
    return value


def _failing(item: ModelReport) -> ModelReport | None:
    """The part of a report that has a problem; None if there is none."""
    versions = tuple(one for one in item.versions if one.status in {*_NEEDS_A_PERSON, "retrying"})
    channels = tuple(channel for channel in item.channels if not channel.in_step)
    if not (versions or channels or item.dead or item.problem is not None):
        return None
    return replace(item, versions=versions, channels=channels)


def _overview(found: Overview) -> Iterator[str]:
    """The lines of an overview: what needs a person, the freezes, then the numbers."""
    for event in found.failed_events:
        version = "" if event.version is None else f" v{event.version}"
        line = f"#{event.id} {event.model}{version} {event.kind.value} failed: {event.outcome or ''}"
        yield click.style(for_terminal(_cut(line)), fg="red")
    if found.dead > len(found.failed_events):
        yield f"and {found.dead - len(found.failed_events)} more: supabase-bridge outbox list --state dead"
    for model, one in found.failed_versions:
        yield click.style(for_terminal(_cut(f"{model} v{one.version} {one.status}: {one.error or ''}")), fg="red")
    if found.failed > len(found.failed_versions):
        yield f"and {found.failed - len(found.failed_versions)} more: supabase-bridge status --failing"
    for freeze in found.freezes[:_FREEZES_SHOWN]:
        yield click.style(for_terminal(_cut(str(freeze))), fg="yellow")
    if len(found.freezes) > _FREEZES_SHOWN:
        yield f"and {len(found.freezes) - _FREEZES_SHOWN} more freezes: supabase-bridge status --all"
    # Any user of MLflow can write the tag.
    statuses = sorted(found.statuses.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{count} {status or 'not mirrored'}" for status, count in statuses[:8])
    yield for_terminal(_cut(f"{found.models} models, {found.versions} versions: {shown}"))
    yield f"outbox: {found.waiting} waiting, {found.dead} failed"
    yield from map(_announcements, found.announcements)
    yield "of one model: supabase-bridge status MODEL; of all: supabase-bridge status --all"


def _announcements(line: str) -> str:
    return click.style(for_terminal(line), fg="yellow" if ", 0 failed" in line and " ended" not in line else "red")


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _severity(one: VersionReport) -> int:
    return 0 if one.status in _NEEDS_A_PERSON else 1 if one.status == "retrying" else 2


def _shown(versions: tuple[VersionReport, ...], *, everything: bool) -> list[VersionReport]:
    """The versions to show, those with problems first; of many, the newest."""
    if not everything and len(versions) > _VERSIONS_SHOWN:
        newest_last = sorted(versions, key=lambda one: (-_severity(one), one.version))
        versions = tuple(sorted(newest_last[-_VERSIONS_SHOWN:], key=lambda one: one.version))
    return sorted(versions, key=_severity)


def _text(item: ModelReport, *, everything: bool) -> str:
    lines = [item.model if item.key in {None, item.model} else f"{item.model} (folder {item.key})"]
    for channel in item.channels:
        version = "" if channel.model_version is None else f" (version {channel.model_version})"
        remarks = [", activated manually"] if channel.activated_manually else []
        remarks += [] if channel.in_step else [", MANIFEST DIFFERS FROM ITS LOG"]
        since = format_time(channel.published_at)
        lines.append(f"  {channel.channel:<10} -> {channel.run_id}{version} since {since}{''.join(remarks)}")
    shown = _shown(item.versions, everything=everything)
    for one in shown:
        error = f": {one.error}" if one.error else ""
        status = one.status or "not mirrored"
        held = " ".join([one.stage, *(f"@{alias}" for alias in one.aliases)])
        lines.append(f"  v{one.version:<4} {held:<10} {one.run_id or '-':<18} {status}{error}")
    if len(shown) < len(item.versions):
        lines.append(f"  and {len(item.versions) - len(shown)} more versions: --all shows them")
    if item.problem is not None:
        lines.append(f"  {item.problem}")
    lines += [f"  {freeze}" for freeze in item.frozen]
    lines += [f"  consumer {consumer}" for consumer in item.consumers]
    if item.waiting or item.dead:
        lines.append(f"  outbox: {item.waiting} waiting, {item.dead} failed")
    return "\n".join(map(_colored, lines))


def _colored(line: str) -> str:
    """A line for a terminal, with the colour of its problem; `click.echo` removes the colour elsewhere."""
    if " failed: " in line or " rejected: " in line or "MANIFEST DIFFERS" in line:
        return click.style(for_terminal(line), fg="red")
    return click.style(for_terminal(line), fg="yellow") if " retrying" in line else for_terminal(line)
