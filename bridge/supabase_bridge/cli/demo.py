"""`supabase-bridge demo`: the main job on a small model, from training to rollback."""

from __future__ import annotations

from pathlib import Path

import click

from supabase_bridge.cli.common import home_option, say_database, say_store, upload_bar
from supabase_bridge.config import Settings


@click.command("demo")
@home_option
@click.option("--model", help="Registered model to use. [default: two_tower; with a real project two_tower_demo]")
def command(home: Path | None, model: str | None) -> None:
    """Train two small two-tower models, log them to MLflow, promote 1, then 2, and roll back to 1.

    Real training, a real MLflow database, a real worker; only the data is generated. Run it again for two more
    versions.

    \b
    Example:  supabase-bridge demo --home /tmp/try
    """
    settings = Settings.load(home=home)
    name = model or ("two_tower" if settings.embedded else "two_tower_demo")
    say_store(settings)
    say_database(settings)
    # MLflow takes seconds to import.
    from supabase_bridge.demo import story
    from supabase_bridge.runtime import runtime

    story.prepare(settings)
    with runtime(settings, announce=upload_bar()) as made:
        manifest = story.run(made, name, click.echo)
    at_home = "" if home is None else f" --home {home}"
    click.echo(
        f"\n{manifest.model_name}/latest/manifest.json, as a consumer reads it:\n\n{manifest.to_bytes().decode()}\n"
        "Look next:\n"
        f"  supabase-bridge status{at_home}\n"
        f"  supabase-bridge server{at_home}     then promote a version in the browser, http://127.0.0.1:5000/#/models/{name}\n"
    )
