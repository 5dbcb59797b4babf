"""The promotion gate's policy, without a database: every combination of criteria, mode, channel and history."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

import pytest

from supabase_bridge.core.criteria import GateMode, VersionMetrics, parse_gate
from supabase_bridge.core.documents import EvaluationProtocol
from supabase_bridge.core.events import DEFAULT_WORKSPACE, EventKind, NewEvent, Triggers
from supabase_bridge.outbox.freezes import Freeze, covering
from supabase_bridge.registry.promotion_gate import Allow, Refuse, Warn, decide
from supabase_bridge.settings.model import Settings

MODEL = "two_tower"


@dataclass(kw_only=True)
class Facts:
    """Facts about one model, as values: version 1 is current with recall 0.70, version 2 is promoted with 0.60."""

    tags: Mapping[str, str] = field(default_factory=dict)
    recall: Mapping[int, float] = field(default_factory=lambda: {1: 0.70, 2: 0.60})
    activated: frozenset[int] = frozenset({1})
    is_current: int | None = 1
    rejected: str | None = None
    protocols: Mapping[int, EvaluationProtocol] = field(default_factory=dict)
    frozen: Freeze | None = None

    def metrics(self, version: int) -> VersionMetrics:
        return VersionMetrics(values={"recall": self.recall[version]})

    def protocol(self, version: int) -> EvaluationProtocol | None:
        return self.protocols.get(version)

    def rejection(self, version: int) -> str | None:
        return self.rejected if version == 2 else None

    def was_current(self, version: int, triggers: Triggers) -> bool:
        return triggers.channel == "latest" and version in self.activated

    def freeze(self, triggers: Triggers) -> Freeze | None:
        return covering([] if self.frozen is None else [self.frozen], triggers.channel)

    def current(self, triggers: Triggers, *, other_than: int) -> int | None:
        return self.is_current if triggers.channel == "latest" and self.is_current != other_than else None


def promotion(version: int = 2, stage: str = "Production") -> NewEvent:
    return NewEvent(
        kind=EventKind.STAGE_CHANGED, workspace=DEFAULT_WORKSPACE, model=MODEL, version=version, stage=stage
    )


def settings_with(*criteria: str, mode: GateMode = GateMode.ENFORCE, gate_rollbacks: bool = False) -> Settings:
    gate = parse_gate({"criteria": list(criteria), "mode": mode.value})
    return Settings(gates={MODEL: gate}, gate_rollbacks=gate_rollbacks)


@pytest.mark.parametrize("criterion", ["recall >= 0.65", "recall >= current - 0.01"])
def test_a_version_that_fails_is_refused_warned_about_or_allowed_by_the_mode(criterion: str) -> None:
    decisions = [decide(promotion(), settings_with(criterion, mode=mode), Facts()) for mode in GateMode]
    assert [type(decision) for decision in decisions] == [Refuse, Warn, Allow]
    refused = decisions[0]
    assert isinstance(refused, Refuse)
    assert refused.verdict == f"failed: {refused.reason}"
    assert decisions[1] == Warn(verdict=refused.verdict)
    assert decisions[2] == Allow()


def test_a_version_that_passes_is_allowed_with_its_verdict() -> None:
    decision = decide(promotion(), settings_with("recall >= 0.5"), Facts())
    assert decision == Allow(verdict="passed: recall 0.600 meets recall >= 0.5")


@pytest.mark.parametrize(
    "event",
    [
        promotion(stage="Archived"),
        promotion(stage="Staging"),
        NewEvent(kind=EventKind.VERSION_CREATED, workspace=DEFAULT_WORKSPACE, model=MODEL, version=2),
        NewEvent(kind=EventKind.ALIAS_REMOVED, workspace=DEFAULT_WORKSPACE, model=MODEL, version=2, alias="champion"),
    ],
    ids=["a stage without a channel", "a channel without a gate", "a new version", "a removed alias"],
)
def test_an_event_that_moves_no_gated_channel_is_allowed_without_a_verdict(event: NewEvent) -> None:
    assert decide(event, settings_with("recall >= 0.65"), Facts()) == Allow()


def test_a_version_that_was_current_before_returns_without_a_check_unless_rollbacks_are_gated() -> None:
    criterion, facts = "recall >= 0.8", Facts(activated=frozenset({2}))
    assert decide(promotion(), settings_with(criterion), facts) == Allow(verdict="not judged: it was current before")
    assert isinstance(decide(promotion(), settings_with(criterion, gate_rollbacks=True), facts), Refuse)


@pytest.mark.parametrize("facts", [Facts(is_current=None), Facts(is_current=2)], ids=["none", "itself"])
def test_without_another_current_version_there_is_nothing_to_be_worse_than(facts: Facts) -> None:
    assert isinstance(decide(promotion(), settings_with("recall >= current"), facts), Allow)


def test_the_tags_of_the_registered_model_override_the_settings() -> None:
    stricter = Facts(tags={"supabase.gate.recall": ">= 0.65"})
    assert isinstance(decide(promotion(), settings_with("recall >= 0.5"), stricter), Refuse)
    off = Facts(tags={"supabase.gate": "off"})
    assert decide(promotion(), settings_with("recall >= 0.65"), off) == Allow()


def test_versions_of_two_evaluation_protocols_are_not_compared() -> None:
    settings = settings_with("recall not worse than current by more than 0.2")
    full, sampled = (EvaluationProtocol(candidates=candidates) for candidates in ("all", "100 sampled"))
    assert isinstance(decide(promotion(), settings, Facts(protocols={1: full, 2: full})), Allow)
    refused = decide(promotion(), settings, Facts(protocols={1: full, 2: sampled}))
    assert isinstance(refused, Refuse)
    assert refused.reason == (
        "recall cannot be compared with v1, which is current: its protocol has candidates '100 sampled', the other "
        "has 'all'"
    )
    assert isinstance(decide(promotion(), settings_with("recall >= 0.5"), Facts(protocols={2: sampled})), Allow)


def test_a_version_whose_files_cannot_become_a_release_is_refused_or_warned_about() -> None:
    facts = Facts(rejected="model.onnx is not a valid ONNX model: cut")
    refused = decide(promotion(stage="Staging"), Settings(), facts)
    assert isinstance(refused, Refuse)
    assert refused.reason.startswith("its files cannot become a release (see docs/bring-your-own-model.md): model.onnx")
    assert decide(promotion(), Settings(refuse_rejected=False), facts) == Warn(verdict=refused.verdict)
    assert decide(promotion(stage="Archived"), Settings(), facts) == Allow()
    before = Facts(rejected="the source was deleted", activated=frozenset({2}))
    assert decide(promotion(), Settings(), before) == Allow()


def test_a_malformed_tag_refuses_every_version() -> None:
    decision = decide(promotion(), settings_with(), Facts(tags={"supabase.gate.recall": "good"}))
    assert isinstance(decision, Refuse)
    assert "supabase.gate.recall is malformed" in decision.reason


def test_the_gate_of_a_renamed_model_is_found_by_its_folder() -> None:
    renamed = NewEvent(
        kind=EventKind.STAGE_CHANGED, workspace=DEFAULT_WORKSPACE, model="renamed", version=2, stage="Production"
    )
    settings = settings_with("recall >= 0.65")
    assert decide(renamed, settings, Facts()) == Allow()
    assert isinstance(decide(renamed, settings, Facts(tags={"supabase.key": MODEL})), Refuse)


# --- freezes ----------------------------------------------------------------------------------------------------------

FREEZE = Freeze(
    model=MODEL,
    channel="latest",
    reason="holiday sale",
    frozen_by="ada",
    since=datetime(2026, 12, 20, tzinfo=timezone.utc),
    until=datetime(2026, 12, 27, 8, tzinfo=timezone.utc),
)


def test_a_frozen_channel_refuses_a_new_version_with_reason_and_end_even_if_it_passes_the_gate() -> None:
    refused = decide(promotion(), settings_with("recall >= 0.5"), Facts(frozen=FREEZE))
    assert isinstance(refused, Refuse)
    assert f"{MODEL}@latest is frozen until 2026-12-27T08:00:00Z by ada: holiday sale" in refused.reason
    everything = dataclasses.replace(FREEZE, channel=None, until=None)
    refused = decide(promotion(), settings_with(), Facts(frozen=everything))
    assert isinstance(refused, Refuse)
    assert f"{MODEL} is frozen by ada: holiday sale" in refused.reason


def test_another_channel_of_the_model_is_not_frozen() -> None:
    assert decide(promotion(stage="Staging"), settings_with(), Facts(frozen=FREEZE)) == Allow()


def test_a_version_that_was_current_before_comes_back_during_a_freeze_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        decision = decide(promotion(version=1), settings_with(), Facts(frozen=FREEZE))
    assert isinstance(decision, Allow)
    assert "although two_tower@latest is frozen until" in str(decision.verdict)
    assert [record.getMessage() for record in caplog.records] == ["a version comes back during a freeze"]
    strict = settings_with("recall >= 0.9", gate_rollbacks=True)
    assert isinstance(decide(promotion(version=1), strict, Facts(frozen=FREEZE)), Refuse)
