"""Read the reports of use, and compare each with the log of its channel."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from pydantic import SecretStr

from supabase_bridge.app.errors import CommandError
from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError
from supabase_bridge.core.layout import ChannelPaths, check_channel, check_model_key
from supabase_bridge.core.usage import LATEST_VIEW, ConsumerUse, CurrentUse, UsageReport, assess, use_line
from supabase_bridge.releases.channel import Channel
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.errors import ObjectNotFoundError, ObjectTooLargeError
from supabase_bridge.storage.supabase.endpoint import key_headers

_ROWS = 1_000
"""The newest rows that are read; each is the newest report of one instance."""
_ANSWER_BYTES = 5_000_000
_ENTRIES_READ = 3
"""Entries after the one that a consumer saw, in which the switch that it missed is looked for."""
_SEQUENCES = 20
_SETUP = "run the SQL of docs/consumers.md, and see that this key or role may read the view"


def consumer_uses(
    settings: Settings, store: ObjectStore, model_key: str, *, now: datetime, everything: bool = False
) -> list[ConsumerUse]:
    """Return how the consumers of a model stand, those that lag first; see `assess`.

    Args:
        model_key: The model's folder in the bucket.

    Raises:
        CommandError: the reports cannot be read.
        ObjectStoreError: a channel cannot be read.
    """
    check_model_key(model_key)
    reports = list(_reports(settings, model_key))
    current = {}
    for name in sorted({report.channel for report in reports if report.channel is not None}):
        # Anyone can report any name.
        with suppress(InvalidNameError, InvalidDocumentError):
            channel = Channel(store, ChannelPaths(model_key=model_key, channel=check_channel(name)))
            head = channel.read_head().head
            if head is not None:
                own = [report for report in reports if report.channel == name]
                current[name] = _current(channel, head, own)
    return assess(reports, current, now=now, everything=everything)


def usage_lines(settings: Settings, store: ObjectStore, model_key: str, *, now: datetime) -> tuple[str, ...]:
    """Return a line of text for each consumer that reports; one line with the reason if the reports cannot be read."""
    try:
        return tuple(use_line(use, now=now) for use in consumer_uses(settings, store, model_key, now=now))
    except CommandError as error:
        return (str(error),)


def _current(channel: Channel, head: Manifest, reports: Iterable[UsageReport]) -> CurrentUse:
    run_id = head.current.run_id
    behind = {one.sequence: one.run_id for one in reports if one.sequence and one.run_id != run_id}
    newest = sorted(((sequence, used) for sequence, used in behind.items() if sequence < head.sequence), reverse=True)
    switched = {sequence: _missed(channel, head, sequence, used) for sequence, used in newest[:_SEQUENCES]}
    return CurrentUse(
        run_id=run_id,
        since=head.current.published_at,
        switched_at={sequence: at for sequence, at in switched.items() if at is not None},
    )


def _missed(channel: Channel, head: Manifest, sequence: int, used: str) -> datetime | None:
    """Return when the first switch away from a release happened after an entry; None if it is not found."""
    for number in range(sequence + 1, min(sequence + _ENTRIES_READ, head.sequence) + 1):
        try:
            entry = head if number == head.sequence else channel.entry(number)
        except (ObjectNotFoundError, ObjectTooLargeError, InvalidDocumentError):
            return None
        if entry.current.run_id != used:
            return entry.current.published_at
    return None


def _reports(settings: Settings, model_key: str) -> Iterable[UsageReport]:
    if settings.usage_url is not None:
        rows = _database_rows(settings.usage_url, settings.bucket, model_key)
    elif settings.supabase_url is not None and settings.service_key is not None:
        rows = _project_rows(settings.supabase_url, settings.service_key, settings.bucket, model_key)
    else:
        problem = "there is no place to read reports from: set SUPABASE_BRIDGE_USAGE_URL, or SUPABASE_URL and "
        raise CommandError(f"{problem}SUPABASE_SECRET_KEY")
    for row in rows:
        with suppress(InvalidDocumentError):
            yield UsageReport.from_object(row)


def _project_rows(url: str, key: SecretStr, bucket: str, model_key: str) -> list[dict[str, Any]]:
    import httpx

    from supabase_bridge.storage.http import BoundedTransport

    query = {
        "bucket": f"eq.{bucket}",
        "model": f"eq.{model_key}",
        "order": "reported_at.desc",
        "limit": str(_ROWS),
    }
    headers = {**key_headers(key.get_secret_value()), "accept-encoding": "identity"}
    data = b""
    try:
        with (
            httpx.Client(transport=BoundedTransport(timedelta(seconds=10)), headers=headers) as http,
            http.stream("GET", f"{url}/rest/v1/{LATEST_VIEW}", params=query) as answer,
        ):
            for piece in answer.iter_raw():
                data += piece
                if len(data) > _ANSWER_BYTES:
                    raise CommandError(f"the reports are more than {_ANSWER_BYTES} bytes; delete old rows")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CommandError(
            f"the reports cannot be read: the data API did not answer ({type(error).__name__})"
        ) from None
    try:
        rows = json.loads(data) if answer.status_code == httpx.codes.OK else None
    except ValueError:
        rows = None
    if not isinstance(rows, list):
        raise CommandError(f"the reports cannot be read: the data API answered {answer.status_code}; {_SETUP}")
    return [row for row in rows if isinstance(row, dict)]


def _database_rows(url: SecretStr, bucket: str, model_key: str) -> list[dict[str, Any]]:
    import psycopg
    from psycopg import sql

    query = sql.SQL(
        "select row_to_json(found) from (select * from {} where bucket = %s and model = %s "
        "order by reported_at desc limit {}) found"
    ).format(sql.Identifier("public", LATEST_VIEW), _ROWS)
    try:
        with psycopg.connect(url.get_secret_value(), connect_timeout=10, prepare_threshold=None) as connection:
            connection.execute("set local statement_timeout = '10s'")
            return [row for (row,) in connection.execute(query, (bucket, model_key)).fetchall()]
    except psycopg.Error as error:
        # The driver's own words may quote the URL.
        code = "" if error.sqlstate is None else f", code {error.sqlstate}"
        problem = f"the database refused ({type(error).__name__}{code})"
        raise CommandError(f"the reports cannot be read: {problem}; {_SETUP}") from None
