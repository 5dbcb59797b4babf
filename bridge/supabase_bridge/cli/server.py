"""`supabase-bridge server`: the MLflow server with the plugins, and one worker."""

from __future__ import annotations

import os
from pathlib import Path

import click

from supabase_bridge.cli.common import home_option, say_database, say_store
from supabase_bridge.config import Settings
from supabase_bridge.errors import SettingsError
from supabase_bridge.plugin_check import check_plugin
from supabase_bridge.supervisor import Address, server_command, server_environment, supervise, worker_command

_OURS = {
    "--backend-store-uri": "SUPABASE_BRIDGE_DATABASE_URL",
    "--registry-store-uri": "SUPABASE_BRIDGE_DATABASE_URL",
    "--artifacts-destination": "SUPABASE_BRIDGE_ARTIFACTS_DESTINATION",
    "--host": "--host, before the --",
    "--port": "--port, before the --",
}


@click.command("server")
@home_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- MLFLOW SERVER OPTIONS]")
def command(home: Path | None, host: str, port: int, more: tuple[str, ...]) -> None:
    """Run `mlflow server` with the plugins and one worker, until SIGTERM or Ctrl-C; both end with it.

    What stands after -- goes to `mlflow server` as it is.

    \b
    Example:  supabase-bridge server --port 5001 -- --workers 2
    """
    settings = Settings.load(home=home)
    for option in more:
        if (instead := _OURS.get(option.split("=")[0])) is not None:
            raise SettingsError(option.split("=")[0], f"is set by {instead}, so that server and worker agree")
    check_plugin(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    if "--enable-workspaces" in more:
        os.environ["MLFLOW_ENABLE_WORKSPACES"] = "true"
    say_store(settings)
    say_database(settings)
    address = Address(host=host, port=port)

    def ready() -> None:
        click.echo(f"server:   {address.url} (Ctrl-C stops it)", err=True)

    server, worker = server_command(address, more), worker_command(settings)
    raise SystemExit(
        supervise(server, worker, address, server_environment=server_environment(settings), on_ready=ready)
    )
