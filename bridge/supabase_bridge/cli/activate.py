"""`supabase-bridge activate`: point a channel to a release, by hand."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import click

from supabase_bridge.cli.common import channel_option, home_option, say_store, switch_line
from supabase_bridge.config import Settings
from supabase_bridge.object_store.opening import open_store


@click.command("activate")
@click.argument("model")
@click.argument("run_id")
@channel_option
@home_option
def command(model: str, run_id: str, channel: str, home: Path | None) -> None:
    """Point a channel of MODEL (its folder in the bucket) to the release RUN_ID.

    MLflow is not asked and not told: the log entry says that a person moved the pointer, and it stays there until
    somebody promotes a version in MLflow. To keep the registry the truth, promote there, or use `rollback`.

    No gate holds this command up: it is for emergencies. A release that failed its criteria gets a warning.

    \b
    Example:  supabase-bridge activate two_tower 20251031T093831Z --channel staging
    """
    settings = Settings.load(home=home)
    say_store(settings)
    # pydantic takes a tenth of a second to import, which --help need not wait for.
    from supabase_bridge.by_hand import failed_criteria, point_to
    from supabase_bridge.cli.terminal import shown
    from supabase_bridge.key_files import writer_seal
    from supabase_bridge.layout import ChannelKeys, ReleaseKeys, RunId, check_channel, check_model_key

    keys = ChannelKeys(model_key=check_model_key(model), channel=check_channel(channel))
    wanted, seal = RunId.parse(run_id), writer_seal(settings)
    with closing(open_store(settings, settings.bucket)) as store:
        switch = point_to(store, keys, wanted, now=datetime.now(timezone.utc), seal=seal)
        release = ReleaseKeys(model_key=keys.model_key, run_id=wanted)
        if (failed := failed_criteria(store, release)) is not None:
            click.echo(shown(f"warning:  this release failed its gate when it was made: {failed}"), err=True)
    click.echo(switch_line(keys.manifest, switch))
