"""The tags by which a version shows in MLflow's UI what became of it."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from supabase_bridge.core import tags as status_tags
from supabase_bridge.core.documents import Cause, CurrentRelease, Manifest, ModelMeta
from supabase_bridge.core.tags import Status, Tags


def entry(channel: str = "latest", run_id: str = "20251031T093831Z") -> Manifest:
    current = CurrentRelease(
        run_id=run_id,
        published_at=datetime(2025, 11, 1, 2, 40, 10, tzinfo=timezone.utc),
        onnx_path=f"two_tower/{run_id}/two_tower_{run_id}.onnx",
        meta_path=f"two_tower/{run_id}/model_meta.json",
        metrics_path=f"two_tower/{run_id}/metrics.json",
    )
    return Manifest(model_name="two_tower", channel=channel, sequence=1, current=current)


def after(tags: dict[str, str], change: Tags) -> dict[str, str]:
    """The tags once a change is written to them."""
    return {name: value for name, value in {**tags, **change}.items() if value is not None}


META = ModelMeta(model_name="two_tower", run_id="20251031T093831Z")
ACTIVE = after({}, status_tags.activated({}, entry()))


def test_a_mirrored_version_says_so_and_forgets_its_error() -> None:
    failed = after({}, status_tags.failed({}, "no space", retrying=True))
    assert after(failed, status_tags.mirrored(failed, META)) == {"supabase.status": "mirrored"}


@pytest.mark.parametrize("status", [Status.ACTIVE, Status.SUPERSEDED])
def test_a_version_that_is_or_was_current_stays_so_when_it_is_mirrored_again(status: Status) -> None:
    assert status_tags.mirrored({"supabase.status": status.value}, META)["supabase.status"] == status.value


def test_a_current_version_says_in_which_channel_and_since_when() -> None:
    assert ACTIVE == {
        "supabase.status": "active",
        "supabase.channel.latest": "current since 2025-11-01T02:40:10Z",
    }


def test_a_current_version_says_by_whom_it_became_so() -> None:
    found = entry().model_copy(update={"cause": Cause(event_id=1, by="alice")})
    tags = after({}, status_tags.activated({}, found))
    assert tags["supabase.channel.latest"] == "current since 2025-11-01T02:40:10Z by alice"
    assert status_tags.superseded(tags, entry(channel="staging"))["supabase.status"] == "active"


def test_the_mirrors_notes_stay_on_a_version_that_becomes_current() -> None:
    tags = after({}, status_tags.mirrored({}, META.with_notes(["a.pt is left out", "x" * 600])))
    assert tags["supabase.note"].startswith("a.pt is left out; xxx")
    assert tags["supabase.note"].endswith("x…")
    assert after(tags, status_tags.activated(tags, entry()))["supabase.note"] == tags["supabase.note"]
    assert after(tags, status_tags.mirrored(tags, META)) == {"supabase.status": "mirrored"}


def test_an_activation_forgets_the_error_and_the_note() -> None:
    tags = {"supabase.error": "no space", "supabase.note": "left Production"}
    assert after(tags, status_tags.activated(tags, entry())) == ACTIVE


def test_a_superseded_version_says_by_which_release() -> None:
    newer = entry(run_id="20251105T000000Z")
    assert after(ACTIVE, status_tags.superseded(ACTIVE, newer)) == {
        "supabase.status": "superseded",
        "supabase.channel.latest": "superseded by 20251105T000000Z",
    }


def test_a_version_superseded_in_one_channel_stays_active_in_another() -> None:
    both = after(ACTIVE, status_tags.activated(ACTIVE, entry("staging")))
    tags = after(both, status_tags.superseded(both, entry("staging", "20251105T000000Z")))
    assert tags["supabase.status"] == "active"
    last = after(tags, status_tags.superseded(tags, entry("latest", "20251105T000000Z")))
    assert last["supabase.status"] == "superseded"


@pytest.mark.parametrize(("retrying", "status"), [(True, "retrying"), (False, "failed")])
def test_a_failure_says_why_and_whether_it_is_tried_again(retrying: bool, status: str) -> None:
    assert status_tags.failed({"supabase.status": "mirrored"}, "no space", retrying=retrying) == {
        "supabase.status": status,
        "supabase.error": "no space",
    }


@pytest.mark.parametrize("retrying", [True, False])
def test_a_current_version_stays_active_through_a_failure(retrying: bool) -> None:
    tags = after(ACTIVE, status_tags.failed(ACTIVE, "no space", retrying=retrying))
    assert tags == {**ACTIVE, "supabase.error": "no space"}


def test_a_version_that_left_without_a_successor_keeps_its_status() -> None:
    tags = after(ACTIVE, status_tags.left_without_successor("Production", "latest"))
    assert tags == {
        **ACTIVE,
        "supabase.note": "left Production with no successor; latest still points to this release",
    }


def test_a_change_touches_no_tag_of_anybody_else() -> None:
    own = {"team": "ranking", "supabase.run_id": "20251031T093831Z", "supabase.key": "two_tower"}
    for change in (
        status_tags.mirrored(own, META),
        status_tags.activated(own, entry()),
        status_tags.superseded(own, entry()),
        status_tags.failed(own, "no space", retrying=True),
        status_tags.left_without_successor("Production", "latest"),
    ):
        assert not change.keys() & own.keys()


def test_a_version_whose_files_are_at_fault_is_rejected() -> None:
    change = status_tags.failed({"supabase.status": "mirrored"}, "no state_dict", retrying=False, rejected=True)
    assert change == {"supabase.status": "rejected", "supabase.error": "no state_dict"}


def test_a_rejected_version_is_mirrored_once_its_files_pass() -> None:
    rejected = after({}, status_tags.failed({}, "no state_dict", retrying=False, rejected=True))
    assert after(rejected, status_tags.mirrored(rejected, META)) == {"supabase.status": "mirrored"}


def test_the_verdict_of_a_promotion_is_not_overwritten_by_that_of_a_mirroring() -> None:
    assert status_tags.mirrored_verdict({}, "failed: auc is missing") == {"supabase.verdict": "failed: auc is missing"}
    promoted = dict([status_tags.promotion_verdict("Production", "passed: auc 0.900 meets auc >= 0.88")])
    assert status_tags.mirrored_verdict(promoted, "failed: auc is missing") == {}


def test_only_a_promotion_in_spite_of_a_failure_counts_as_let_through() -> None:
    said = "failed: recall@20 0.610 < 0.65"
    assert (
        status_tags.passed_with_warning(dict([status_tags.promotion_verdict("Production", said)]))
        == f"Production: {said}"
    )
    passed = dict([status_tags.promotion_verdict("Production", "passed: auc 0.900 meets auc >= 0.88")])
    for tags in ({}, passed, {"supabase.verdict": said}):
        assert status_tags.passed_with_warning(tags) is None


def test_a_version_whose_activation_waits_for_a_step_says_which_and_since_when() -> None:
    since = datetime(2025, 11, 1, 12, 3, tzinfo=timezone.utc)
    mirrored = after({}, status_tags.mirrored({}, META))
    preparing = after(mirrored, status_tags.preparing(mirrored, "embeddings", since, attempt=2))
    note = "step embeddings since 2025-11-01T12:03:00Z, attempt 2"
    assert preparing == {"supabase.status": "preparing", "supabase.note": note}
    assert after(ACTIVE, status_tags.preparing(ACTIVE, "embeddings", since, attempt=2))["supabase.status"] == "active"
    assert after(preparing, status_tags.not_waiting(preparing)) == mirrored
    assert after(preparing, status_tags.activated(preparing, entry())) == ACTIVE
    failed = after(preparing, status_tags.failed(preparing, "no space", retrying=True))
    assert failed == {"supabase.status": "retrying", "supabase.error": "no space"}
