"""The command line `supabase-bridge`: parse, call one function of the packages below, print.

Entry point: `main`. It holds the command table and imports a command when it is used, so that --help starts fast.
May import every package except demo at import time; neither `cli` nor `cli.output` imports mlflow or sqlalchemy.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
from typing import Any, NoReturn

import click

from supabase_bridge.cli.output import configure_logging
from supabase_bridge.core.errors import BridgeError, InvalidNameError, SettingsError, redact_credentials
from supabase_bridge.core.text import for_terminal

_USAGE_ERRORS = (SettingsError, InvalidNameError)
_COMMANDS = {
    "demo": ("run:demo_command", "Train, log, promote and roll back a small model."),
    "init": ("setup:init_command", "Write a commented settings file."),
    "doctor": ("setup:doctor_command", "Check the installation, and say how to mend what is wrong."),
    "server": ("run:server_command", "Run the MLflow server with the plugins, and one worker."),
    "worker": ("run:worker_command", "Process registry events: upload releases, update manifests."),
    "mirror": ("releases:mirror_command", "Upload one model version as a release."),
    "remake": ("releases:remake_command", "Make a version's release again under a new run_id."),
    "activate": ("releases:activate_command", "Point a channel to a release manually."),
    "rollback": ("releases:rollback_command", "Promote an earlier release again."),
    "freeze": ("freeze:freeze_command", "Refuse promotions of a model for a while."),
    "thaw": ("freeze:thaw_command", "Allow them again."),
    "wait": ("releases:wait_command", "Wait until a version is mirrored or active."),
    "adopt": ("releases:adopt_command", "Give the channels of another registry to this one."),
    "status": ("status:status_command", "Show current releases, waiting events and failed events."),
    "consumers": ("usage:consumers_command", "Show which release each consumer uses, and who lags."),
    "history": ("history:history_command", "Show what was current when, by whom and why; verify the log."),
    "keys": ("keys:keys_command", "Generate and list signing keys; sign releases and manifests."),
    "pull": ("consume:pull_command", "Download a release into a directory and verify it."),
    "watch": ("consume:watch_command", "Pull each new current release, and run a command."),
    "diff": ("comparison:diff_command", "Show what changed from one release to another."),
    "verify": ("consume:verify_command", "Verify the signature and every byte of a release."),
    "look": ("look:look_command", "Show two releases side by side before a switch."),
    "embeddings": ("embeddings:embeddings_command", "Store the embeddings of releases in PostgreSQL (pgvector)."),
    "sync": ("repair:sync_command", "Find and repair differences between MLflow and Supabase."),
    "retention": ("retention:retention_command", "Remove model files of old releases, and restore them."),
    "watch-registry": ("run:watch_registry_command", "Follow an MLflow server that cannot load the plugin."),
    "outbox": ("repair:outbox_command", "List, retry or discard registry events."),
    "announcements": ("announcements:announcements_command", "List or retry announcements of switches; test one."),
}


_EXTRAS = {
    "mlflow": "mlflow sqlalchemy alembic numpy onnx onnxruntime picklescan",
    "postgres": "psycopg psycopg2",
    "mysql": "pymysql MySQLdb",
    "signing": "model_signing OpenSSL",
    "pgvector": "pgvector",
    "announce": "apprise",
    "look": "streamlit",
}
"""The modules that each extra installs, or stands for."""


class _Commands(click.Group):
    """A group that imports a command when it is used, and otherwise knows only its name and summary."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"supabase_bridge.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and (close := difflib.get_close_matches(args[0], _COMMANDS, n=1)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

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
        except ModuleNotFoundError as error:
            _fail(_named_extra(error), code=1)
        except Exception as error:  # noqa: BLE001 - the edge of the program
            _fail(error, code=1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mlflow-supabase-bridge", prog_name="supabase-bridge")
@click.option("-v", "--verbose", is_flag=True, help="Log every step, and show tracebacks, on stderr.")
@click.pass_context
def main(context: click.Context, verbose: bool) -> None:
    """Publish MLflow models to Supabase Storage: a promotion in MLflow updates the manifest.

    Without Supabase settings all files are in the home directory (--home, mlruns/ by default). With SUPABASE_URL and
    SUPABASE_SECRET_KEY in the environment the same commands use the Supabase project.

    \b
    Try it:  supabase-bridge demo && supabase-bridge server

    \b
    Exit codes:  0 done   1 failed   2 wrong usage or settings
    """
    if os.environ.get("NO_COLOR"):
        context.color = False  # https://no-color.org
    configure_logging(verbose=verbose)


def _named_extra(error: ModuleNotFoundError) -> Exception:
    """Return the error that names the extra to install; the error itself if no extra has the module."""
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in _EXTRAS.items() if module in modules.split()), None)
    if extra is None:
        return error
    driver = {"psycopg2": "postgresql+psycopg://", "MySQLdb": "mysql+pymysql://"}.get(module)
    beside = "" if driver is None else f", and begin the database's URL with {driver}"
    command = f"pip install 'mlflow-supabase-bridge[{extra}]'"
    return BridgeError(f"the Python module {module} is not installed here: run `{command}`{beside}")


def _fail(error: Exception, *, code: int) -> NoReturn:
    logging.getLogger(__name__).debug("the command failed", exc_info=error)
    what = "" if isinstance(error, BridgeError) else f"unexpected {type(error).__name__}: "
    hint = "" if isinstance(error, BridgeError) else " (run again with -v before the command for the traceback)"
    click.echo(f"Error: {what}{for_terminal(redact_credentials(str(error)))}{hint}", err=True)
    sys.exit(code)
