"""Commands that stop promotions for a while: freeze and thaw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supabase_bridge.cli.output import home_option, load_settings, parse_time
from supabase_bridge.core.text import for_terminal

if TYPE_CHECKING:
    from supabase_bridge.outbox.freezes import Freeze


@click.command("freeze")
@click.argument("subject", metavar="MODEL[@CHANNEL]")
@click.option("--reason", required=True, help="Why; MLflow's UI shows it with each promotion that is refused.")
@click.option("--until", help="Time (ISO 8601, UTC if it has no zone) at which the freeze ends by itself.")
@home_option
def freeze_command(subject: str, reason: str, until: str | None, home: Path | None) -> None:
    """Refuse promotions into the channels of the registered MODEL, or into one CHANNEL, until `thaw` or a time.

    MLflow refuses them with the reason and the end. A version that was current before may come back, so a rollback
    stays possible. A promotion that MLflow accepted before is still carried out. A second freeze of the same replaces
    the first. The freeze is kept in the outbox's database, with who made it and when; `status` shows it.

    \b
    Example:  supabase-bridge freeze two_tower@latest --until 2026-12-27T08:00Z --reason "holiday sale"
    """
    settings, end = load_settings(home=home), None if until is None else parse_time("--until", until)
    # MLflow takes seconds to import.
    from supabase_bridge.app.freeze import freeze_model
    from supabase_bridge.app.runtime import open_runtime

    with open_runtime(settings) as runtime:
        _print(freeze_model(runtime, subject, reason=reason, until=end))


@click.command("thaw")
@click.argument("subject", metavar="MODEL[@CHANNEL]")
@home_option
def thaw_command(subject: str, home: Path | None) -> None:
    """End the freeze of the registered MODEL, or of one CHANNEL.

    \b
    Exit codes:  0 done   1 there is no such freeze   2 wrong usage or settings

    \b
    Example:  supabase-bridge thaw two_tower@latest
    """
    settings = load_settings(home=home)
    # MLflow takes seconds to import.
    from supabase_bridge.app.freeze import thaw_model
    from supabase_bridge.app.runtime import open_runtime

    with open_runtime(settings) as runtime:
        left = thaw_model(runtime, subject)
    click.echo(for_terminal(f"{subject} is no longer frozen"))
    _print(left)


def _print(freezes: Sequence[Freeze]) -> None:
    for freeze in freezes:
        click.echo(for_terminal(str(freeze)))
