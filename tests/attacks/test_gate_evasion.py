"""A version fails its criteria, and somebody wants it current all the same."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TypeAlias

import pytest
from mlflow.exceptions import MlflowException

from supabase_bridge.settings.model import FILE_NAME, Settings
from tests.support.scene import MODEL, MakeScene, Scene

pytestmark = pytest.mark.exhaustive

TOML = '[channels.aliases]\nchampion = "latest"\n[gates.two_tower]\ncriteria = ["recall@20 >= 0.65"]\n'
PASSES, FAILS = {"recall_at_20": 0.70}, {"recall_at_20": 0.61}
REFUSAL = "v2 cannot go to Production: recall@20 0.610 < 0.65"
MESSAGE_LIMIT = 2_000

SceneWith: TypeAlias = Callable[[str], Scene]


@pytest.fixture
def gated(make_scene: MakeScene, directory_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A model with a gate; version 1 passed it and is current, version 2 would fail."""
    home = directory_settings.home
    home.mkdir(parents=True)
    (home / FILE_NAME).write_text(TOML)
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(home))
    scene = make_scene(Settings.load(home=home, environ={}))
    scene.promote(scene.train(metrics=PASSES))
    scene.train(metrics=FAILS)
    scene.work()
    return scene


def refused(scene: Scene, act: Callable[[], object] | None = None) -> str:
    """Version 2 cannot be promoted, and what is current stays; why."""
    with pytest.raises(MlflowException) as caught:
        (act or (lambda: scene.promote(2)))()
    scene.work()
    assert scene.current() == 1
    assert len(str(caught.value)) <= MESSAGE_LIMIT
    return str(caught.value)


def test_a_forged_verdict_on_a_version_opens_no_gate(gated: Scene) -> None:
    for text in ("Production: passed: recall@20 0.700 meets recall@20 >= 0.65", "passed", "not judged", "x" * 4_000):
        gated.client.set_model_version_tag(MODEL, "2", "supabase.verdict", text)
        assert refused(gated).endswith(REFUSAL)


def test_tags_that_say_that_a_version_was_current_before_open_no_gate(gated: Scene) -> None:
    since = "current since 2025-10-31T09:38:31Z"
    forged = {"status": "active", "channel.latest": since, "verdict": "Production: not judged: it was current before"}
    for name, value in {**forged, "run_id": gated.tags(1)["run_id"]}.items():
        gated.client.set_model_version_tag(MODEL, "2", f"supabase.{name}", value)
        assert refused(gated).endswith(REFUSAL)
    gated.client.set_model_version_tag(MODEL, "2", "supabase.status", "superseded")
    assert refused(gated).endswith(REFUSAL)


def test_criteria_and_modes_on_a_version_or_its_run_are_nothing_to_a_gate(gated: Scene) -> None:
    run_id = gated.client.get_model_version(MODEL, "2").run_id
    for name, value in {
        "supabase.gate": "off",
        "supabase.gate.recall_at_20": "off",
        "threshold_passed": "true",
    }.items():
        gated.client.set_model_version_tag(MODEL, "2", name, value)
        gated.client.set_tag(str(run_id), name, value)
    assert refused(gated).endswith(REFUSAL)


def test_a_metric_of_a_name_that_looks_alike_is_not_the_metric(gated: Scene) -> None:
    for name in ("recall_at_2O", "rеcall_at_20", "recall_at_20 ", "Recall_at_20", "recall/at_20", "recall_at_020"):
        gated.client.create_model_version(MODEL, "x", gated.log_run(metrics={name: 0.99}))
    for version in gated.client.search_model_versions(f"name = '{MODEL}'"):
        if int(version.version) > 2:
            with pytest.raises(MlflowException, match="recall@20 is missing"):
                gated.promote(int(version.version))
    assert gated.current() == 1


def test_a_metric_that_is_no_number_meets_nothing(gated: Scene) -> None:
    for number in (float("nan"), float("inf"), float("-inf")):
        version = gated.train(metrics={"recall_at_20": number})
        with pytest.raises(MlflowException, match=r"recall@20 (is (NaN|infinite)|-)"):
            gated.promote(version)
    gated.work()
    assert gated.current() == 1


MALFORMED = [
    *("", " ", "nothing", ">= ", ">= 1e999", ">= nan", ">= -inf", "0.9 <= recall@20 <= 0.1", ">= 0.1; off"),
    *(
        "off\0",
        "\u202eoff",
        "ｏff",
        "of",
        "OFF, >= 0.9",
        ">= current - -1",
        "auc >= 0",
        "≥ 0.1",
        ">= ٠.١",
        ">= 0x0",
    ),
    *("\x1b[2J", "<script>alert(1)</script>", "x" * 4_900, "," * 4_900, ">= 0," * 900, "{recall@20}", "%s%n"),
]


def test_a_malformed_criterion_in_a_tag_lets_nobody_through_and_is_told_in_few_words(gated: Scene) -> None:
    for tag in MALFORMED:
        gated.client.set_registered_model_tag(MODEL, "supabase.gate.recall_at_20", tag)
        said = refused(gated)
        assert "cannot go to Production: " in said
        assert said.isprintable(), ascii(tag)


def test_many_malformed_tags_make_no_endless_refusal(gated: Scene) -> None:
    for number in range(40):
        gated.client.set_registered_model_tag(MODEL, f"supabase.gate.metric{number}", "x" * 4_000)
    assert "is malformed" in refused(gated)


def test_a_renamed_model_keeps_its_gate_on_its_way_and_back(gated: Scene) -> None:
    gated.client.rename_registered_model(MODEL, "another")
    with pytest.raises(MlflowException, match=r"another v2 cannot go to Production: recall@20 0\.610 < 0\.65"):
        gated.promote(2, model="another")
    gated.client.rename_registered_model("another", MODEL)
    assert refused(gated).endswith(REFUSAL)


def test_an_alias_that_moves_the_same_pointer_is_no_way_around(gated: Scene) -> None:
    said = refused(gated, lambda: gated.client.set_registered_model_alias(MODEL, "champion", "2"))
    assert said.endswith("v2 cannot be @champion: recall@20 0.610 < 0.65")


def test_a_detour_over_other_stages_is_no_way_around(gated: Scene) -> None:
    for stages in (["Staging"], ["Archived"], ["Staging", "Archived", "None"]):
        for stage in stages:
            gated.promote(2, stage)
        assert refused(gated).endswith(REFUSAL)
    refused(gated, lambda: gated.promote(2, archive=True))


def test_archiving_what_is_current_leaves_the_pointer_and_not_a_hole_for_what_fails(gated: Scene) -> None:
    gated.promote(1, "Archived")
    assert refused(gated).endswith(REFUSAL)
    gated.client.delete_model_version(MODEL, "1")
    assert refused(gated).endswith(REFUSAL)


def test_a_refused_promotion_leaves_no_trace_for_the_next_one(gated: Scene) -> None:
    before = [(event.id, event.state) for event in gated.events()]
    for _ in range(3):
        assert refused(gated).endswith(REFUSAL)
    assert [(event.id, event.state) for event in gated.events()] == before
    assert gated.client.get_model_version(MODEL, "2").current_stage == "None"
    gated.work_later(timedelta(days=1))
    assert gated.current() == 1
    head = gated.head()
    assert head is not None
    assert head.current.published_at <= datetime.now(timezone.utc)


def test_whoever_may_write_a_registered_models_tags_may_lower_its_gate(gated: Scene) -> None:
    """Meant so, and said in the threat model: it is the same permission of MLflow's that promotes."""
    assert refused(gated).endswith(REFUSAL)
    gated.client.set_registered_model_tag(MODEL, "supabase.gate.recall_at_20", ">= 0.6")
    gated.promote(2)
    gated.work()
    assert gated.current() == 2
    assert "recall@20 0.610 meets recall@20 >= 0.6" in gated.tags(2)["verdict"]
