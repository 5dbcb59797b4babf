"""How consumers stand to the current release: current, behind and since when, idle, silent or pinned."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from supabase_bridge.core.usage import (
    ConsumerUse,
    CurrentUse,
    Standing,
    UsageReport,
    assess,
    consumer_name,
    use_line,
)
from tests.support.consumers import FIRST, SECOND

SWITCH = datetime(2025, 11, 7, 12, tzinfo=timezone.utc)
NOW = SWITCH + timedelta(hours=2, minutes=5)
CURRENT = CurrentUse(run_id=SECOND, since=SWITCH, switched_at={7: SWITCH - timedelta(hours=1)})


def report(run_id: str = SECOND, **changes: Any) -> UsageReport:
    fields: dict[str, Any] = {
        "bucket": "models",
        "model": "two_tower",
        "channel": "latest",
        "run_id": run_id,
        "consumer": "api",
        "instance": "a",
        "used_since": SWITCH - timedelta(days=1),
        "next_report_seconds": 900,
        "reported_at": NOW - timedelta(minutes=3),
    }
    return UsageReport(**{**fields, **changes})


def stand(*reports: UsageReport, everything: bool = False) -> list[ConsumerUse]:
    return assess(reports, {"latest": CURRENT}, now=NOW, everything=everything)


@pytest.mark.parametrize(
    ("given", "standing", "said"),
    [
        (report(), Standing.CURRENT, "as latest does (1 instance, last report 3 min ago)"),
        (report(FIRST), Standing.BEHIND, "BEHIND latest for 2 h 5 min (1 instance, last report 3 min ago)"),
        (report(FIRST, sequence=7), Standing.BEHIND, "BEHIND latest for 3 h 5 min (1 instance, last report 3 min ago)"),
        (
            report(FIRST, next_report_seconds=None, reported_at=SWITCH - timedelta(minutes=1)),
            Standing.IDLE,
            "has not run since latest switched 2 h 5 min ago (1 instance, last report 2 h 6 min ago)",
        ),
        (report(FIRST, next_report_seconds=None), Standing.BEHIND, "BEHIND latest for 2 h 5 min"),
        (report(reported_at=NOW - timedelta(minutes=32)), Standing.SILENT, "SILENT for 32 min"),
        (report(channel=None), Standing.PINNED, "pinned"),
        (report(channel="staging"), Standing.UNKNOWN, "staging cannot be read"),
    ],
)
def test_a_consumer_stands_to_the_current_release_in_one_way(given: UsageReport, standing: Standing, said: str) -> None:
    (use,) = stand(given)
    assert use.standing is standing
    assert use_line(use, now=NOW).startswith(f"api uses {given.run_id}, {said}")


def test_instances_that_stand_alike_are_one_line_and_those_that_lag_come_first() -> None:
    found = stand(report(), report(instance="b"), report(FIRST, instance="c"))
    assert [(use.standing, use.instances) for use in found] == [(Standing.BEHIND, 1), (Standing.CURRENT, 2)]


def test_a_consumer_that_ended_is_left_out_and_one_that_has_long_been_silent_until_all_are_asked_for() -> None:
    given = [report(ended=True), report(instance="b", reported_at=NOW - timedelta(days=2))]
    assert stand(*given) == []
    assert [use.standing for use in stand(*given, everything=True)] == [Standing.SILENT]


def test_a_report_is_missed_twice_before_its_consumer_counts_as_silent() -> None:
    assert stand(report(reported_at=NOW - timedelta(minutes=30)))[0].standing is Standing.CURRENT


def test_a_name_in_a_report_is_one_short_line() -> None:
    assert consumer_name(" a\x1b[31m\nb ") == "a [31m b"
    assert (len(consumer_name("x" * 500)), consumer_name("\n")) == (100, "unnamed")
