"""The settings of retention."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.retention import Removal, RetentionPolicy
from supabase_bridge.settings.model import Settings


def load(home: Path, text: str) -> Settings:
    (home / "supabase-bridge.toml").write_text(text)
    return Settings.load(home=home, environ={})


def test_without_a_table_no_model_has_a_policy(tmp_path: Path) -> None:
    retention = load(tmp_path, "").retention
    assert (retention.of("two_tower", "two_tower"), retention.archive_buckets) == (None, frozenset())


def test_a_models_table_takes_what_it_does_not_set_from_the_one_for_all(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "[retention]\nthen = 'delete'\nkeep = 5\n"
        "[retention.two_tower]\nthen = 'archive'\narchive_bucket = 'old'\nmin_age_days = 0.5\n"
        "[retention.ranker]\nthen = 'keep'\n",
    )
    general = RetentionPolicy(then=Removal.DELETE, keep=5)
    own = RetentionPolicy(then=Removal.ARCHIVE, keep=5, min_age=timedelta(hours=12), archive_bucket="old")
    retention = settings.retention
    assert (retention.of("other", "other"), retention.of("two_tower", "x")) == (general, own)
    assert retention.of("Renamed", "two_tower") == own
    assert retention.of("ranker", "ranker") is None
    assert retention.archive_buckets == {"old"}
    assert settings.with_changes(bucket="others").retention == retention


def test_a_table_for_one_model_alone_sets_no_policy_for_the_others(tmp_path: Path) -> None:
    retention = load(tmp_path, "[retention.two_tower]\nthen = 'delete'\n").retention
    assert retention.of("two_tower", "two_tower") == RetentionPolicy(then=Removal.DELETE)
    assert retention.of("ranker", "ranker") is None


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("keep = 2", "then"),
        ("then = 'burn'", 'expected "archive" or "delete"'),
        ("then = 'delete'\nkeep = 2", "a whole number, 3 at least"),
        ("then = 'delete'\nkeep = 3.5", "a whole number, 3 at least"),
        ("then = 'delete'\nmin_age_days = -1", "a number of days from 0"),
        ("then = 'delete'\nmin_age_days = inf", "a number of days from 0"),
        ("then = 'archive'", "archive_bucket: missing"),
        ("then = 'archive'\narchive_bucket = 'models'", "is in use already"),
        ("then = 'delete'\nkeeep = 3", "no such field"),
        ("keep = 2\n[retention.two_tower]\nthen = 'delete'", "[retention.two_tower] keep"),
    ],
)
def test_a_policy_that_could_be_a_mistake_is_refused(table: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, f"[retention]\n{table}\n")
    assert problem in str(caught.value)
