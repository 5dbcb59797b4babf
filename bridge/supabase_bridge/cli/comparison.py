"""The command diff: what differs between two releases."""

from __future__ import annotations

from pathlib import Path

import click

from supabase_bridge.cli.output import home_option, json_option, load_settings, print_ignored_keys, print_json


@click.command("diff")
@click.argument("model")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option("--markdown", is_flag=True, help="Print Markdown, for example for the text of a pull request.")
@click.option(
    "--channel",
    default="latest",
    show_default=True,
    help="The channel in whose log the activation of a run_id or version is looked for.",
)
@json_option
@home_option
def diff_command(
    model: str, before: str, after: str, markdown: bool, channel: str, as_json: bool, home: Path | None
) -> None:
    """Show what changed from release A to release B of MODEL.

    A and B are run_ids, channels or version numbers. It compares the metrics, the parameters, the dimensions, the
    datasets, the code, the inputs, outputs and operators of the ONNX graph, and the files, and shows who made each
    release and when. Metrics of evaluations with different protocols are shown, but not compared.

    The command reads the documents of the releases, verifies them as `pull` does, and needs no secret key. MODEL is the
    folder in the bucket. A version number needs MLflow's database, and then MODEL is the registered model.

    \b
    Example:  supabase-bridge diff two_tower latest staging --markdown

    \b
    Exit codes:  0 compared, also where nothing differs   1 not available or not trusted   2 wrong usage or settings
    """
    if markdown and as_json:
        raise click.UsageError("--markdown and --json are two forms; choose one")
    settings = load_settings(home=home, reading=True)
    print_ignored_keys()
    from supabase_bridge.app.comparison import compare_releases
    from supabase_bridge.core.comparison_text import as_markdown, as_object, as_text

    found = compare_releases(settings, model, before, after, channel=channel)
    if as_json:
        print_json(as_object(found))
        return
    for line in as_markdown(found) if markdown else as_text(found):
        click.echo(line)
