"""What a worker does when something fails: it says why on the version, and tries again whatever may pass."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from supabase_bridge.core.events import Event, EventState
from supabase_bridge.settings.model import Settings
from supabase_bridge.worker.context import Services
from supabase_bridge.worker.decide import Outcome, Wait
from supabase_bridge.worker.processor import Processor
from supabase_bridge.worker.worker import EventResult
from tests.support.scene import MLMODEL, MODEL, MakeScene, Scene, model_files, tiny_onnx
from tests.support.served import until
from tests.support.simulators.storage import CutAfterHandling, Fault, Respond, StorageSimulator
from tests.support.worker_scenes import working

HAS_WORKSPACES = find_spec("mlflow.store.model_registry.sqlalchemy_workspace_store") is not None
DOWN = Fault(action=Respond(500))


def assert_failed(scene: Scene, version: int, reason: str, *, status: str = "failed") -> None:
    """The version and its newest event say the same, and that there will be no other attempt."""
    newest = [event for event in scene.events() if event.version == version][-1]
    assert newest.state is EventState.DEAD
    assert reason in (newest.outcome or "")
    assert (scene.tags(version)["status"], scene.tags(version)["error"]) == (status, newest.outcome)


# --- for good ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"notes.txt": b""}, "two_tower version 1 has no ONNX file. Convert"),
        ({"model/MLmodel": MLMODEL, "two_tower_latest.pt": b""}, "has no ONNX file"),
        ({"model/MLmodel": MLMODEL, "model/model.onnx": b"no protobuf"}, "model.onnx is not a valid ONNX model"),
        ({"model/MLmodel": MLMODEL, "model/model.onnx": b""}, "model.onnx is not a valid ONNX model"),
        ({"model/model.onnx": tiny_onnx()[:-20]}, "model.onnx is not a valid ONNX model"),
        (
            {"model/a.onnx": tiny_onnx(1), "model/b.onnx": tiny_onnx(2)},
            "bring-your-own-model.md. Found: a.onnx, b.onnx",
        ),
        ({**model_files(), "model_meta.json": b"[]"}, "model_meta.json is not valid: expected a JSON object"),
        ({**model_files(), "model/MLmodel": b"\x00"}, "MLmodel is not valid"),
    ],
    ids=["nothing", "no model", "no protobuf", "empty", "cut", "ambiguous", "meta", "MLmodel"],
)
def test_a_version_that_cannot_be_a_release_is_given_up_at_once(
    directory_scene: Scene, files: Mapping[str, bytes], reason: str
) -> None:
    version = directory_scene.train(files=files)
    directory_scene.work()
    status = "failed" if "is not valid" in reason else "rejected"
    assert_failed(directory_scene, version, reason, status=status)
    assert directory_scene.objects() == {}


def test_a_file_name_that_is_no_text_is_shown_in_the_reason_and_holds_up_no_other_model(directory_scene: Scene) -> None:
    run_id = directory_scene.log_run(files={"model/a.onnx": tiny_onnx()})
    folder = Path(directory_scene.client.get_run(run_id).info.artifact_uri or "") / "model"
    (folder / os.fsdecode(b"caf\xe9.onnx")).write_bytes(tiny_onnx(2))
    version = directory_scene.register(run_id)
    other = directory_scene.train(model="other")
    with working(directory_scene):
        until(
            lambda: all(event.state is not EventState.PENDING for event in directory_scene.events()),
            "both models",
            limit_seconds=30,
        )
    failed, _ = directory_scene.events()
    assert failed.state is EventState.DEAD
    assert "Found: a.onnx, caf\\udce9.onnx" in (failed.outcome or "")
    assert directory_scene.tags(version)["error"] == failed.outcome
    assert directory_scene.tags(other, "other")["status"] == "mirrored"


class Unforeseen(Processor):
    """A processor that fails as nobody has foreseen, for one model: while it works, and while it says so."""

    def process(self, event: Event, now: datetime, *, still_held: Callable[[], None]) -> Outcome | Wait:
        if event.model == MODEL:
            raise ZeroDivisionError("unforeseen")
        return super().process(event, now, still_held=still_held)

    def report_failure(self, *_: object, **__: object) -> None:
        raise ZeroDivisionError("unforeseen too")


def with_unforeseen(scene: Scene) -> Scene:
    """The scene with that processor."""
    services = Services(
        settings=scene.settings,
        registry=scene.runtime.registry,
        outbox=scene.runtime.outbox,
        open_store=scene.runtime.stores,
    )
    return replace(scene, runtime=replace(scene.runtime, processor=Unforeseen(services)))


def test_a_failure_that_nobody_foresaw_is_logged_and_tried_again_and_holds_up_no_other_model(
    directory_scene: Scene, bridge_log: pytest.LogCaptureFixture
) -> None:
    scene = with_unforeseen(directory_scene)
    scene.train()
    other = scene.train(model="z")
    with working(scene):
        until(lambda: scene.tags(other, "z").get("status") == "mirrored", "the other model", limit_seconds=30)
    (event,) = [event for event in scene.events() if event.model == MODEL]
    assert event.state is EventState.PENDING
    assert (event.outcome or "").startswith("ZeroDivisionError in test_worker_failures.py:")
    assert event.leased_by is None
    said = {record.getMessage() for record in bridge_log.records}
    assert {"an event failed unexpectedly", "the result of an attempt could not be shown in MLflow"} <= said


def test_whoever_watches_and_fails_ends_no_running_worker(
    directory_scene: Scene, bridge_log: pytest.LogCaptureFixture
) -> None:
    scene = directory_scene
    versions = [scene.train(model=model) for model in ("a", "b")]

    def fail(_handled: EventResult) -> None:
        raise ZeroDivisionError

    with working(scene, on_handled=fail):
        for model, version in zip(("a", "b"), versions, strict=True):
            until(partial(_mirrored, scene, model, version), model, limit_seconds=30)
    assert "an event was not processed to its end" in bridge_log.text


def test_an_unexpected_exception_is_tried_five_times_and_then_the_event_is_dead_with_its_type_and_place(
    directory_scene: Scene,
) -> None:
    scene = with_unforeseen(directory_scene)
    scene.train()
    states = [result.state for _ in range(6) for result in scene.work_later()]
    assert states == [*[EventState.PENDING] * 4, EventState.DEAD]
    (event,) = scene.events()
    assert re.fullmatch(
        r"ZeroDivisionError in test_worker_failures\.py:\d+ \(process\): unforeseen", event.outcome or ""
    )


@pytest.mark.parametrize("end_time", [10**17, -(10**15)])
def test_a_run_that_ended_at_no_time_is_mirrored_by_the_time_of_its_registration(
    directory_scene: Scene, end_time: int
) -> None:
    run_id = directory_scene.log_run(running=True)
    directory_scene.client.set_terminated(run_id, end_time=end_time)
    version = directory_scene.register(run_id)
    directory_scene.work()
    assert directory_scene.tags(version)["status"] == "mirrored"


def test_a_version_that_fails_in_one_channel_delays_no_other_change_and_the_newest_supersedes_it(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    scene = supabase_scene
    good, bad, other = scene.train(), scene.train(), scene.train()
    scene.work()
    simulator.inject(Fault(action=Respond(500), path_contains="two_tower/staging"))
    scene.promote(bad, "Staging")
    scene.work()
    assert scene.tags(bad)["status"] == "retrying"
    scene.promote(good)
    scene.work()
    assert scene.current() == good
    simulator.clear_faults()
    scene.promote(other, "Staging")
    scene.work()
    assert scene.current("staging") == other
    (waiting,) = [event for event in scene.events() if event.version == bad and event.stage == "Staging"]
    assert (waiting.state, waiting.outcome) == (
        EventState.SUPERSEDED,
        f"version {other} came to staging after version {bad}",
    )
    assert scene.tags(bad)["status"] == "failed"


def _mirrored(scene: Scene, model: str, version: int) -> bool:
    return scene.tags(version, model).get("status") == "mirrored"


def test_a_run_id_of_the_wrong_form_is_given_up_at_once(directory_scene: Scene) -> None:
    version = directory_scene.train(tags={"supabase.run_id": "yesterday"})
    directory_scene.work()
    assert_failed(directory_scene, version, "'yesterday' is not a run_id")
    assert directory_scene.objects() == {}


@pytest.mark.parametrize("spelling", ["{}", "file://{}", "{}/../elsewhere"])
def test_a_source_outside_the_allowed_roots_is_not_read(directory_scene: Scene, tmp_path: Path, spelling: str) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "model.onnx").write_bytes(tiny_onnx())
    version = directory_scene.register(directory_scene.log_run(files={}), source=spelling.format(outside))
    directory_scene.work()
    assert_failed(directory_scene, version, "is not read: it is outside the allowed roots")
    assert directory_scene.objects() == {}


def test_a_link_out_of_the_allowed_roots_is_not_followed(directory_scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "secret.onnx").write_bytes(tiny_onnx())
    run_id = directory_scene.log_run(files={"model/MLmodel": MLMODEL})
    folder = Path(directory_scene.client.get_run(run_id).info.artifact_uri or "") / "model"
    (folder / "model.onnx").symlink_to(tmp_path / "secret.onnx")
    version = directory_scene.register(run_id)
    directory_scene.work()
    assert_failed(directory_scene, version, "is not read: a link to it leads outside the allowed roots")
    assert directory_scene.objects() == {}


def test_a_root_that_the_settings_add_is_read(
    make_scene: MakeScene, directory_settings: Settings, tmp_path: Path
) -> None:
    scene = make_scene(directory_settings, allowed_sources=(str(tmp_path / "elsewhere"),))
    directory = tmp_path / "elsewhere" / "model"
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(tiny_onnx())
    scene.client.create_registered_model(MODEL)
    version = int(scene.client.create_model_version(MODEL, str(directory)).version)
    scene.work()
    assert scene.tags(version)["status"] == "mirrored"


def test_a_promotion_that_failed_for_good_holds_up_no_later_one(scene: Scene) -> None:
    broken = scene.train(files={"model/model.onnx": b"no protobuf"})
    good = scene.train()
    scene.promote(broken)
    scene.promote(good)
    scene.promote(broken)
    scene.work()
    assert scene.head() is None
    assert_failed(scene, broken, "model.onnx is not a valid ONNX model", status="rejected")
    scene.promote(good)
    scene.work()
    assert scene.current() == good


def test_a_current_release_stays_active_when_something_about_it_fails(directory_scene: Scene) -> None:
    version = directory_scene.train()
    directory_scene.promote(version)
    directory_scene.work()
    directory_scene.promote(version, "Staging")
    with directory_scene.outage():
        directory_scene.work()
    tags = directory_scene.tags(version)
    assert tags["status"] == "active"
    assert "no bucket 'models'" in tags["error"]


# --- for now ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", ["500", "down"])
def test_an_outage_is_shown_and_waited_out(supabase_scene: Scene, simulator: StorageSimulator, outage: str) -> None:
    version = supabase_scene.train()
    simulator.inject(DOWN) if outage == "500" else simulator.stop()
    (handled,) = supabase_scene.work()  # once: it is put off, not tried again and again
    assert handled.state is EventState.PENDING
    assert supabase_scene.tags(version) == {"status": "retrying", "error": handled.outcome}
    assert "It may be tried again" in handled.outcome
    simulator.clear_faults() if outage == "500" else simulator.start()
    supabase_scene.work_later()
    assert supabase_scene.tags(version) == {"status": "mirrored", "run_id": "20251031T093831Z"}


def test_a_promotion_during_an_outage_gets_there_afterwards(supabase_scene: Scene, simulator: StorageSimulator) -> None:
    version = supabase_scene.train()
    supabase_scene.work()
    supabase_scene.promote(version)
    simulator.stop()
    supabase_scene.work()
    assert supabase_scene.tags(version)["status"] == "retrying"
    simulator.start()
    supabase_scene.work_later()
    assert supabase_scene.current() == version
    assert supabase_scene.tags(version)["status"] == "active"
    assert "error" not in supabase_scene.tags(version)


@pytest.mark.exhaustive
def test_published_at_is_when_the_promotion_was_first_taken_up(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    version = supabase_scene.train()
    supabase_scene.work()
    supabase_scene.promote(version)
    simulator.inject(Fault(action=Respond(500), method="POST", path_contains="latest/manifest.json"))
    supabase_scene.work()
    entry = f"{MODEL}/latest/history/00000001.json"
    committed = simulator.object_bytes("models", entry)
    simulator.clear_faults()
    for _ in range(2):
        supabase_scene.work_later()
    head, event = supabase_scene.head(), supabase_scene.events()[-1]
    assert head is not None
    assert (head.to_bytes(), event.state, event.attempts) == (committed, EventState.DONE, 2)
    assert head.current.published_at == whole_second(event.started_at)
    assert [key for key in supabase_scene.objects() if "history" in key] == [entry]


def test_a_switch_whose_answer_was_lost_is_made_once(supabase_scene: Scene, simulator: StorageSimulator) -> None:
    first, second = supabase_scene.train(), supabase_scene.train()
    supabase_scene.promote(first)
    supabase_scene.work()
    simulator.inject(Fault(action=CutAfterHandling(), method="POST", path_contains="object/move", times=1))
    supabase_scene.promote(second)
    supabase_scene.work()
    supabase_scene.work_later()
    head = supabase_scene.head()
    assert head is not None
    assert (head.sequence, head.current.model_version) == (2, second)


def test_what_fails_for_too_long_is_given_up(directory_scene: Scene) -> None:
    version = directory_scene.train()
    with directory_scene.outage():
        directory_scene.work()
        assert directory_scene.tags(version)["status"] == "retrying"
        directory_scene.work_later(directory_scene.settings.give_up_after)
        assert_failed(directory_scene, version, "no bucket 'models'")
    assert directory_scene.work_later(timedelta(days=30)) == []


def test_the_pauses_grow_to_the_cap(make_scene: MakeScene, directory_settings: Settings) -> None:
    scene = make_scene(directory_settings, retry_cap=timedelta(seconds=4))
    scene.train()
    with scene.outage():
        for longest in (1, 2, 4, 4):
            before = scene.clock()
            (handled,) = scene.work()
            due = scene.runtime.outbox.get(handled.event.id).not_before
            assert due is not None
            assert before + timedelta(seconds=longest / 2) <= due + timedelta(milliseconds=1)
            assert due <= scene.clock() + timedelta(seconds=longest)
            scene.clock.advance(timedelta(seconds=longest))


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"retry-after": "60"}, timedelta(seconds=60)),
        pytest.param(
            {"date": "Sun, 22 Nov 2026 16:55:19 GMT", "retry-after": "Sun, 22 Nov 2026 16:56:19 GMT"},
            timedelta(seconds=60),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param({"retry-after": "86400"}, timedelta(minutes=5), marks=pytest.mark.exhaustive),
    ],
)
def test_a_server_that_says_when_to_come_again_is_left_alone_until_then_or_for_the_longest_pause(
    supabase_scene: Scene, simulator: StorageSimulator, headers: dict[str, str], least: timedelta
) -> None:
    supabase_scene.train()
    simulator.inject(Fault(action=Respond(503, b"", headers)))
    before = supabase_scene.clock()
    (handled,) = supabase_scene.work()
    due = supabase_scene.runtime.outbox.get(handled.event.id).not_before
    assert due is not None
    assert before + least <= due + timedelta(milliseconds=1)
    assert due <= supabase_scene.clock() + least


# --- people help ------------------------------------------------------------------------------------------------------


def test_a_retry_after_the_cause_is_removed_succeeds(scene: Scene) -> None:
    run_id = scene.log_run(files={"model/model.onnx": b"no protobuf"})
    version = scene.register(run_id)
    scene.promote(version)
    scene.work()
    assert_failed(scene, version, "is not a valid ONNX model", status="rejected")
    (Path(scene.client.get_run(run_id).info.artifact_uri or "") / "model" / "model.onnx").write_bytes(tiny_onnx())
    for event in scene.events():
        scene.runtime.outbox.retry(event.id)
    scene.work()
    assert scene.current() == version
    assert scene.tags(version)["status"] == "active"
    assert "error" not in scene.tags(version)


def test_a_discarded_promotion_never_comes_back(directory_scene: Scene) -> None:
    first, second = directory_scene.train(), directory_scene.train()
    directory_scene.promote(first)
    directory_scene.work()
    directory_scene.promote(second)
    with directory_scene.outage():
        directory_scene.work()
        directory_scene.runtime.outbox.discard(directory_scene.events()[-1].id, now=directory_scene.clock())
    directory_scene.work_later()
    assert directory_scene.current() == first
    directory_scene.promote(second, "Archived")
    directory_scene.work()
    assert directory_scene.current() == first


# --- workspaces -------------------------------------------------------------------------------------------------------

if HAS_WORKSPACES:
    from mlflow.utils.workspace_context import WorkspaceContext

    @pytest.fixture
    def workspace_scene(make_scene: MakeScene, directory_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Scene:
        """A registry with a mapped workspace, team-a, and one that is not, team-b."""
        monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
        with WorkspaceContext("default"):
            # Where MLflow keeps artifacts when no server says otherwise.
            mlruns = str(Path("mlruns").absolute())
            scene = make_scene(directory_settings, workspaces={"team-a": "team-a-models"}, allowed_sources=(mlruns,))
        for name in ("team-a", "team-b"):
            scene.client.create_workspace(name)
        return scene

    def test_a_version_of_a_workspace_without_a_bucket_says_so(workspace_scene: Scene) -> None:
        with WorkspaceContext("team-b"):
            version = workspace_scene.train()
            workspace_scene.promote(version)
        workspace_scene.work()
        with WorkspaceContext("team-b"):
            assert_failed(workspace_scene, version, "workspace 'team-b' has no bucket of its own")
        assert workspace_scene.objects() == {}

    def test_a_workspace_with_a_bucket_has_its_releases_there(workspace_scene: Scene) -> None:
        with WorkspaceContext("team-a"):
            version = workspace_scene.train()
            workspace_scene.promote(version)
        workspace_scene.work()
        with WorkspaceContext("team-a"):
            assert workspace_scene.tags(version)["status"] == "active"
        keys = [info.key for info in workspace_scene.runtime.stores("team-a-models").list("")]
        assert "two_tower/latest/manifest.json" in keys
        assert workspace_scene.objects() == {}


def whole_second(moment: datetime | None) -> datetime:
    assert moment is not None
    return moment.replace(microsecond=0)


@pytest.mark.exhaustive
def test_a_switch_that_was_committed_and_given_up_is_published_by_a_retry_though_nobody_wants_it_now(
    make_scene: MakeScene, supabase_settings: Settings, simulator: StorageSimulator
) -> None:
    scene = make_scene(supabase_settings, give_up_after=timedelta(0))
    version = scene.train()
    scene.work()
    scene.promote(version)
    simulator.inject(Fault(action=Respond(500), method="POST", path_contains="latest/manifest.json"))
    scene.work()
    promotion = scene.events()[-1]
    assert promotion.state is EventState.DEAD
    simulator.clear_faults()
    scene.promote(version, "Archived")
    scene.runtime.outbox.discard(scene.events()[-1].id)
    scene.runtime.outbox.retry(promotion.id)
    scene.work()
    assert scene.runtime.outbox.get(promotion.id).state is EventState.DONE
    assert scene.current() == version
