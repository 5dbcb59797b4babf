"""`supabase-bridge verify`: hold a release in the store against its records and signature."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from supabase_bridge.cli.common import home_option, json_option, print_json
from supabase_bridge.cli.consumer import facts, line, opened
from supabase_bridge.cli.terminal import shown


@click.command("verify")
@click.argument("reference", metavar="MODEL[@CHANNEL|/RUN_ID]")
@json_option
@home_option
def command(reference: str, as_json: bool, home: Path | None) -> None:
    """Check the manifest as the settings ask (signature, sequence, age), then read every file and compare its SHA-256.

    No file is kept, and the cache is not believed: every byte comes from the store. A file that cannot be read now, for
    the network, the server or the time it takes, is shown as ???: it may be as recorded. Of the manifest is remembered
    what every consumer remembers, so that an older one is refused later.

    \b
    Example:  supabase-bridge verify two_tower --json

    \b
    Exit codes:  0 everything is as recorded   1 it is not, is not believed, or cannot be read   2 wrong use or settings
    """
    with opened(home) as resolver:
        release = resolver.resolve(reference)
        verdicts = resolver.verify(release)
    good = all(verdict.problem is None for verdict in verdicts)
    if as_json:
        problems = {verdict.name: verdict.problem for verdict in verdicts if verdict.problem and not verdict.unread}
        unread = {verdict.name: verdict.problem for verdict in verdicts if verdict.unread}
        print_json({**facts(release), "verified": good, "problems": problems, "unread": unread})
    else:
        click.echo(line(release))
        for verdict in verdicts:
            word = "ok " if verdict.problem is None else "???" if verdict.unread else "BAD"
            problem = "" if verdict.problem is None else f": {verdict.problem}"
            record = verdict.record
            click.echo(shown(f"  {word} {verdict.name} {record.size_bytes} {record.sha256}{problem}"))
    if not good:
        sys.exit(1)
