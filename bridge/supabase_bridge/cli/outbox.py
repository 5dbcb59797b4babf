"""`supabase-bridge outbox`: list, retry or discard registry changes."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.common import home_option, json_option
from supabase_bridge.cli.terminal import shown, shown_json
from supabase_bridge.config import Settings
from supabase_bridge.outbox.events import Event, EventState

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATES = [state.value for state in EventState]


@click.group("outbox")
def command() -> None:
    """See and steer the changes of the registry on their way to Supabase."""


@command.command("list")
@click.option("--state", type=click.Choice(_STATES), multiple=True, help="Only these; by default pending and dead.")
@click.option("--all", "everything", is_flag=True, help="Finished ones too.")
@click.option("--limit", type=click.IntRange(min=1), help="So many at most.")
@click.option("--after", type=click.IntRange(min=1), metavar="ID", help="Go on behind this one, the last one seen.")
@click.option("--newest", is_flag=True, help="The newest first.")
@json_option
@home_option
def list_events(
    state: tuple[str, ...],
    everything: bool,
    limit: int | None,
    after: int | None,
    newest: bool,
    as_json: bool,
    home: Path | None,
) -> None:
    """List changes, the oldest first: what waits and what failed, with the reason.

    With --json each line is one change. With --limit and --after they come page by page.

    \b
    Example:  supabase-bridge outbox list --state dead
    """
    wanted = [EventState(name) for name in state]
    if not wanted and not everything:
        wanted = [EventState.PENDING, EventState.DEAD]
    count = 0
    found = _events(Settings.load(home=home), wanted, after=after, newest_first=newest)
    for event in islice(found, limit):
        count += 1
        click.echo(_json_line(event) if as_json else _line(event))
    if not count and not as_json:
        plain = not everything and not state and after is None
        click.echo("nothing waits and nothing failed" if plain else "none", err=True)


@command.command("retry")
@click.argument("event_id", type=click.IntRange(min=1))
@home_option
def retry(event_id: int, home: Path | None) -> None:
    """Let a failed or waiting change be taken up again at once.

    \b
    Example:  supabase-bridge outbox retry 12
    """
    from supabase_bridge.outbox.opening import open_outbox

    with open_outbox(Settings.load(home=home)) as outbox:
        outbox.retry(event_id)
    click.echo(f"event {event_id} is due; a worker takes it up")


@command.command("discard")
@click.argument("event_id", type=click.IntRange(min=1))
@home_option
def discard(event_id: int, home: Path | None) -> None:
    """Let a failed or waiting change go for good: what it asks for is not done.

    \b
    Example:  supabase-bridge outbox discard 12
    """
    from supabase_bridge.outbox.opening import open_outbox

    with open_outbox(Settings.load(home=home)) as outbox:
        outbox.discard(event_id)
    click.echo(f"event {event_id} is discarded")


def _events(settings: Settings, states: list[EventState], *, after: int | None, newest_first: bool) -> Iterator[Event]:
    # SQLAlchemy takes a third of a second to import.
    from supabase_bridge.outbox.opening import open_outbox

    with open_outbox(settings) as outbox:
        yield from outbox.events(states=states, after=after, newest_first=newest_first)


def _line(event: Event) -> str:
    version = "" if event.version is None else f" v{event.version}"
    change = event.kind.value
    if event.stage is not None and event.previous_stage is not None:
        change = f"{event.previous_stage} -> {event.stage}"
    elif event.alias is not None:
        change += f" @{event.alias}"
    tried = f" after {event.attempts} attempts" if event.attempts > 1 else ""
    outcome = f": {event.outcome}" if event.outcome else ""
    about = f"#{event.id} {event.created_at:%Y-%m-%d %H:%M:%S}Z {event.model}{version}"
    return shown(f"{about} {change} [{event.state.value}{tried}]{outcome}")


def _json_line(event: Event) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value

    return shown_json({name: plain(value) for name, value in asdict(event).items()})
