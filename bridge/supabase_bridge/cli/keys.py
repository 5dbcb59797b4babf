"""Commands about signing keys: generate and list them, sign existing releases and manifests."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click

from supabase_bridge.cli.output import (
    channel_option,
    home_option,
    json_option,
    load_settings,
    open_bucket,
    print_json,
    print_store,
)
from supabase_bridge.core.text import for_terminal

PRIVATE_NAME = "signing-key.pem"


@click.group("keys")
def keys_command() -> None:
    """Generate and list signing keys; sign existing releases and manifests."""


@keys_command.command("generate")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    show_default=True,
    help="Directory for the two files, created if missing. No file is overwritten.",
)
def generate_command(out: Path) -> None:
    """Generate a private key (signing-key.pem, mode 600) and its public key (<first letters of its id>.pem).

    Give the public key to every reader of the bucket, and the private key to the workers only. The private key is not
    encrypted: store it with your other secrets.

    \b
    Example:  supabase-bridge keys generate --out ~/keys
    """
    from supabase_bridge.trust.load import write_new_key

    made = write_new_key(out, PRIVATE_NAME)
    private, public = for_terminal(str(made.private)), for_terminal(str(made.public))
    click.echo(made.key_id)
    click.echo(
        f"private key: {private}\npublic key:  {public}\n\n"
        "Next, in this order:\n"
        "  1. Give the public key to every consumer and every worker (trusted_keys, SUPABASE_BRIDGE_TRUSTED_KEYS).\n"
        f"  2. Give workers the private key: SUPABASE_BRIDGE_SIGNING_KEY_FILE={private}\n"
        "  3. Sign the current manifest: supabase-bridge keys sign-manifest MODEL",
        err=True,
    )


@keys_command.command("list")
@json_option
@home_option
def list_command(as_json: bool, home: Path | None) -> None:
    """List the trusted keys, and the key that this process signs with.

    \b
    Example:  supabase-bridge keys list --json
    """
    settings = load_settings(home=home, reading=True)
    from supabase_bridge.trust.load import signer, trust_policy

    policy, own = trust_policy(settings), signer(settings)
    signing = None if own is None else own.public.key_id
    trusted = sorted(policy.keys.by_id)
    if as_json:
        max_age = None if policy.max_age is None else policy.max_age.total_seconds()
        required = policy.signature_required
        print_json({"trusted": trusted, "signing": signing, "require_signature": required, "max_age_seconds": max_age})
        return
    for key_id in trusted:
        click.echo(f"{key_id} trusted{', signs' if key_id == signing else ''}")
    if signing is not None and signing not in trusted:
        click.echo(f"{signing} signs, but is not trusted: add its public key to trusted_keys")
    if not trusted:
        click.echo("no key is trusted, so signatures are not verified", err=True)


@keys_command.command("sign-manifest")
@click.argument("model")
@channel_option
@home_option
def sign_manifest_command(model: str, channel: str, home: Path | None) -> None:
    """Write the newest log entry of a channel of MODEL (its folder) again, signed with the key in use.

    Use it after signing was enabled, after a key was replaced, and before `max_age` ends if no version is promoted. The
    current release stays the same, and a trusted key must have signed it already.

    \b
    Example:  supabase-bridge keys sign-manifest two_tower --channel staging
    """
    settings = load_settings(home=home)
    print_store(settings)
    from supabase_bridge.core.layout import ChannelPaths, check_channel, check_model_key
    from supabase_bridge.releases.manual import reissue
    from supabase_bridge.settings.sources import process_user
    from supabase_bridge.trust.load import load_signing_policy

    paths = ChannelPaths(model_key=check_model_key(model), channel=check_channel(channel))
    signing = load_signing_policy(settings)
    with open_bucket(settings) as store:
        head = reissue(store, paths, now=datetime.now(timezone.utc), signing=signing, by=process_user())
    signed = "" if signing.signer is None else f", signed by {signing.signer.public.key_id}"
    click.echo(for_terminal(f"{paths.manifest} is {head.current.run_id} (entry {head.sequence}{signed})"))


@keys_command.command("sign-release")
@click.argument("model")
@click.argument("run_id")
@home_option
def sign_release_command(model: str, run_id: str, home: Path | None) -> None:
    """Sign the release RUN_ID of MODEL (its folder) as it is in the bucket now, after reading every byte of it.

    For releases made before signing was enabled, or signed by a key that is no longer trusted. You vouch for the
    content: every writer of the bucket could have changed it. If a channel points to the release, run
    `keys sign-manifest` afterwards.

    \b
    Example:  supabase-bridge keys sign-release two_tower 20251031T093831Z
    """
    settings = load_settings(home=home)
    print_store(settings)
    from supabase_bridge.core.errors import SettingsError
    from supabase_bridge.core.layout import ReleasePaths, RunId, check_model_key
    from supabase_bridge.releases.manual import sign_release
    from supabase_bridge.trust.load import load_signing_policy

    paths = ReleasePaths(model_key=check_model_key(model), run_id=RunId.parse(run_id))
    signing = load_signing_policy(settings)
    if signing.signer is None:
        raise SettingsError("SUPABASE_BRIDGE_SIGNING_KEY_FILE", "missing; there is no key to sign the release with")
    with open_bucket(settings) as store:
        sign_release(store, paths, signing=signing)
    click.echo(f"{paths.signature} is a trusted key's signature of every file")
