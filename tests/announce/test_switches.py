"""Announcements follow the release log: each switch is announced once, also one that another program wrote."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timezone

from supabase_bridge.announce.deliveries import DeliveryState
from supabase_bridge.core.documents import Cause
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.manual import reissue
from supabase_bridge.releases.verify import verify_release
from tests.support.announcing import BUCKET, MakePost, Post, on_each_database, webhook
from tests.support.receivers import receiving
from tests.support.small_releases import LATEST, keys_of, run_id


def switches(post: Post) -> list[tuple[str, int, str]]:
    """The channel, sequence and run_id of each delivery, in their order."""
    found = []
    for row in post.rows():
        data = json.loads(row.body)["data"]
        found.append((data["channel"], data["sequence"], data["current"]["run_id"]))
    return found


def test_a_switch_is_announced_with_what_was_before_and_with_its_metrics(make_post: MakePost) -> None:
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        post.switch(1)
        post.switch(2)
        entry = post.switch(1)
        post.deliver()
        first, _, third = (one.message for one in receiver.taken)
        assert first["data"]["previous"] is None
        assert third == {
            "type": "release.activated",
            "timestamp": third["data"]["current"]["published_at"],
            "data": {
                "model": "two_tower",
                "channel": "latest",
                "sequence": 3,
                "bucket": "models",
                "current": {
                    "run_id": str(run_id(1)),
                    "model_version": 1,
                    "published_at": entry.to_object()["current"]["published_at"],
                },
                "previous": {"run_id": str(run_id(2)), "model_version": 2},
                "metrics": {"auc": {"before": 0.9, "after": 0.9}},
                "release_notes": entry.release_notes,
                "by": "ann",
                "by_hand": True,
                "rollback": True,
                "manifest_path": "two_tower/latest/manifest.json",
            },
        }
        assert [one.message["data"]["rollback"] for one in receiver.taken] == [False, False, True]
        assert len({one.id for one in receiver.taken}) == 3


def test_an_entry_that_moves_no_pointer_is_not_announced(make_post: MakePost) -> None:
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        post.switch(1)
        reissue(post.store, LATEST, now=datetime.now(timezone.utc))
        channel = Channel(post.store, LATEST)
        release = verify_release(post.store, keys_of(1))
        again = Cause(registry_id="ours", event_id=7)
        channel.activate(release, head=channel.read_head().head, cause=again, published_at=datetime.now(timezone.utc))
        post.log.mark(BUCKET, LATEST)
        post.insert_new()
        assert switches(post) == [("latest", 1, str(run_id(1)))]


def test_a_switch_of_a_writer_without_a_database_is_found_when_the_channel_is_marked(make_post: MakePost) -> None:
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        for number in (1, 2, 3):
            post.switch(number, mark=False)
        assert post.insert_new() == 0
        post.log.mark(BUCKET, LATEST)
        assert (post.insert_new(), post.insert_new()) == (3, 0)
        assert [sequence for _, sequence, _ in switches(post)] == [1, 2, 3]


@on_each_database
def test_a_new_destination_hears_of_what_happens_from_now_on(make_post: MakePost) -> None:
    with receiving() as receiver:
        make_post(old=webhook(receiver)).switch(1)
        post = make_post(old=webhook(receiver), new=webhook(receiver))
        post.switch(2)
        post.insert_new()
        found = [(row.destination, row.channel, json.loads(row.body)["data"]["sequence"]) for row in post.rows()]
        assert sorted(found) == [("new", "latest", 2), ("old", "latest", 1), ("old", "latest", 2)]


def test_the_first_destination_does_not_hear_of_a_long_history(make_post: MakePost) -> None:
    with receiving() as receiver:
        post = make_post(register=False, api=webhook(receiver))
        for number in (1, 2, 3):
            post.switch(number)
        post.deliveries.register(["api"])
        assert post.insert_new() == 0
        post.switch(1)
        assert (post.insert_new(), switches(post)) == (1, [("latest", 4, str(run_id(1)))])


@on_each_database
def test_a_log_that_was_emptied_is_announced_again_under_other_ids(make_post: MakePost) -> None:
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        post.switch(1)
        post.switch(2)
        post.insert_new()
        post.store.delete([info.key for info in post.store.list("two_tower/latest/")])
        post.switch(2)
        post.insert_new()
        assert [sequence for _, sequence, _ in switches(post)] == [1, 2, 1]
        assert len({row.message_id for row in post.rows()}) == 3


def test_a_switch_waits_for_none_of_the_channels_that_were_marked_before_it(make_post: MakePost) -> None:
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        for number in range(25):
            post.log.mark(BUCKET, ChannelPaths(model_key=f"m{number}", channel="latest"))
        post.switch(1)
        first, *others = post.log.marked()
        assert (first.paths, len(others)) == (LATEST, 9)
        assert len(post.log.marked(more=100)) == 26
        while marked := post.log.marked():
            for one in marked:
                post.log.announce(one)
        assert [sequence for _, sequence, _ in switches(post)] == [1]


def test_only_the_models_and_channels_that_a_destination_names_are_announced_to_it(make_post: MakePost) -> None:
    staging = ChannelPaths(model_key="two_tower", channel="staging")
    with receiving() as receiver:
        post = make_post(
            all=webhook(receiver),
            staging=webhook(receiver, channels=["staging"]),
            other=webhook(receiver, models=["another"]),
        )
        post.switch(1)
        post.switch(1, paths=staging)
        post.insert_new()
        found = sorted((row.destination, row.channel) for row in post.rows())
        assert found == [("all", "latest"), ("all", "staging"), ("staging", "staging")]


@on_each_database
def test_workers_that_find_the_same_switches_at_the_same_time_insert_each_once_and_in_order(
    make_post: MakePost,
) -> None:
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        stop = threading.Event()
        workers = [threading.Thread(target=insert_until, args=(post, stop)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for number in range(8):
            post.switch(number % 3 + 1)
        stop.set()
        for worker in workers:
            worker.join()
        post.insert_new()
        assert [sequence for _, sequence, _ in switches(post)] == list(range(1, 9))
        assert {row.state for row in post.rows()} == {DeliveryState.PENDING}


def insert_until(post: Post, stop: threading.Event) -> None:
    while not stop.wait(0.005):
        post.insert_new()
