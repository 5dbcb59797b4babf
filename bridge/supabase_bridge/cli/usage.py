"""The command consumers: who runs which release."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.output import home_option, json_option, load_settings, open_bucket, print_json, print_store
from supabase_bridge.core.text import for_terminal, format_time

if TYPE_CHECKING:
    from supabase_bridge.core.usage import ConsumerUse


@click.command("consumers")
@click.argument("model")
@click.option("--all", "everything", is_flag=True, help="Also consumers that have been silent for more than a day.")
@json_option
@home_option
def consumers_command(model: str, everything: bool, as_json: bool, home: Path | None) -> None:
    """Show which release each consumer of MODEL (its folder in the bucket) uses, and who lags behind a switch.

    It reads the reports that consumers make where `usage_reports` is on (docs/consumers.md), and compares them with the
    log of each channel. Consumers that lag come first, with the time since the first switch that they have not
    followed, then those that are silent: their reports are overdue, so they have probably died. Reports are claims:
    everyone who has the publishable key can make one.

    \b
    Example:  supabase-bridge consumers two_tower

    \b
    Exit codes:  0 shown   1 the reports cannot be read   2 wrong usage or settings
    """
    settings = load_settings(home=home)
    print_store(settings)
    from supabase_bridge.app.usage import consumer_uses
    from supabase_bridge.core.usage import use_line

    now = datetime.now(timezone.utc)
    with open_bucket(settings) as store:
        uses = consumer_uses(settings, store, model, now=now, everything=everything)
    if as_json:
        print_json([_plain(use) for use in uses])
        return
    for use in uses:
        click.echo(for_terminal(use_line(use, now=now)))
    if not uses:
        click.echo(for_terminal(f"no consumer has reported its use of {model}"), err=True)


def _plain(use: ConsumerUse) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, datetime):
            return format_time(value)
        return value.value if isinstance(value, Enum) else value

    return {name: plain(value) for name, value in asdict(use).items()}
