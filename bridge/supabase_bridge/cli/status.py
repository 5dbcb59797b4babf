"""`supabase-bridge status`: what is current, what waits, what failed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.common import home_option, json_option, print_json, say_store
from supabase_bridge.cli.terminal import shown
from supabase_bridge.config import Settings

if TYPE_CHECKING:
    from supabase_bridge.report import ModelReport


@click.command("status")
@click.argument("model", required=False)
@json_option
@home_option
def command(model: str | None, as_json: bool, home: Path | None) -> None:
    """Show, for the registered MODEL or for all, each pointer, each version, and how many changes wait or failed.

    \b
    Example:  supabase-bridge status two_tower --json
    """
    settings = Settings.load(home=home)
    say_store(settings)
    # MLflow takes seconds to import.
    from supabase_bridge.report import report
    from supabase_bridge.runtime import runtime

    with runtime(settings) as made:
        models = report(made, model)
    if as_json:
        print_json([_plain(item) for item in models])
        return
    for item in models:
        click.echo(_text(item))
    if not models:
        click.echo("no registered models yet", err=True)


def _plain(item: ModelReport) -> dict[str, Any]:
    from supabase_bridge.documents import format_time

    value = asdict(item)
    for channel in value["channels"]:
        channel["published_at"] = format_time(channel["published_at"])
    return value


def _text(item: ModelReport) -> str:
    from supabase_bridge.documents import format_time

    lines = [item.model if item.key in {None, item.model} else f"{item.model} (folder {item.key})"]
    for channel in item.channels:
        version = "" if channel.model_version is None else f" (version {channel.model_version})"
        remarks = [", moved by hand"] if channel.moved_by_hand else []
        remarks += [] if channel.in_step else [", MANIFEST DIFFERS FROM ITS LOG"]
        since = format_time(channel.published_at)
        lines.append(f"  {channel.channel:<10} -> {channel.run_id}{version} since {since}{''.join(remarks)}")
    for one in item.versions:
        error = f": {one.error}" if one.error else ""
        status = one.status or "not mirrored"
        lines.append(f"  v{one.version:<4} {one.stage:<10} {one.run_id or '-':<18} {status}{error}")
    if item.waiting or item.dead:
        lines.append(f"  outbox: {item.waiting} waiting, {item.dead} failed")
    return "\n".join(map(shown, lines))
