"""`supabase-bridge mirror`: upload one model version as a release."""

from __future__ import annotations

from pathlib import Path

import click

from supabase_bridge.cli.common import home_option, say_store, upload_bar
from supabase_bridge.config import Settings


@click.command("mirror")
@click.argument("model")
@click.argument("version", type=click.IntRange(min=1))
@home_option
def command(model: str, version: int, home: Path | None) -> None:
    """Upload VERSION of the registered MODEL as a release and print its run_id. No pointer moves.

    A release that is complete already is verified and left as it is.

    \b
    Example:  supabase-bridge mirror two_tower 7
    """
    settings = Settings.load(home=home)
    say_store(settings)
    # MLflow takes seconds to import.
    from supabase_bridge.runtime import runtime

    with runtime(settings, announce=upload_bar()) as made:
        click.echo(made.processor.mirror(made.registry.version(model, version)))
