"""`supabase-bridge pull`: put a release's files into a directory."""

from __future__ import annotations

from pathlib import Path

import click

from supabase_bridge.cli.common import home_option, json_option, print_json
from supabase_bridge.cli.consumer import facts, line, opened
from supabase_bridge.cli.terminal import shown


@click.command("pull")
@click.argument("reference", metavar="MODEL[@CHANNEL|/RUN_ID]")
@click.argument("dest", type=click.Path(path_type=Path))
@json_option
@home_option
def command(reference: str, dest: Path, as_json: bool, home: Path | None) -> None:
    """Make DEST a directory with the files of a release, each one compared with its SHA-256.

    Without @CHANNEL or /RUN_ID it is what `latest` names. DEST holds the whole release afterwards, or, after an
    error, what it held before; killed while one takes the other's place, it leaves no DEST, and the next pull makes it.
    DEST must be missing, empty, or hold nothing but a release; where it is a mount point (a volume), or its parent
    cannot be written, name a directory below it. Files are kept in the cache as well, so that the same release is not
    downloaded twice.

    Needs no service key: SUPABASE_URL and SUPABASE_ANON_KEY, or no key for a public bucket.

    \b
    Example:  supabase-bridge pull two_tower@staging ./model

    \b
    Exit codes:  0 DEST holds the release   1 it could not be had, or is not believed   2 wrong use or settings
    """
    with opened(home) as resolver:
        pulled = resolver.pull(reference, dest)
    if as_json:
        print_json({**facts(pulled.release), "directory": str(pulled.directory.absolute())})
        return
    click.echo(line(pulled.release))
    for path in pulled.files.values():
        click.echo(shown(f"  {path}"))
