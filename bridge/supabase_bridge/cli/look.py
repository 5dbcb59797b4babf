"""The command that shows two releases side by side in the browser: look."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from supabase_bridge.cli.output import home_option, load_settings


@click.command("look")
@click.argument("model")
@click.argument("now", metavar="[A]", default="latest")
@click.argument("candidate", metavar="[B]", default="staging")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the page. [default: 8501, or the next free one]")
@click.option("--no-browser", is_flag=True, help="Open no browser; print the page's address only.")
@home_option
def look_command(model: str, now: str, candidate: str, port: int | None, no_browser: bool, home: Path | None) -> None:
    """Show releases A and B of MODEL side by side in the browser, before you switch from A to B.

    A and B are channels or run_ids; without them the releases of `latest` and `staging`. The page shows the metrics
    with differences, how the lists of the same users change, and the distribution of scores. It listens on 127.0.0.1
    only, reads only, and needs no secret key. Ctrl-C ends it.

    The lists come from the releases' embedding sets (SUPABASE_BRIDGE_EMBEDDINGS_URL), or from their towers and the
    samples that they carry: docs/look.md.

    \b
    Example:  supabase-bridge look two_tower
    Example:  supabase-bridge look two_tower latest 20251031T093831Z

    \b
    Exit codes:  0 ended   1 a release is not available or not trusted   2 wrong usage or settings
    """
    settings = load_settings(home=home, reading=True)
    import streamlit  # the error of a missing extra names it before the releases are read

    from supabase_bridge.client.resolver import Resolver
    from supabase_bridge.look.opened import reference_of

    with Resolver.from_settings(settings, report=False) as resolver:
        for text in (now, candidate):
            resolver.resolve(reference_of(model, text))
    page = Path(__file__).parents[1] / "look" / "page.py"
    options = {
        "server.address": "127.0.0.1",
        "server.headless": str(no_browser).lower(),
        "server.fileWatcherType": "none",
        "server.showEmailPrompt": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "viewer",
        # With a colour for both, Streamlit would not follow the browser's choice of light or dark.
        "theme.light.primaryColor": "#0072B2",
        "theme.dark.primaryColor": "#56B4E9",
        **({} if port is None else {"server.port": str(port)}),
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    sys.stdout.flush()
    program = [sys.executable, "-m", streamlit.__name__, "run", str(page), *given, "--", model, now, candidate]
    os.execv(sys.executable, program)  # noqa: S606 - a signal to this process then reaches the server itself
