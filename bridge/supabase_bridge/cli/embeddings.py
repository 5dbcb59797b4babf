"""Commands about embeddings in PostgreSQL with pgvector: init, load, list, check, drop."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.output import home_option, json_option, load_settings, open_bucket, print_json
from supabase_bridge.core.text import for_terminal

if TYPE_CHECKING:
    from supabase_bridge.embeddings.sets import EmbeddingSet

_RELEASE_OF_STEP = "SUPABASE_BRIDGE_RELEASE"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("embeddings")
def embeddings_command() -> None:
    """Store the embeddings of releases in PostgreSQL with pgvector.

    SUPABASE_BRIDGE_EMBEDDINGS_URL names the database.
    """


@embeddings_command.command("init")
@click.argument("model")
@click.option(
    "--dim", "dimension", type=click.IntRange(1, 4000), default=256, show_default=True, help="Width of a row."
)
@home_option
def init_command(model: str, dimension: int, home: Path | None) -> None:
    """Make the schema supabase_bridge, its functions, and the tables of MODEL (its folder in the bucket).

    The command can be repeated. Only the owner may read anything before you grant it (docs/embeddings.md).

    \b
    Example:  supabase-bridge embeddings init two_tower --dim 256
    """
    from supabase_bridge.core.layout import check_model_key
    from supabase_bridge.embeddings.sets import EmbeddingSets

    with EmbeddingSets.from_settings(load_settings(home=home, reading=True)) as sets:
        sets.init(check_model_key(model), dimension=dimension)
    click.echo(for_terminal(f"{model} has tables for embeddings of {dimension} dimensions"))


@embeddings_command.command("load")
@click.argument("release", envvar=_RELEASE_OF_STEP, metavar="MODEL/RUN_ID")
@click.option("--items", type=_FILE, required=True, help="File with the items' embeddings, .npz or .parquet.")
@click.option("--users", type=_FILE, help="File with the users' embeddings, .npz or .parquet.")
@home_option
def load_command(release: str, items: Path, users: Path | None, home: Path | None) -> None:
    """Load, index and attach the embeddings of a release. Readers see all of them or none.

    A .npz file has the arrays `ids` and `embeddings`, a .parquet file the columns `id` and `embedding`. Each row has
    length 1. A set that is ready already stays, so the command can be repeated; it begins again after it was killed.
    In a step, SUPABASE_BRIDGE_RELEASE names the release.

    \b
    Example:  supabase-bridge embeddings load two_tower/20251031T093831Z --items items.npz --users users.npz
    """
    settings = load_settings(home=home, reading=True)
    from supabase_bridge.app.embeddings import LoadedRelease, load_files
    from supabase_bridge.embeddings.sets import EmbeddingSets
    from supabase_bridge.settings.sources import child_environment

    loaded = LoadedRelease.of(release, settings, child_environment({}))
    with EmbeddingSets.from_settings(settings) as sets:
        found = load_files(sets, loaded, items=items, users=users)
    click.echo(_line(found))


@embeddings_command.command("list")
@click.argument("model", required=False)
@json_option
@home_option
def list_command(model: str | None, as_json: bool, home: Path | None) -> None:
    """List the sets of MODEL, or of all models.

    \b
    Example:  supabase-bridge embeddings list two_tower --json
    """
    from supabase_bridge.embeddings.sets import EmbeddingSets

    with EmbeddingSets.from_settings(load_settings(home=home, reading=True)) as sets:
        found = sets.list(model)
    if as_json:
        print_json([_plain(item) for item in found])
        return
    for item in found:
        click.echo(_line(item))
    if not found:
        click.echo("no embeddings yet", err=True)


@embeddings_command.command("check")
@click.argument("reference", envvar=_RELEASE_OF_STEP, metavar="MODEL[/RUN_ID]")
@json_option
@home_option
def check_command(reference: str, as_json: bool, home: Path | None) -> None:
    """Check that the set of a release is ready, or compare the sets of MODEL with its manifests and releases.

    With a RUN_ID the command suits the `check` of a step; SUPABASE_BRIDGE_RELEASE then names the release.

    \b
    Exit codes:  0 ready, nothing is missing   1 a set is not ready, or its release is gone   2 wrong usage or settings

    \b
    Example:  supabase-bridge embeddings check two_tower
    """
    settings = load_settings(home=home, reading=True)
    from supabase_bridge.app.embeddings import LoadedRelease, check_set, check_sets
    from supabase_bridge.core.layout import check_model_key
    from supabase_bridge.embeddings.sets import EmbeddingSets
    from supabase_bridge.settings.sources import child_environment
    from supabase_bridge.trust.load import load_signing_policy

    with ExitStack() as stack:
        sets = stack.enter_context(EmbeddingSets.from_settings(settings))
        if "/" in reference:
            problems = check_set(sets, LoadedRelease.of(reference, settings, child_environment({})).release)
        else:
            store = stack.enter_context(open_bucket(settings))
            problems = check_sets(sets, store, check_model_key(reference), signing=load_signing_policy(settings))
    if as_json:
        print_json([asdict(item) for item in problems])
    for item in () if as_json else problems:
        click.echo(for_terminal(f"{item.model}/{item.run_id}: {item.problem}"))
    if problems:
        raise SystemExit(1)
    if not as_json:
        click.echo(for_terminal(f"{reference}: ready"))


@embeddings_command.command("drop")
@click.argument("reference", metavar="MODEL[/RUN_ID]")
@home_option
def drop_command(reference: str, home: Path | None) -> None:
    """Drop the set of a release, or, of a MODEL, the sets whose release was deleted from the bucket.

    A set stays if a manifest names its release as the current or a previous one.

    \b
    Example:  supabase-bridge embeddings drop two_tower/20251031T093831Z
    """
    settings = load_settings(home=home, reading=True)
    from supabase_bridge.app.embeddings import drop_gone, drop_set
    from supabase_bridge.core.layout import RunId, check_model_key
    from supabase_bridge.embeddings.sets import EmbeddingSets
    from supabase_bridge.trust.load import load_signing_policy

    model, _, run_id = reference.partition("/")
    signing = load_signing_policy(settings)
    with EmbeddingSets.from_settings(settings) as sets, open_bucket(settings) as store:
        if run_id:
            found = drop_set(sets, store, check_model_key(model), RunId.parse(run_id), signing=signing)
            click.echo(for_terminal(f"{reference} {'is dropped' if found else 'had no embeddings'}"))
            return
        for item in drop_gone(sets, [store], signing=signing, model=check_model_key(model)):
            click.echo(for_terminal(f"{item.model}/{item.run_id} is dropped, because its release is gone"))


def _plain(item: EmbeddingSet) -> dict[str, Any]:
    from supabase_bridge.core.text import format_time

    return {**asdict(item), "changed_at": format_time(item.changed_at)}


def _line(item: EmbeddingSet) -> str:
    from supabase_bridge.core.text import format_time

    counts = f"{item.item_count} items, {item.user_count} users"
    return for_terminal(f"{item.model}/{item.run_id} {item.state} since {format_time(item.changed_at)}: {counts}")
