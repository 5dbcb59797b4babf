"""The gate inside MLflow's transitions, on each database: what fails is refused, and nothing changes."""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any, TypeAlias

import pytest
import sqlalchemy as sa
from mlflow.entities.model_registry import RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.store.db.base_sql_model import Base
from sqlalchemy.engine import Engine

from mlflow_supabase import capture
from mlflow_supabase.gate import TransitionGate
from supabase_bridge.core.criteria import parse_gate
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.events import DEFAULT_WORKSPACE, EventKind, EventState
from supabase_bridge.outbox import freezes
from supabase_bridge.outbox.tables import OUTBOX
from supabase_bridge.settings.model import Settings
from tests.support.registry_stores import MODEL, SOURCE, Registry

SetUp: TypeAlias = "Callable[..., Gated]"
PASSES, FAILS = {"recall_at_20": 0.70}, {"recall_at_20": 0.61}
REFUSAL = f"{MODEL} v1 cannot go to Production: recall@20 0.610 < 0.65"


_LARGEST = 1.7976931348623157e308
"""What MLflow stores for infinity."""


def insert_run(engine: Engine, metrics: Mapping[str, float], params: Mapping[str, str]) -> str:
    """A run as MLflow's tracking store leaves one; that of 2.22 cannot write any through psycopg 3."""
    names = ("experiments", "runs", "latest_metrics", "params")
    experiments, runs, latest, own_params = (Base.metadata.tables[name] for name in names)
    run_id = uuid.uuid4().hex
    with engine.begin() as connection:
        if connection.execute(sa.select(experiments.c.experiment_id)).first() is None:
            connection.execute(experiments.insert().values(name="trainings", lifecycle_stage="active"))
        experiment_id = connection.execute(sa.select(experiments.c.experiment_id)).scalars().first()
        connection.execute(runs.insert().values(run_uuid=run_id, experiment_id=experiment_id, status="FINISHED"))
        for key, value in metrics.items():
            stored = 0 if math.isnan(value) else math.copysign(min(abs(value), _LARGEST), value)
            row = {"key": key, "value": stored, "is_nan": math.isnan(value), "timestamp": 0, "step": 0}
            connection.execute(latest.insert().values(run_uuid=run_id, **row))
        for key, text in params.items():
            connection.execute(own_params.insert().values(run_uuid=run_id, key=key, value=text))
    return run_id


class Gated:
    """A registry with a gate, and runs beside it."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        registry.store.create_registered_model(MODEL)

    def version(self, metrics: Mapping[str, float] | None = None, **params: str) -> int:
        """A version whose run has logged these metrics and params; without a run where `metrics` is None."""
        run_id = None if metrics is None else self.run(metrics, params)
        return int(self.registry.store.create_model_version(MODEL, SOURCE, run_id).version)

    def run(self, metrics: Mapping[str, float], params: Mapping[str, str] = MappingProxyType({})) -> str:
        return insert_run(self.registry.engine, metrics, params)

    def model_tag(self, key: str, value: str) -> None:
        self.registry.store.set_registered_model_tag(MODEL, RegisteredModelTag(key, value))

    def refused(self, version: int, stage: str = "Production", *, archive: bool = False) -> str:
        """Why a transition was refused; nothing has changed by it."""
        before = self.state()
        self.registry.new_events()
        with pytest.raises(MlflowException) as caught:
            self.registry.move(version, stage, archive=archive)
        assert caught.value.get_http_status_code() == 400
        assert (self.state(), self.registry.new_events()) == (before, [])
        return str(caught.value)

    def state(self) -> list[object]:
        """Everything a refused transition must leave as it is."""
        versions = self.registry.store.search_model_versions("")
        return [(item.version, item.current_stage, item.last_updated_timestamp, dict(item.tags)) for item in versions]

    def verdict(self, version: int) -> str | None:
        found: str | None = self.registry.store.get_model_version(MODEL, version).tags.get("supabase.verdict")
        return found

    def finish_events(self) -> None:
        """As a worker that has carried out everything."""
        with self.registry.engine.begin() as connection:
            connection.execute(OUTBOX.update().values(state=EventState.DONE.value, finished_ms=1))


@pytest.fixture
def set_up(registry: Registry) -> Iterator[SetUp]:
    """Puts a gate before a registry: by default one criterion on recall@20."""

    def make(*criteria: str, mode: str = "enforce", channels: list[str] | None = None, **settings: Any) -> Gated:
        table: dict[str, object] = {"criteria": list(criteria or ("recall@20 >= 0.65",)), "mode": mode}
        gate = parse_gate(table if channels is None else {**table, "channels": channels})
        found = Settings().with_changes(gates={MODEL: gate}, **settings)
        capture.watch(registry.engine, TransitionGate(lambda: found))
        return Gated(registry)

    yield make
    capture.watch(registry.engine, TransitionGate(Settings.for_registry))


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("archive", [False, True])
def test_a_version_that_fails_stays_where_it_is_and_so_does_everything_else(set_up: SetUp, archive: bool) -> None:
    gated = set_up()
    worse, better = gated.version(FAILS), gated.version(PASSES)
    gated.registry.move(better, "Production")
    assert gated.refused(worse, archive=archive) == REFUSAL
    assert gated.registry.stages() == {worse: "None", better: "Production"}


def test_a_version_that_passes_gets_there_with_its_verdict(set_up: SetUp) -> None:
    gated = set_up("recall@20 >= 0.65", "0.2 <= ctr <= 0.4")
    version = gated.version({"recall_at_20": 0.7, "ctr": 0.3})
    gated.registry.move(str(version), "Production")
    assert gated.registry.stages() == {version: "Production"}
    assert gated.verdict(version) == (
        "Production: passed: recall@20 0.700 meets recall@20 >= 0.65; ctr 0.300 meets 0.2 <= ctr <= 0.4"
    )
    assert [event.kind for event in gated.registry.new_events()][-1] is EventKind.STAGE_CHANGED


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"auc": 0.9}, "recall@20 is missing"),
        ({"recall_at_20": math.nan}, "recall@20 is NaN"),
        ({"recall_at_20": math.inf}, "recall@20 is infinite"),
        ({}, "recall@20 is missing"),
        (None, "the version has no run, and so no metrics"),
    ],
)
def test_what_is_not_known_fails(set_up: SetUp, metrics: Mapping[str, float] | None, said: str) -> None:
    gated = set_up()
    assert gated.refused(gated.version(metrics)).endswith(f"cannot go to Production: {said}")


def test_a_run_in_another_database_is_named_as_the_cause(set_up: SetUp) -> None:
    gated = set_up()
    gated.registry.store.create_model_version(MODEL, SOURCE, "0123abcd")
    assert "its run 0123abcd is not in the registry's database" in gated.refused(1)


def test_asking_again_for_the_stage_it_is_in_is_judged_too(set_up: SetUp) -> None:
    gated = set_up(mode="off")
    version = gated.version(FAILS)
    gated.registry.move(version, "Production")
    gated.model_tag("supabase.gate", "enforce")
    assert gated.refused(version) == REFUSAL


def test_settings_that_cannot_be_read_let_nobody_through(set_up: SetUp) -> None:
    gated = set_up()
    version = gated.version(PASSES)

    def broken() -> Settings:
        raise SettingsError("[gates.two_tower]", "no such thing")

    capture.watch(gated.registry.engine, TransitionGate(broken))
    assert "the settings, which may hold its criteria, cannot be read: [gates.two_tower]" in gated.refused(version)
    gated.registry.store.update_model_version(MODEL, version, "a description")


# --- what is not gated ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["Staging", "Archived", "None"])
def test_only_the_main_channel_is_gated_by_default(set_up: SetUp, stage: str) -> None:
    gated = set_up()
    gated.registry.move(gated.version(FAILS), stage)
    assert gated.registry.stages() == {1: stage}
    assert gated.verdict(1) is None


def test_the_settings_say_which_channels_are_gated(set_up: SetUp) -> None:
    gated = set_up(channels=["staging"])
    version = gated.version(FAILS)
    assert gated.refused(version, "Staging").startswith(f"{MODEL} v1 cannot go to Staging: ")
    gated.registry.move(version, "Production")


def test_leaving_a_gated_stage_and_changes_that_are_none_are_never_judged(set_up: SetUp) -> None:
    gated = set_up(mode="off")
    version = gated.version(FAILS)
    gated.registry.move(version, "Production")
    gated.model_tag("supabase.gate", "enforce")
    gated.registry.store.update_model_version(MODEL, version, "a description")
    gated.registry.move(version, "Archived")
    gated.registry.store.delete_model_version(MODEL, version)


def test_a_frozen_channel_refuses_every_version_until_the_freeze_ends(set_up: SetUp) -> None:
    gated = set_up()
    version, engine = gated.version(PASSES), gated.registry.engine
    until = datetime(2999, 12, 27, tzinfo=timezone.utc)
    freezes.freeze(engine, DEFAULT_WORKSPACE, MODEL, "latest", reason="audit", by="ada", until=until)
    refusal = gated.refused(version)
    assert f"cannot go to Production: {MODEL}@latest is frozen until 2999-12-27T00:00:00Z by ada: audit" in refusal
    gated.registry.move(version, "Staging")
    past = datetime(2001, 1, 1, tzinfo=timezone.utc)
    freezes.freeze(engine, DEFAULT_WORKSPACE, MODEL, "latest", reason="over", by="ada", until=past)
    gated.registry.move(version, "Production")
    freezes.freeze(engine, DEFAULT_WORKSPACE, MODEL, None, reason="all", by="ada", until=None)
    assert f"{MODEL} is frozen by ada: all" in gated.refused(version)
    assert not freezes.thaw(engine, DEFAULT_WORKSPACE, MODEL, "latest", by="ada")
    assert freezes.thaw(engine, DEFAULT_WORKSPACE, MODEL, None, by="ada")
    gated.registry.move(version, "Production")


def test_prompts_are_nothing_to_a_gate(set_up: SetUp) -> None:
    gated = set_up()
    gated.model_tag(IS_PROMPT_TAG_KEY, "true")
    gated.registry.move(gated.version(FAILS), "Production")


def test_a_model_without_criteria_is_not_judged(set_up: SetUp) -> None:
    gated = set_up()
    gated.registry.store.rename_registered_model(MODEL, "another")
    gated.registry.store.create_model_version("another", SOURCE, gated.run(FAILS))
    gated.registry.store.transition_model_version_stage("another", 1, "Production", archive_existing_versions=False)


def test_a_renamed_model_keeps_its_gate_by_its_folder(set_up: SetUp) -> None:
    gated = set_up()
    gated.version(FAILS)
    gated.model_tag("supabase.key", MODEL)
    gated.registry.store.rename_registered_model(MODEL, "renamed")
    with pytest.raises(MlflowException, match=r"renamed v1 cannot go to Production: recall@20 0\.610 < 0\.65"):
        gated.registry.store.transition_model_version_stage("renamed", 1, "Production", archive_existing_versions=False)


# --- aliases ----------------------------------------------------------------------------------------------------------


def test_an_alias_that_moves_a_gated_channel_is_refused_like_a_stage(set_up: SetUp) -> None:
    gated = set_up(aliases={"champion": "latest"})
    store, worse, better = gated.registry.store, gated.version(FAILS), gated.version(PASSES)
    store.set_registered_model_alias(MODEL, "champion", better)
    with pytest.raises(MlflowException, match=r"two_tower v1 cannot be @champion: recall@20 0\.610 < 0\.65"):
        store.set_registered_model_alias(MODEL, "champion", worse)
    assert store.get_model_version_by_alias(MODEL, "champion").version == better
    store.set_registered_model_alias(MODEL, "another", worse)


def test_an_alias_is_compared_with_the_version_that_it_is_taken_from(set_up: SetUp) -> None:
    gated = set_up("recall@20 >= current - 0.01", aliases={"champion": "latest"})
    store, better, worse = gated.registry.store, gated.version(PASSES), gated.version(FAILS)
    store.set_registered_model_alias(MODEL, "champion", better)
    with pytest.raises(MlflowException, match=r"recall@20 0\.610 < 0\.69 \(v1 has 0\.700, - 0\.01\)"):
        store.set_registered_model_alias(MODEL, "champion", worse)


# --- compared with what is current ------------------------------------------------------------------------------------


@pytest.mark.parametrize("archive", [False, True])
def test_a_version_that_is_worse_than_the_current_one_is_refused(set_up: SetUp, archive: bool) -> None:
    gated = set_up("recall@20 not worse than current by more than 0.01")
    first, worse, close = gated.version(PASSES), gated.version(FAILS), gated.version({"recall_at_20": 0.695})
    gated.registry.move(first, "Production")
    assert gated.refused(worse, archive=archive) == (
        "two_tower v2 cannot go to Production: recall@20 0.610 < 0.69 (v1 has 0.700, - 0.01)"
    )
    gated.registry.move(close, "Production", archive=archive)


def test_a_version_that_was_evaluated_otherwise_than_the_current_one_is_not_compared_with_it(set_up: SetUp) -> None:
    gated = set_up("recall@20 not worse than current by more than 0.5")
    full, sampled = {"protocol.candidates": "all"}, {"protocol.candidates": "100 sampled", "lr": "0.1"}
    gated.registry.move(gated.version(PASSES, **full), "Production")
    assert gated.refused(gated.version(PASSES, **sampled)) == (
        "two_tower v2 cannot go to Production: recall@20 cannot be compared with v1, which is current: its protocol "
        "has candidates '100 sampled', the other has 'all'"
    )
    assert "the other has no" not in gated.refused(gated.version(PASSES))
    gated.registry.move(gated.version(PASSES, **full), "Production")


def test_archiving_the_current_version_first_does_not_lower_the_bar(set_up: SetUp) -> None:
    gated = set_up("recall@20 >= current")
    first, worse = gated.version(PASSES), gated.version(FAILS)
    gated.registry.move(first, "Production")
    gated.finish_events()
    gated.registry.move(first, "Archived")
    assert "(v1 has 0.700)" in gated.refused(worse)


def test_of_several_in_production_the_last_to_arrive_is_current(set_up: SetUp) -> None:
    gated = set_up("recall@20 >= current")
    versions = [gated.version({"recall_at_20": value}) for value in (0.5, 0.6, 0.55)]
    for version in versions[:2]:
        gated.registry.move(version, "Production")
    assert "(v2 has 0.600)" in gated.refused(versions[2])
    gated.registry.move(2, "Archived")
    gated.registry.move(versions[2], "Production")


# --- modes and tags ---------------------------------------------------------------------------------------------------


def test_a_gate_that_warns_lets_through_and_says_by_what_the_version_failed(set_up: SetUp) -> None:
    gated = set_up(mode="warn")
    version = gated.version(FAILS)
    gated.registry.move(version, "Production")
    assert gated.verdict(version) == "Production: failed: recall@20 0.610 < 0.65"


def test_a_gate_that_is_off_says_nothing(set_up: SetUp) -> None:
    gated = set_up(mode="off")
    gated.registry.move(gated.version(FAILS), "Production")
    assert gated.verdict(1) is None


def test_a_tag_of_the_registered_model_overrides_the_settings(set_up: SetUp) -> None:
    gated = set_up()
    gated.model_tag("supabase.gate.recall_at_20", ">= 0.6")
    gated.registry.move(gated.version(FAILS), "Production")
    gated.model_tag("supabase.gate.recall_at_20", ">= 0.72")
    assert gated.refused(gated.version(PASSES)).endswith("recall@20 0.700 < 0.72")


def test_a_malformed_tag_lets_nobody_through_and_is_named(set_up: SetUp) -> None:
    gated = set_up()
    gated.model_tag("supabase.gate.auc", "at least 0.9")
    assert "the registered model's tag supabase.gate.auc is malformed: 'at least 0.9'" in gated.refused(
        gated.version(PASSES)
    )


def test_a_later_verdict_replaces_the_one_before(set_up: SetUp) -> None:
    gated = set_up()
    version = gated.version(PASSES)
    gated.registry.move(version, "Production")
    gated.model_tag("supabase.gate", "warn")
    gated.model_tag("supabase.gate.recall_at_20", ">= 0.9")
    gated.registry.move(version, "Production")
    assert gated.verdict(version) == "Production: failed: recall@20 0.700 < 0.9"


# --- rolling back -----------------------------------------------------------------------------------------------------


def test_what_was_current_before_comes_back_past_a_newer_gate(set_up: SetUp) -> None:
    gated = set_up(mode="off")
    old, new = gated.version(FAILS), gated.version(PASSES)
    gated.registry.move(old, "Production")
    gated.registry.move(new, "Production", archive=True)
    gated.finish_events()
    gated.model_tag("supabase.gate", "enforce")
    gated.registry.move(old, "Production", archive=True)
    assert gated.registry.stages() == {old: "Production", new: "Archived"}
    assert gated.verdict(old) == "Production: not judged: it was current before"


def test_a_gate_may_judge_those_that_come_back_as_well(set_up: SetUp) -> None:
    gated = set_up(mode="off", gate_rollbacks=True)
    version = gated.version(FAILS)
    gated.registry.move(version, "Production")
    gated.finish_events()
    gated.registry.move(version, "Archived")
    gated.model_tag("supabase.gate", "enforce")
    assert gated.refused(version) == REFUSAL


@pytest.mark.parametrize("state", [EventState.PENDING, EventState.SUPERSEDED, EventState.DEAD, EventState.DISCARDED])
def test_a_promotion_that_never_came_through_is_no_proof_of_having_been_current(
    set_up: SetUp, state: EventState
) -> None:
    gated = set_up(mode="off")
    version = gated.version(FAILS)
    gated.registry.move(version, "Production")
    with gated.registry.engine.begin() as connection:
        connection.execute(
            OUTBOX.update().values(state=state.value, finished_ms=None if state is EventState.PENDING else 1)
        )
    gated.registry.store.set_model_version_tag(MODEL, version, RegisteredModelTag("supabase.status", "superseded"))
    gated.model_tag("supabase.gate", "enforce")
    assert gated.refused(version) == REFUSAL


def test_having_been_current_in_one_channel_counts_for_no_other(set_up: SetUp) -> None:
    gated = set_up()
    version = gated.version(FAILS)
    gated.registry.move(version, "Staging")
    gated.finish_events()
    assert gated.refused(version) == REFUSAL


# --- two at once ------------------------------------------------------------------------------------------------------


def test_of_two_promotions_at_once_the_failing_one_is_refused_and_the_other_is_not(set_up: SetUp) -> None:
    gated = set_up()
    versions = [gated.version(FAILS), gated.version(PASSES)]
    together, outcomes = threading.Barrier(2), dict[int, str]()

    def promote(version: int) -> None:
        together.wait(10)
        try:
            gated.registry.move(version, "Production", archive=True)
            outcomes[version] = "moved"
        except MlflowException as error:
            outcomes[version] = str(error)

    threads = [threading.Thread(target=promote, args=[version]) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes == {1: REFUSAL, 2: "moved"}
    assert gated.registry.stages() == {1: "None", 2: "Production"}


def test_the_version_row_says_nothing_of_a_refused_promotion(set_up: SetUp) -> None:
    gated = set_up()
    gated.version(FAILS)
    gated.refused(1)
    with gated.registry.engine.connect() as connection:
        stages = connection.execute(sa.text("SELECT current_stage FROM model_versions")).scalars().all()
    assert stages == ["None"]
