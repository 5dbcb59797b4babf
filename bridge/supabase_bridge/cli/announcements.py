"""Commands about announcements: list, retry, discard, test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.output import home_option, json_option, load_settings
from supabase_bridge.core.text import for_terminal, shown_json

if TYPE_CHECKING:
    from supabase_bridge.announce.deliveries import Deliveries, Delivery

_STATES = ("pending", "done", "dead", "discarded")


@click.group("announcements")
def announcements_command() -> None:
    """List, retry or discard announcements of switches, and test a destination."""


@announcements_command.command("list")
@click.option("--state", type=click.Choice(_STATES), multiple=True, help="Only these; by default pending and dead.")
@click.option("--all", "everything", is_flag=True, help="Delivered and discarded ones too.")
@click.option("--destination", metavar="NAME", help="Only those to this destination.")
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of announcements.")
@json_option
@home_option
def list_command(
    state: tuple[str, ...],
    everything: bool,
    destination: str | None,
    limit: int | None,
    as_json: bool,
    home: Path | None,
) -> None:
    """List waiting and failed announcements with the reason, the oldest first, after the destinations that ended.

    With --json each line is one announcement.

    \b
    Example:  supabase-bridge announcements list --state dead
    """
    # SQLAlchemy takes a third of a second to import.
    from supabase_bridge.announce.deliveries import DeliveryState

    states = [DeliveryState(name) for name in state]
    if not states and not everything:
        states = [DeliveryState.PENDING, DeliveryState.DEAD]
    count = 0
    with _open_deliveries(home) as deliveries:
        for name, known in sorted(deliveries.destinations().items()):
            if known.ended is not None and destination in (None, name):
                line = f"{name} has ended: {known.ended}; supabase-bridge announcements retry {name} resumes it"
                click.echo(for_terminal(line), err=True)
        for delivery in islice(deliveries.messages(states=states, destination=destination), limit):
            count += 1
            click.echo(_json(delivery) if as_json else _line(delivery))
    if not count and not as_json:
        click.echo("none" if everything or state else "no waiting and no failed announcements", err=True)


@announcements_command.command("retry")
@click.argument("subject", metavar="ID|DESTINATION")
@home_option
def retry_command(subject: str, home: Path | None) -> None:
    """Make a failed or waiting announcement due now, or all of a destination; one that had ended is resumed.

    A worker sends it within seconds. One that failed long ago arrives after later ones of its channel.

    \b
    Example:  supabase-bridge announcements retry 12
              supabase-bridge announcements retry slack
    """
    with _open_deliveries(home) as deliveries:
        if subject.isdecimal():
            deliveries.retry(int(subject))
            click.echo(f"announcement {subject} is due; a worker will send it")
        else:
            count = deliveries.resume(subject)
            click.echo(for_terminal(f"{subject}: {count} announcements are due; a worker will send them"))


@announcements_command.command("discard")
@click.argument("number", metavar="ID", type=click.IntRange(min=1))
@home_option
def discard_command(number: int, home: Path | None) -> None:
    """Discard a failed or waiting announcement permanently. It is not sent.

    \b
    Example:  supabase-bridge announcements discard 12
    """
    with _open_deliveries(home) as deliveries:
        deliveries.discard(number)
    click.echo(f"announcement {number} is discarded")


@announcements_command.command("test")
@click.argument("destination")
@home_option
def test_command(destination: str, home: Path | None) -> None:
    """Send a test message to a destination of the settings now, once. It needs no database.

    \b
    Exit codes:  0 the destination took it   1 it did not   2 wrong usage or settings

    \b
    Example:  supabase-bridge announcements test slack
    """
    from supabase_bridge.announce.senders import send_test

    send_test(load_settings(home=home), destination)
    click.echo(for_terminal(f"{destination} took the test message"))


@contextmanager
def _open_deliveries(home: Path | None) -> Iterator[Deliveries]:
    from supabase_bridge.announce.deliveries import Deliveries
    from supabase_bridge.outbox.queue import open_outbox

    with open_outbox(load_settings(home=home)) as outbox:
        yield Deliveries(outbox.engine)


def _line(delivery: Delivery) -> str:
    subject = f"{delivery.model}@{delivery.channel}" if delivery.channel else delivery.model
    tried = f" after {delivery.attempts} attempts" if delivery.attempts > 1 else ""
    outcome = f": {delivery.outcome}" if delivery.outcome else ""
    first = f"#{delivery.id} {delivery.created_at:%Y-%m-%d %H:%M:%S}Z {delivery.kind} {subject}"
    return for_terminal(f"{first} to {delivery.destination} [{delivery.state.value}{tried}]{outcome}")


def _json(delivery: Delivery) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value

    return shown_json({name: plain(value) for name, value in asdict(delivery).items()})
