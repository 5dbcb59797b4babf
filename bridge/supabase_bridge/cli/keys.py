"""`supabase-bridge keys`: make keys, see which are in use, sign what no key has signed."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import click

from supabase_bridge.cli.common import home_option, json_option, print_json, say_store
from supabase_bridge.cli.terminal import shown
from supabase_bridge.config import Settings
from supabase_bridge.object_store.opening import open_store

PRIVATE_NAME = "signing-key.pem"


@click.group("keys")
def command() -> None:
    """Make the keys that releases and manifests are signed with, and see which are in use."""


@command.command("generate")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    show_default=True,
    help="Directory for the two files; made if missing. Nothing is written over.",
)
def generate(out: Path) -> None:
    """Make a private key (signing-key.pem, mode 600) and its public key (<first letters of its id>.pem).

    The public key is for everybody who reads the bucket, the private key for the worker alone. It is not encrypted:
    keep it where your other secrets are.

    \b
    Example:  supabase-bridge keys generate --out ~/keys
    """
    # cryptography and pydantic take a tenth of a second to import, which --help need not wait for.
    from supabase_bridge.key_files import write_new_key

    made = write_new_key(out, PRIVATE_NAME)
    click.echo(made.key_id)
    click.echo(
        f"private key: {shown(str(made.private))}\npublic key:  {shown(str(made.public))}\n\n"
        "Next, in this order:\n"
        "  1. Give the public key to every consumer and every worker (trusted_keys, SUPABASE_BRIDGE_TRUSTED_KEYS).\n"
        f"  2. Give the private key to the workers: SUPABASE_BRIDGE_SIGNING_KEY_FILE={shown(str(made.private))}\n"
        "  3. Sign what is current: supabase-bridge keys sign-manifest MODEL",
        err=True,
    )


@command.command("list")
@json_option
@home_option
def list_keys(as_json: bool, home: Path | None) -> None:
    """List the keys whose signatures are believed, and the one that this process signs with.

    \b
    Example:  supabase-bridge keys list --json
    """
    settings = Settings.load(home=home, reading=True)
    from supabase_bridge.key_files import signer, trust_policy

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
        click.echo("no key is trusted, so signatures are not looked at", err=True)


@command.command("sign-manifest")
@click.argument("model")
@click.option("--channel", default="latest", show_default=True, help="The channel to confirm.")
@home_option
def sign_manifest(model: str, channel: str, home: Path | None) -> None:
    """Write the newest entry of a channel of MODEL (its folder) again, signed now with the key in use.

    After signing was switched on, after a key was replaced, and before `max_age` ends where nobody promotes. What is
    current stays current; its release must be signed by a trusted key already.

    \b
    Example:  supabase-bridge keys sign-manifest two_tower --channel staging
    """
    settings = Settings.load(home=home)
    say_store(settings)
    from supabase_bridge.by_hand import confirm
    from supabase_bridge.key_files import writer_seal
    from supabase_bridge.layout import ChannelKeys, check_channel, check_model_key

    keys, seal = ChannelKeys(model_key=check_model_key(model), channel=check_channel(channel)), writer_seal(settings)
    with closing(open_store(settings, settings.bucket)) as store:
        head = confirm(store, keys, now=datetime.now(timezone.utc), seal=seal)
    signed = "" if seal.signer is None else f", signed by {seal.signer.public.key_id}"
    click.echo(shown(f"{keys.manifest} is {head.current.run_id} (entry {head.sequence}{signed})"))


@command.command("sign-release")
@click.argument("model")
@click.argument("run_id")
@home_option
def sign_release(model: str, run_id: str, home: Path | None) -> None:
    """Sign the release RUN_ID of MODEL (its folder) as it lies in the bucket now, every byte of it read.

    For releases from before signing was switched on, and for those of a key that is trusted no longer. You vouch for
    what is there: whoever could write to the bucket could have changed it. A channel that points to the release needs
    `keys sign-manifest` afterwards.

    \b
    Example:  supabase-bridge keys sign-release two_tower 20251031T093831Z
    """
    settings = Settings.load(home=home)
    say_store(settings)
    from supabase_bridge import by_hand
    from supabase_bridge.errors import SettingsError
    from supabase_bridge.key_files import writer_seal
    from supabase_bridge.layout import ReleaseKeys, RunId, check_model_key

    keys, seal = ReleaseKeys(model_key=check_model_key(model), run_id=RunId.parse(run_id)), writer_seal(settings)
    if seal.signer is None:
        raise SettingsError("SUPABASE_BRIDGE_SIGNING_KEY_FILE", "missing; there is no key to sign the release with")
    with closing(open_store(settings, settings.bucket)) as store:
        by_hand.sign_release(store, keys, seal=seal)
    click.echo(f"{keys.signature} is a trusted key's signature of every file")
