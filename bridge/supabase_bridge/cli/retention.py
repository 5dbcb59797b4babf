"""Commands about retention: plan, run, restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.output import home_option, json_option, load_settings, print_json, print_store
from supabase_bridge.core.text import for_terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supabase_bridge.app.runtime import Runtime
    from supabase_bridge.retention.plan import ForeignFolders, PlannedRelease
    from supabase_bridge.settings.model import Settings

_FOREIGN_SHOWN = 5


@click.group("retention")
def retention_command() -> None:
    """Remove the model files of old releases that nothing uses, and restore them.

    The policy is in the settings, [retention]; without one nothing is removed. docs/retention.md explains it.
    """


@retention_command.command("plan")
@click.argument("model", required=False)
@json_option
@home_option
def plan_command(model: str | None, as_json: bool, home: Path | None) -> None:
    """Show what `run` would remove of the registered MODEL, or of all, and why each other release stays.

    It lists the bucket once and changes nothing.

    \b
    Example:  supabase-bridge retention plan two_tower
    """
    settings = load_settings(home=home)
    print_store(settings)
    from supabase_bridge.app.runtime import open_runtime

    with open_runtime(settings) as runtime:
        _check_model(runtime, model)
        _print_plan(runtime, settings, model, as_json=as_json)


@retention_command.command("run")
@click.argument("model", required=False)
@click.option("--yes", is_flag=True, help="Remove them. Without this option the command only shows the plan.")
@json_option
@home_option
def run_command(model: str | None, yes: bool, as_json: bool, home: Path | None) -> None:
    """Remove the model files of releases of the registered MODEL, or of all, that the policy lets go.

    A release is copied to the archive first, or MLflow must have its files. Its documents always stay. Before a release
    is removed, manifests, stages, aliases and events are read again, so that no promotion comes in between. The command
    can be stopped and repeated; a promotion of a removed version restores it.

    \b
    Exit codes:  0 done   1 a release could not be removed   2 wrong usage or settings

    \b
    Example:  supabase-bridge retention run --yes
    """
    settings = load_settings(home=home)
    print_store(settings)
    from supabase_bridge.app.retention import open_remover
    from supabase_bridge.app.runtime import open_runtime

    with open_runtime(settings) as runtime:
        _check_model(runtime, model)
        if not yes:
            _print_plan(runtime, settings, model, as_json=as_json)
            click.echo("nothing was changed; --yes carries it out", err=True)
            return
        results = []
        with open_remover(runtime) as remover:
            for result in remover.run(model=model):
                results.append({**_object(result.release), "removed": result.problem is None, "reason": result.problem})
                if not as_json:
                    outcome = "removed" if result.problem is None else f"stays: {result.problem}"
                    click.echo(for_terminal(f"{_name(result.release)}: {outcome}"))
    gone = [item for item in results if item["removed"]]
    if as_json:
        print_json({"results": results})
    else:
        click.echo(f"{len(gone)} removed, {_size(sum(item['model_bytes'] for item in gone))}", err=True)
    if len(gone) < len(results):
        raise SystemExit(1)


@retention_command.command("restore")
@click.argument("model")
@click.argument("run_id")
@home_option
def restore_command(model: str, run_id: str, home: Path | None) -> None:
    """Restore the release RUN_ID of the registered MODEL: from the archive, or from MLflow where there is none.

    Every file gets its recorded bytes, or the release stays removed. No pointer moves.

    \b
    Example:  supabase-bridge retention restore two_tower 20251031T093831Z
    """
    settings = load_settings(home=home)
    print_store(settings)
    from supabase_bridge.app.retention import restore
    from supabase_bridge.app.runtime import open_runtime
    from supabase_bridge.core.layout import RunId

    with open_runtime(settings) as runtime:
        paths = restore(runtime, model, RunId.parse(run_id))
    click.echo(for_terminal(f"{paths.model_key} {paths.run_id} is complete again"))


def _check_model(runtime: Runtime, model: str | None) -> None:
    if model is not None:
        runtime.registry.model(model)


def _plan(
    runtime: Runtime, settings: Settings, model: str | None
) -> Iterator[Sequence[PlannedRelease] | ForeignFolders]:
    from supabase_bridge.app.retention import planner
    from supabase_bridge.app.runtime import Stores

    with closing(Stores(settings, create=False)) as existing:
        yield from planner(runtime, existing).plan(now=runtime.outbox.now(), model=model)


def _print_plan(runtime: Runtime, settings: Settings, model: str | None, *, as_json: bool) -> None:
    from supabase_bridge.retention.plan import ForeignFolders

    count, size, kept = 0, 0, 0
    found: list[dict[str, Any]] = []
    foreign: list[str] = []
    for item in _plan(runtime, settings, model):
        if isinstance(item, ForeignFolders):
            foreign += item.names
            continue
        for release in item:
            count, size = count + release.goes, size + release.model_bytes * release.goes
            kept += not release.goes and not release.removed
            if as_json:
                found.append({**_object(release), "goes": release.goes, "reason": release.reason})
            else:
                click.echo(for_terminal(_line(release)))
    if as_json:
        print_json({"releases": found, "foreign_folders": foreign})
        return
    if foreign:
        more = "" if len(foreign) <= _FOREIGN_SHOWN else f" and {len(foreign) - _FOREIGN_SHOWN} more"
        names = ", ".join(foreign[:_FOREIGN_SHOWN])
        click.echo(for_terminal(f"folders of no model of this registry, never touched: {names}{more}"))
    click.echo(f"{count} releases would go, {_size(size)}; {kept} stay", err=True)


def _line(release: PlannedRelease) -> str:
    foreign = f"; {release.foreign} foreign objects in its folder stay" if release.foreign else ""
    if release.goes and release.policy is not None:
        verb = "finish removing" if release.removed else release.policy.then.value
        return f"{_name(release)}: {verb}, {_size(release.model_bytes)}{foreign}"
    state = "is removed" if release.removed else "stays"
    return f"{_name(release)}: {state}{f': {release.reason}' if release.reason else ''}{foreign}"


def _name(release: PlannedRelease) -> str:
    version = "" if release.version is None else f" (version {release.version.version})"
    return f"{release.paths.model_key}/{release.paths.run_id}{version}"


def _object(release: PlannedRelease) -> dict[str, Any]:
    return {
        "workspace": release.workspace,
        "model_key": release.paths.model_key,
        "run_id": str(release.paths.run_id),
        "version": None if release.version is None else release.version.version,
        "then": None if release.policy is None else release.policy.then.value,
        "model_bytes": release.model_bytes,
        "archived": release.removed,
        "foreign_objects": release.foreign,
    }


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
