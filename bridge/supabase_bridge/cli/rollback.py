"""`supabase-bridge rollback`: promote an earlier release again."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import click

from supabase_bridge.cli.common import channel_option, home_option, say_store, switch_line
from supabase_bridge.cli.terminal import shown
from supabase_bridge.config import Settings
from supabase_bridge.object_store.opening import open_store


@click.command("rollback")
@click.argument("model")
@click.option("--to", "run_id", help="The release to go back to; by default the one before the current one.")
@channel_option
@click.option("--without-mlflow", is_flag=True, help="Move the pointer alone; MODEL is its folder.")
@home_option
def command(model: str, run_id: str | None, channel: str, without_mlflow: bool, home: Path | None) -> None:
    """Make an earlier release of the registered MODEL current again. Nothing is uploaded.

    The version is promoted in MLflow, the others in its stage are archived, and the command ends when the manifest has
    followed. With --without-mlflow, for when MLflow is down, the pointer moves alone and stays where it is until
    somebody promotes a version.

    \b
    Example:  supabase-bridge rollback two_tower
    """
    settings = Settings.load(home=home)
    say_store(settings)
    # pydantic, and MLflow after it, take their time to import.
    from supabase_bridge.layout import ChannelKeys, RunId, check_channel, check_model_key

    wanted = None if run_id is None else RunId.parse(run_id)
    if without_mlflow:
        from supabase_bridge.by_hand import point_to, release_before
        from supabase_bridge.key_files import writer_seal

        seal = writer_seal(settings)
        keys = ChannelKeys(model_key=check_model_key(model), channel=check_channel(channel))
        with closing(open_store(settings, settings.bucket)) as store:
            target = wanted or release_before(store, keys, seal=seal)
            switch = point_to(store, keys, target, now=datetime.now(timezone.utc), seal=seal)
        click.echo(switch_line(keys.manifest, switch))
        return
    from supabase_bridge.rolling_back import roll_back
    from supabase_bridge.runtime import runtime

    with runtime(settings) as made:
        current = roll_back(made, model, channel=check_channel(channel), run_id=wanted)
    click.echo(shown(f"{model} {channel} is now {current}"))
