"""The command line: `supabase-bridge`. Commands are imported when they are used, so that --help does not wait."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any, NoReturn

import click

from supabase_bridge.cli.logs import configure_logging
from supabase_bridge.cli.terminal import shown
from supabase_bridge.errors import (
    BridgeError,
    InvalidChannelError,
    InvalidModelKeyError,
    InvalidReferenceError,
    InvalidRunIdError,
    SettingsError,
    without_credentials,
)

_USAGE_ERRORS = (SettingsError, InvalidChannelError, InvalidModelKeyError, InvalidReferenceError, InvalidRunIdError)
_COMMANDS = {
    "demo": ("supabase_bridge.cli.demo", "Train, log, promote and roll back a small model; see it all happen."),
    "server": ("supabase_bridge.cli.server", "Run the MLflow server with the plugins, and one worker."),
    "worker": ("supabase_bridge.cli.worker", "Carry registry changes over to Supabase."),
    "mirror": ("supabase_bridge.cli.mirror", "Upload one model version as a release; move no pointer."),
    "activate": ("supabase_bridge.cli.activate", "Point a channel to a release, by hand."),
    "rollback": ("supabase_bridge.cli.rollback", "Promote an earlier release again."),
    "status": ("supabase_bridge.cli.status", "Show what is current, what waits, what failed."),
    "keys": ("supabase_bridge.cli.keys", "Make signing keys, list them, sign what is not signed."),
    "pull": ("supabase_bridge.cli.pull", "Put a release's files into a directory, verified."),
    "watch": ("supabase_bridge.cli.watch", "Run something whenever another release becomes current."),
    "verify": ("supabase_bridge.cli.verify", "Check a release's signature and every byte of its files."),
    "sync": ("supabase_bridge.cli.sync", "Find what no event said; mirror an existing registry."),
    "watch-registry": ("supabase_bridge.cli.watch_registry", "Follow an MLflow server that cannot have the plugin."),
    "outbox": ("supabase_bridge.cli.outbox", "List, retry or discard registry changes."),
}


class _Commands(click.Group):
    """Knows every command's name and one line about it; the rest is imported on use."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BridgeError as error:
            _fail(error, code=2 if isinstance(error, _USAGE_ERRORS) else 1)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - the edge: nothing above could name it
            _fail(error, code=1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mlflow-supabase-bridge", prog_name="supabase-bridge")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, and show tracebacks, on stderr.")
def main(verbose: bool) -> None:
    """Promote a model in MLflow, and the manifest in Supabase Storage moves.

    Without Supabase settings everything lives under the home directory (--home, mlruns/ by default). With SUPABASE_URL
    and SUPABASE_SERVICE_ROLE_KEY in the environment the same commands use the real project.

    \b
    Try it:  supabase-bridge demo && supabase-bridge server

    \b
    Exit codes:  0 done   1 failed   2 wrong use or settings
    """
    configure_logging(verbose=verbose)


def _fail(error: Exception, *, code: int) -> NoReturn:
    logging.getLogger(__name__).debug("the command failed", exc_info=error)
    what = "" if isinstance(error, BridgeError) else f"unexpected {type(error).__name__}: "
    hint = "" if isinstance(error, BridgeError) else " (run again with -v before the command for the traceback)"
    click.echo(f"Error: {what}{shown(without_credentials(str(error)))}{hint}", err=True)
    sys.exit(code)
