"""A worker announces the switches of a real registry; the commands mark, list and test."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timezone
from functools import partial
from typing import Any

import pytest

from supabase_bridge.announce.deliveries import Deliveries, DeliveryState
from supabase_bridge.app.rollback import roll_back
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.layout import ChannelPaths, RunId
from supabase_bridge.reconcile.release_check import Scope
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.settings.sources import process_user
from supabase_bridge.worker.context import Services
from supabase_bridge.worker.processor import Processor
from supabase_bridge.worker.worker import Worker
from tests.support.announcing import SECRET, webhook
from tests.support.commands import invoke
from tests.support.receivers import Answer, Receiver, receiving
from tests.support.scene import MODEL, Scene
from tests.support.served import until
from tests.support.worker_scenes import MakeWorkerScene, working

ALL_KINDS = ["release.activated", "release.failed", "release.rejected", "release.mirrored", "release.left"]


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)


def kinds(receiver: Receiver) -> list[tuple[str, Any]]:
    return [(one.message["type"], one.message["data"].get("model_version")) for one in receiver.taken]


def deliver(scene: Scene) -> None:
    scene.runtime.announcer.deliver_due(threading.Event())


def test_a_running_worker_announces_each_switch_at_once_and_in_order(make_worker_scene: MakeWorkerScene) -> None:
    with receiving() as receiver:
        scene = make_worker_scene(announce={"api": webhook(receiver)})
        versions = scene.train(), scene.train()
        scene.runtime.announcer.open()
        with working(scene):
            for count, version in enumerate((versions[0], versions[1], versions[0]), start=1):
                scene.promote(version)
                until(partial(has_taken, receiver, count), "the announcement", limit_seconds=30)
        found = [one.message["data"] for one in receiver.taken]
        assert [data["current"]["model_version"] for data in found] == [versions[0], versions[1], versions[0]]
        assert [data["sequence"] for data in found] == [1, 2, 3]
        assert [data["rollback"] for data in found] == [False, False, True]
        assert {data["by"] for data in found} == {process_user()}


def test_a_rollback_without_mlflow_is_found_by_the_next_pass(make_worker_scene: MakeWorkerScene) -> None:
    with receiving() as receiver:
        scene = make_worker_scene(announce={"api": webhook(receiver)})
        scene.runtime.announcer.open()
        versions = scene.train(), scene.train()
        scene.promote(versions[0])
        scene.work()
        first = scene.head()
        assert first is not None
        scene.promote(versions[1])
        scene.work()
        deliver(scene)
        paths = ChannelPaths(model_key=MODEL, channel="latest")
        run_id = RunId.parse(first.current.run_id)
        activate_manually(scene.store, paths, run_id, now=datetime.now(timezone.utc))
        deliver(scene)
        assert len(receiver.taken) == 2
        list(scene.runtime.reconciler().run(now=scene.clock(), scope=Scope.INCREMENTAL))
        deliver(scene)
        last = receiver.taken[-1].message["data"]
        assert (len(receiver.taken), last["by_hand"], last["rollback"]) == (3, True, True)


def test_what_was_mirrored_given_up_rejected_or_left_is_announced_to_those_who_ask_for_it(
    make_worker_scene: MakeWorkerScene,
) -> None:
    with receiving() as all_kinds, receiving() as plain:
        scene = make_worker_scene(announce={"all": webhook(all_kinds, events=ALL_KINDS), "plain": webhook(plain)})
        scene.runtime.announcer.open()
        deliver(scene)
        good = scene.train()
        scene.promote(good)
        scene.work()
        deliver(scene)
        bad = scene.train(files={"notes.txt": b"no model"})
        outside = scene.register(scene.log_run(), source="s3://another-bucket/model")
        scene.work()
        scene.promote(good, "Archived")
        scene.work()
        deliver(scene)
        deliver(scene)
        assert sorted(kinds(all_kinds), key=str) == [
            ("release.activated", None),
            ("release.failed", outside),
            ("release.left", good),
            ("release.mirrored", good),
            ("release.rejected", bad),
        ]
        assert kinds(plain) == [("release.activated", None)]
        failed = next(one.message["data"] for one in all_kinds.taken if one.message["type"] == "release.failed")
        assert "s3://another-bucket/model" in failed["reason"]
        left = next(one.message["data"] for one in all_kinds.taken if one.message["type"] == "release.left")
        assert (left["left"], left["channel"], left["registered_model"]) == ("stage Production", "latest", MODEL)


def test_the_command_worker_once_delivers_and_status_shows_what_failed(
    make_worker_scene: MakeWorkerScene,
) -> None:
    with receiving() as receiver:
        scene = make_worker_scene()
        settings = f'[announce.api]\nurl = "{receiver.url}"\nsecret_env = "WEBHOOK_SECRET"\n'
        (scene.settings.home / "supabase-bridge.toml").write_text(settings)
        url = scene.settings.database_url
        environment = {"WEBHOOK_SECRET": SECRET, "SUPABASE_BRIDGE_DATABASE_URL": url}
        environment |= {"SUPABASE_URL": scene.settings.supabase_url or ""}
        assert scene.settings.service_key is not None
        environment |= {"SUPABASE_SECRET_KEY": scene.settings.service_key.get_secret_value()}
        home = ["--home", str(scene.settings.home)]

        def said(*command: str) -> str:
            one = invoke(*command, *home, environment=environment)
            assert one.code == 0, one.err
            return one.out + one.err

        Deliveries(scene.runtime.outbox.engine).register(["api"])
        receiver.choose = lambda _: Answer(status=410)
        scene.promote(scene.train())
        said("worker", "--once")
        assert len(receiver.requests) == 1
        assert "announcements to api: 0 waiting, 1 failed; it has ended: it answered 410" in said("status")
        listed = said("announcements", "list")
        assert "release.activated two_tower@latest to api [dead]: it answered 410" in listed
        assert "supabase-bridge announcements retry api resumes it" in listed
        (one,) = [json.loads(line) for line in said("announcements", "list", "--json").splitlines() if line[0] == "{"]
        assert (one["destination"], one["state"], one["message_id"]) == ("api", "dead", receiver.requests[0].id)
        assert "api: 1 announcements are due" in said("announcements", "retry", "api")
        receiver.choose = lambda _: Answer()
        said("worker", "--once")
        assert [one.id for one in receiver.taken] == [receiver.requests[0].id]
        assert "no waiting and no failed announcements" in said("announcements", "list")
        assert "announcements" not in said("status")
        assert "api took the test message" in said("announcements", "test", "api")
        assert receiver.taken[-1].message["data"] == {"destination": "api"}
        assert invoke("announcements", "test", "other", *home, environment=environment).code == 2
        assert invoke("announcements", "discard", "1", *home, environment=environment).code == 1


def test_a_worker_does_not_start_with_a_destination_that_it_cannot_use_and_a_rollback_needs_no_secret(
    make_worker_scene: MakeWorkerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEBHOOK_SECRET")
    with receiving() as receiver:
        scene = make_worker_scene(announce={"api": webhook(receiver)})
        versions = scene.train(), scene.train()
        for version in versions:
            scene.promote(version)
            scene.work()
        with pytest.raises(SettingsError, match="the environment variable WEBHOOK_SECRET is not set"):
            scene.runtime.announcer.open()
        Deliveries(scene.runtime.outbox.engine).register(["api"])
        roll_back(scene.runtime, MODEL, channel="latest", run_id=None)
        assert scene.current() == versions[0]
        monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
        scene.runtime.announcer.open()
        deliver(scene)
        assert receiver.taken[-1].message["data"]["rollback"] is True


def test_a_switch_is_announced_whose_worker_was_killed_between_the_commit_and_the_mark(
    make_worker_scene: MakeWorkerScene,
) -> None:
    with receiving() as receiver:
        scene = make_worker_scene(announce={"api": webhook(receiver)})
        runtime = scene.runtime
        runtime.announcer.open()
        scene.train()
        scene.work()

        def killed(_bucket: str, _paths: ChannelPaths) -> None:
            raise KeyboardInterrupt

        services = Services(
            settings=scene.settings,
            registry=runtime.registry,
            outbox=runtime.outbox,
            open_store=runtime.stores,
            on_switch=(killed,),
        )
        first = Worker(name="killed", settings=scene.settings, outbox=runtime.outbox, processor=Processor(services))
        scene.promote(1)
        with pytest.raises(KeyboardInterrupt):
            first.drain()
        assert scene.current() == 1
        deliver(scene)
        assert receiver.taken == []
        scene.clock.advance(2 * scene.settings.lease)
        scene.work()
        deliver(scene)
        assert [one.message["data"]["sequence"] for one in receiver.taken] == [1]


@pytest.mark.exhaustive
@pytest.mark.parametrize("make_worker_scene", ["postgresql"], indirect=True)
def test_a_hundred_switches_of_four_models_with_concurrency_4_arrive_in_order(
    make_worker_scene: MakeWorkerScene,
) -> None:
    def mood(number: int) -> Answer:
        if number % 11 == 3:
            return Answer(drops=True)
        return Answer(status=429, headers={"retry-after": "1"}) if number % 13 == 5 else Answer(hangs=number % 17 == 8)

    models = [f"model_{number}" for number in range(4)]
    with receiving() as receiver:
        receiver.choose = mood
        scene = make_worker_scene(announce={"api": webhook(receiver, timeout=0.5)}, concurrency=4, retry_cap=1)
        versions = {model: (scene.train(model=model), scene.train(model=model)) for model in models}
        scene.work()
        scene.runtime.announcer.open()
        with working(scene):
            for number in range(25):
                for model in models:
                    scene.promote(versions[model][number % 2], model=model)
                for model in models:
                    until(partial(is_at, scene, model, number + 1), "the switch", limit_seconds=30)
            deliveries = Deliveries(scene.runtime.outbox.engine)
            until(
                lambda: not list(deliveries.messages(states=[DeliveryState.PENDING])) and len(receiver.taken) >= 100,
                "all announcements",
                limit_seconds=120,
            )
        for model in models:
            found = [one.message["data"] for one in receiver.taken]
            order = [data["sequence"] for data in found if data["model"] == model]
            assert list(dict.fromkeys(order)) == list(range(1, 26))
            assert order == sorted(order)


def has_taken(receiver: Receiver, count: int) -> bool:
    return len(receiver.taken) == count


def is_at(scene: Scene, model: str, sequence: int) -> bool:
    head = Channel(scene.store, ChannelPaths(model_key=model, channel="latest")).read_head().head
    return head is not None and head.sequence == sequence
