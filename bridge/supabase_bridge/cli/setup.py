"""Commands for an installation: init and doctor."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supabase_bridge.cli.output import home_option, json_option, print_json
from supabase_bridge.core.errors import SettingsError, os_errors, redact_credentials
from supabase_bridge.core.text import for_terminal

if TYPE_CHECKING:
    from supabase_bridge.app.doctor.check import Check

_COLORS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": None}


@click.command("init")
@home_option
def init_command(home: Path | None) -> None:
    """Write a commented supabase-bridge.toml into the home directory. An existing file is not changed.

    The file has what the environment and the current directory tell already: the project's URL, MLflow's database.

    \b
    Example:  supabase-bridge init --home mlruns
    """
    from supabase_bridge.app.initial_settings import initial_settings
    from supabase_bridge.settings.model import FILE_NAME

    directory = (home or Path(os.environ.get("SUPABASE_BRIDGE_HOME") or "mlruns")).absolute()
    path = directory / FILE_NAME
    with os_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x") as file:
                file.write(initial_settings(os.environ, Path.cwd()))
        except FileExistsError:
            raise SettingsError(
                str(path), "exists already and is not changed; edit it, or choose another --home"
            ) from None
    at_home = "" if home is None else f" --home {home}"
    click.echo(f"wrote {for_terminal(str(path))}", err=True)
    click.echo(f"supabase-bridge doctor{at_home}\nsupabase-bridge server{at_home}")


@click.command("doctor")
@click.option("--consumer", is_flag=True, help="Check an installation that only reads releases.")
@json_option
@home_option
def doctor_command(consumer: bool, as_json: bool, home: Path | None) -> None:
    """Check this installation: Python, packages, MLflow's plugin, database, artifacts, keys, Supabase project, worker.

    Each line says what was found; a line that begins with -> says how to mend it. The command only reads. Run it with
    the settings and as the user of the server or the worker; for a consumer, which needs neither MLflow nor a secret
    key, with --consumer.

    \b
    Exit codes:  0 nothing would fail   1 something would fail   2 wrong usage

    \b
    Example:  supabase-bridge doctor
              supabase-bridge doctor --consumer
              supabase-bridge doctor --json | jq '.[] | select(.status == "failed")'
    """
    from supabase_bridge.app.doctor.examine import examine

    checks: list[Check] = []
    for check in examine(home=home, consumer=consumer):
        checks.append(check)
        if not as_json:
            _print(check)
    if as_json:
        print_json(
            [
                {
                    "name": check.name,
                    "status": check.status.value,
                    "detail": redact_credentials(check.detail),
                    "remedy": check.remedy,
                }
                for check in checks
            ]
        )
    failures = sum(check.status.value == "failed" for check in checks)
    warnings = sum(check.status.value == "warning" for check in checks)
    click.echo(f"{failures} failed, {warnings} to look at", err=True)
    sys.exit(1 if failures else 0)


def _print(check: Check) -> None:
    status = check.status.value
    word = click.style(f"{status:<8}", fg=_COLORS[status], bold=status == "failed")
    click.echo(f"{word} {check.name:<17} {for_terminal(redact_credentials(check.detail))}")
    if check.remedy:
        click.echo(f"{'':<26} -> {for_terminal(check.remedy)}")
