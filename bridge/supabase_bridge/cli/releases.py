"""Commands about releases: mirror, remake, activate, rollback, wait, adopt."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supabase_bridge.cli.output import (
    activation_line,
    channel_option,
    home_option,
    load_settings,
    open_bucket,
    print_json,
    print_store,
    upload_bar,
)
from supabase_bridge.core.text import for_terminal

if TYPE_CHECKING:
    from supabase_bridge.core.layout import ChannelPaths, RunId
    from supabase_bridge.releases.channel import Activation
    from supabase_bridge.settings.model import Settings
    from supabase_bridge.settings.steps import StepSettings
    from supabase_bridge.storage.base import ObjectStore
    from supabase_bridge.trust.signer import SigningPolicy


@click.command("mirror")
@click.argument("model")
@click.argument("version", type=click.IntRange(min=1))
@home_option
def mirror_command(model: str, version: int, home: Path | None) -> None:
    """Upload VERSION of the registered MODEL as a release and print its run_id. No channel changes.

    A complete release is verified and not uploaded again.

    \b
    Example:  supabase-bridge mirror two_tower 7
    """
    settings = load_settings(home=home)
    print_store(settings)
    # MLflow takes seconds to import.
    from supabase_bridge.app.runtime import open_runtime

    with open_runtime(settings, announce=upload_bar()) as runtime:
        click.echo(runtime.processor.mirror(runtime.registry.version(model, version)))


@click.command("remake")
@click.argument("model")
@click.argument("version", type=click.IntRange(min=1))
@home_option
def remake_command(model: str, version: int, home: Path | None) -> None:
    """Make the release of VERSION of the registered MODEL again, under a new run_id, and print the run_id.

    For a release that cannot be repaired, and for one whose metrics changed after it was made. The old release stays,
    and a channel that names it stays too: promote the version again in MLflow to make the new release current.

    \b
    Example:  supabase-bridge remake two_tower 7
    """
    settings = load_settings(home=home)
    print_store(settings)
    # MLflow takes seconds to import.
    from supabase_bridge.app.runtime import open_runtime

    with open_runtime(settings, announce=upload_bar()) as runtime:
        click.echo(runtime.processor.mirror(runtime.registry.version(model, version), remake=True))


@click.command("activate")
@click.argument("model")
@click.argument("run_id")
@channel_option
@click.option("--dry-run", is_flag=True, help="Write nothing; print the manifest that would be written, unsigned.")
@click.option("--skip-steps", is_flag=True, help="Run no steps before; the log entry names those that were skipped.")
@home_option
def activate_command(model: str, run_id: str, channel: str, dry_run: bool, skip_steps: bool, home: Path | None) -> None:
    """Point a channel of MODEL (its folder in the bucket) to the release RUN_ID.

    MLflow is neither read nor changed. The log entry records a manual activation, and the channel stays there until a
    version is promoted in MLflow. To keep MLflow up to date, promote there, or use `rollback`.

    No gate stops this command, because it is for emergencies. A release that failed its criteria causes a warning. The
    steps of the settings run first, unless they have succeeded for this release before.

    \b
    Example:  supabase-bridge activate two_tower 20251031T093831Z --channel staging
    """
    settings = load_settings(home=home)
    print_store(settings)
    from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId, check_channel, check_model_key
    from supabase_bridge.releases.manual import failed_criteria, preview_activation
    from supabase_bridge.trust.load import load_signing_policy

    paths = ChannelPaths(model_key=check_model_key(model), channel=check_channel(channel))
    release = ReleasePaths(model_key=paths.model_key, run_id=RunId.parse(run_id))
    signing = load_signing_policy(settings)
    now = datetime.now(timezone.utc)
    with open_bucket(settings) as store:
        if dry_run:
            manifest = preview_activation(store, paths, release.run_id, now=now, signing=signing)
            if manifest is None:
                click.echo(for_terminal(f"nothing would change: {paths.manifest} names {run_id} already"), err=True)
            else:
                print_json(manifest.to_object())
            return
        activation = _activate(settings, store, paths, release.run_id, signing, skip_steps=skip_steps)
        _hint(settings, paths)
        if (failed := failed_criteria(store, release)) is not None:
            click.echo(for_terminal(f"warning:  this release failed its gate when it was made: {failed}"), err=True)
    click.echo(activation_line(paths.manifest, activation))


@click.command("rollback")
@click.argument("model")
@click.option("--to", "run_id", help="The release to go back to; by default the one before the current one.")
@channel_option
@click.option("--without-mlflow", is_flag=True, help="Change only the channel; MODEL is its folder.")
@click.option("--skip-steps", is_flag=True, help="Run no steps before; the log entry names those that were skipped.")
@home_option
def rollback_command(
    model: str, run_id: str | None, channel: str, without_mlflow: bool, skip_steps: bool, home: Path | None
) -> None:
    """Make an earlier release of the registered MODEL current again. Nothing is uploaded.

    The command promotes the version in MLflow, archives the other versions in its stage, and ends when the manifest is
    updated. With --without-mlflow, for when MLflow is down, it changes only the channel, which stays there until a
    version is promoted.

    The steps of the settings run first, unless they have succeeded for the release before. --skip-steps needs
    --without-mlflow, because any worker may carry a promotion out.

    \b
    Example:  supabase-bridge rollback two_tower
    """
    if skip_steps and not without_mlflow:
        raise click.UsageError("--skip-steps needs --without-mlflow")
    settings = load_settings(home=home)
    print_store(settings)
    from supabase_bridge.core.layout import ChannelPaths, RunId, check_channel, check_model_key

    wanted = None if run_id is None else RunId.parse(run_id)
    if without_mlflow:
        from supabase_bridge.app.errors import CommandError
        from supabase_bridge.releases.manual import release_before
        from supabase_bridge.trust.load import load_signing_policy

        signing = load_signing_policy(settings)
        paths = ChannelPaths(model_key=check_model_key(model), channel=check_channel(channel))
        with open_bucket(settings) as store:
            target = wanted or release_before(store, paths, signing=signing)
            if target is None:
                raise CommandError.no_earlier_release(paths)
            activation = _activate(settings, store, paths, target, signing, skip_steps=skip_steps)
        _hint(settings, paths)
        click.echo(activation_line(paths.manifest, activation))
        return
    from supabase_bridge.app.rollback import roll_back
    from supabase_bridge.app.runtime import open_runtime

    with open_runtime(settings) as runtime:
        current = roll_back(runtime, model, channel=check_channel(channel), run_id=wanted)
    click.echo(for_terminal(f"{model} {channel} is now {current}"))


def _hint(settings: Settings, paths: ChannelPaths) -> None:
    """Tell consumers that a channel has switched, if the settings switch Realtime on; a failure is only logged."""
    from supabase_bridge.releases.hints import HintSender

    with closing(HintSender.of_settings(settings)) as hints:
        hints.send(settings.bucket, paths)


def _activate(
    settings: Settings,
    store: ObjectStore,
    paths: ChannelPaths,
    run_id: RunId,
    signing: SigningPolicy,
    *,
    skip_steps: bool,
) -> Activation:
    """Activate a release manually, and print each step that runs before."""
    from supabase_bridge.app.activation import activate_prepared

    def started(step: StepSettings) -> None:
        click.echo(for_terminal(f"step:     {step.name} (at most {step.timeout.total_seconds():g} s)"), err=True)

    return activate_prepared(settings, store, paths, run_id, signing=signing, skip_steps=skip_steps, started=started)


@click.command("wait")
@click.argument("model")
@click.argument("version", type=click.IntRange(min=1))
@click.option(
    "--for",
    "goal",
    type=click.Choice(["mirrored", "active"]),
    default="mirrored",
    show_default=True,
    help="Wait until VERSION is a complete release, or until it is the current one of a channel.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=600.0, show_default=True, help="Maximum time in seconds."
)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="Address of the MLflow server. [MLFLOW_TRACKING_URI; default: the database of the settings]",
)
@home_option
def wait_command(
    model: str, version: int, goal: str, timeout: float, tracking_uri: str | None, home: Path | None
) -> None:
    """Wait until VERSION of the registered MODEL is mirrored, or active, and print its run_id. For CI jobs.

    The command reads the version's tags from MLflow. It needs no key of the project, and no database if an MLflow
    server is named.

    \b
    Exit codes:  0 reached   1 the version failed, was rejected or does not exist   2 wrong usage or settings
                 3 not reached in time

    \b
    Example:  supabase-bridge wait two_tower 7 --for active --timeout 300
    """
    settings = load_settings(home=home, reading=True)
    # MLflow takes seconds to import.
    from supabase_bridge.app.wait import wait_for
    from supabase_bridge.registry.client import Registry

    uri = tracking_uri or settings.database_url
    registry = Registry(tracking_uri=uri, registry_uri=uri)
    run_id = wait_for(registry, model, version, active=goal == "active", timeout=timedelta(seconds=timeout))
    if run_id is None:
        click.echo(for_terminal(f"{model} version {version} was not {goal} within {timeout:g} seconds"), err=True)
        raise SystemExit(3)
    click.echo(run_id)


@click.command("adopt")
@click.argument("model", metavar="MODEL[@CHANNEL]", required=False)
@click.option("--all", "everything", is_flag=True, help="The channels of all registered models.")
@home_option
def adopt_command(model: str | None, everything: bool, home: Path | None) -> None:
    """Let this registry move channels of MODEL (its folder in the bucket) that another registry moved before.

    The worker refuses a promotion in a channel whose log another registry wrote: two registries that share a bucket
    would overwrite each other's manifest. Adopt a channel if this registry replaces the other one, as after a restored
    backup. Each adopted log gets an entry that says so. The current release stays. With --all a model that cannot be
    adopted stops no other; the command names it and exits with 1.

    \b
    Example:  supabase-bridge adopt two_tower@latest
              supabase-bridge adopt --all
    """
    if everything == (model is not None):
        raise click.UsageError("name a model, or use --all")
    settings = load_settings(home=home)
    print_store(settings)
    from supabase_bridge.app.adoption import adopt_all, adopt_model
    from supabase_bridge.app.runtime import open_runtime
    from supabase_bridge.core.layout import check_channel

    name, _, channel = (model or "").partition("@")
    only = check_channel(channel) if channel else None
    failed = 0
    with open_runtime(settings) as runtime:
        for result in adopt_all(runtime) if everything else adopt_model(runtime, name, only):
            failed += result.problem is not None
            click.echo(for_terminal(result.text), err=result.problem is not None)
    raise SystemExit(1 if failed else 0)
