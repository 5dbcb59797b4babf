"""Each message arrives at least once and in order, at receivers that hang, refuse and answer everything but 200."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from supabase_bridge.announce.deliveries import LEASE, DeliveryState
from supabase_bridge.announce.errors import DeliveryNotFoundError
from supabase_bridge.core.layout import ChannelPaths
from tests.support.announcing import SECRET, MakePost, Post, on_each_database, webhook
from tests.support.receivers import Answer, Receiver, receiving
from tests.support.served import until

STAGING = ChannelPaths(model_key="two_tower", channel="staging")


def sequences(receiver: Receiver, channel: str = "latest") -> list[int]:
    """The sequences that arrived, repetitions of the last one left out."""
    found: list[int] = []
    for one in receiver.taken:
        data = one.message["data"]
        if data["channel"] == channel and found[-1:] != [data["sequence"]]:
            found.append(data["sequence"])
    return found


def test_what_arrives_is_verified_by_the_package_standardwebhooks(make_post: MakePost) -> None:
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        post.switch(1)
        post.deliver()
        (one,) = receiver.taken
        assert Webhook(SECRET).verify(one.body, dict(one.headers))["type"] == "release.activated"
        assert one.headers["content-type"] == "application/json"
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(one.body.replace(b"latest", b"lotest"), dict(one.headers))


def test_both_secrets_verify_while_one_replaces_the_other(make_post: MakePost, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"
    monkeypatch.setenv("WEBHOOK_SECRET", f"{other} {SECRET}")
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        monkeypatch.setenv("WEBHOOK_SECRET", f"{other} {SECRET}")
        post.switch(1)
        post.deliver()
        (one,) = receiver.taken
        for secret in (other, SECRET):
            Webhook(secret).verify(one.body, dict(one.headers))
        with pytest.raises(WebhookVerificationError):
            Webhook("whsec_" + "A" * 32).verify(one.body, dict(one.headers))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(status=500), "it answered 500"),
        (Answer(status=404), "it answered 404"),
        (Answer(status=302, headers={"location": "/other"}), "it answered 302; redirects are not followed"),
        (Answer(drops=True), "it cannot be reached (RemoteProtocolError)"),
        (Answer(hangs=True), "it did not answer in time"),
    ],
    ids=["500", "404", "redirect", "dropped", "hangs"],
)
def test_a_message_that_is_not_taken_is_sent_again_with_the_same_id_and_body(
    make_post: MakePost, answer: Answer, reason: str
) -> None:
    with receiving() as receiver:
        post = make_post(api=webhook(receiver, timeout=0.2))
        receiver.choose = lambda number: answer if number < 1 else Answer()
        post.switch(1)
        post.deliver()
        (waiting,) = post.rows(DeliveryState.PENDING)
        assert (waiting.outcome, waiting.attempts, waiting.not_before is not None) == (reason, 1, True)
        post.make_due()
        post.deliver()
        assert len({(one.id, one.body) for one in receiver.requests}) == 1
        assert {one.path for one in receiver.requests} == {"/hook"}
        assert (len(receiver.requests), [row.state for row in post.rows()]) == (2, [DeliveryState.DONE])


def test_a_closed_destination_keeps_only_its_own_messages_waiting(make_post: MakePost) -> None:
    with receiving() as closed, receiving() as receiver:
        post = make_post(closed=webhook(closed), api=webhook(receiver))
        closed.close()
        post.switch(1)
        post.deliver()
        (waiting,) = post.rows(DeliveryState.PENDING)
        assert (waiting.destination, waiting.outcome) == ("closed", "it cannot be reached (ConnectError)")
        assert sequences(receiver) == [1]


@on_each_database
def test_a_failed_message_keeps_the_later_ones_of_its_channel_waiting_and_no_others(make_post: MakePost) -> None:
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        receiver.choose = lambda number: Answer(status=503 if number == 0 else 200)
        post.switch(1)
        post.switch(2)
        post.insert_new()
        post.switch(1, paths=STAGING)
        post.deliver()
        assert (sequences(receiver), sequences(receiver, "staging")) == ([], [1])
        post.make_due()
        post.deliver()
        assert sequences(receiver) == [1, 2]


@pytest.mark.parametrize("spelling", ["seconds", "time"])
def test_the_pause_that_a_destination_asks_for_is_kept_up_to_the_longest_pause(
    make_post: MakePost, spelling: str
) -> None:
    later = datetime.now(timezone.utc) + timedelta(hours=3)
    asked = "10000" if spelling == "seconds" else format_datetime(later, usegmt=True)
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        receiver.choose = lambda _: Answer(status=429, headers={"retry-after": asked})
        post.switch(1)
        before = datetime.now(timezone.utc)
        post.deliver()
        (waiting,) = post.rows(DeliveryState.PENDING)
        assert waiting.not_before is not None
        assert timedelta(seconds=1.9) <= waiting.not_before - before <= timedelta(seconds=10)
        assert len(receiver.requests) == 1


@on_each_database
def test_410_ends_that_destination_and_no_other_until_an_operator_resumes_it(make_post: MakePost) -> None:
    with receiving() as gone, receiving() as receiver:
        post = make_post(gone=webhook(gone), api=webhook(receiver))
        gone.choose = lambda _: Answer(status=410)
        post.switch(1)
        post.switch(2)
        post.deliver()
        assert [row.state for row in post.rows(destination="gone")] == [DeliveryState.DEAD] * 2
        post.switch(3)
        post.deliver()
        assert (len(gone.requests), sequences(receiver)) == (1, [1, 2, 3])
        assert "410" in (post.deliveries.destinations()["gone"].ended or "")
        gone.choose = lambda _: Answer()
        assert post.deliveries.resume("gone") == 2
        post.switch(4)
        post.deliver()
        assert sequences(gone) == [1, 2, 4]


@on_each_database
def test_a_message_becomes_a_dead_letter_after_the_days_of_the_setting_and_can_be_retried_and_discarded(
    make_post: MakePost,
) -> None:
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        receiver.choose = lambda _: Answer(status=500)
        post.switch(1)
        post.deliver()
        with post.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE supabase_bridge_deliveries SET started_ms = started_ms - 259200000")
        post.make_due()
        post.deliver()
        (dead,) = post.rows(DeliveryState.DEAD)
        assert (dead.outcome, dead.attempts) == ("it answered 500", 2)
        post.deliveries.retry(dead.id)
        receiver.choose = lambda _: Answer()
        post.deliver()
        assert sequences(receiver) == [1]
        post.switch(2)
        post.insert_new()
        (waiting,) = post.rows(DeliveryState.PENDING)
        post.deliveries.discard(waiting.id)
        post.deliver()
        assert sequences(receiver) == [1]
        with pytest.raises(DeliveryNotFoundError, match="that is dead or waiting"):
            post.deliveries.discard(waiting.id)


@on_each_database
def test_a_worker_killed_between_the_message_and_its_record_lets_another_one_send_it_again(
    make_post: MakePost,
) -> None:
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        post.switch(1)
        post.switch(2)
        post.insert_new()
        held = post.deliveries.claim("api", "killed")
        assert held is not None
        post.deliver()
        assert receiver.requests == []
        with post.engine.begin() as connection:
            late = int(LEASE.total_seconds() * 1_000) + 1
            connection.exec_driver_sql(
                f"UPDATE supabase_bridge_deliveries SET leased_until_ms = leased_until_ms - {late}"
                " WHERE leased_until_ms IS NOT NULL"
            )
        post.deliver()
        assert sequences(receiver) == [1, 2]
        post.deliveries.finish(held, "killed", DeliveryState.DEAD, "too late")
        assert {row.state for row in post.rows()} == {DeliveryState.DONE}


def test_many_switches_arrive_in_order_at_a_receiver_that_hangs_drops_and_answers_429(
    make_post: MakePost,
) -> None:
    """Four workers deliver, and four channels switch at the same time."""

    def mood(number: int) -> Answer:
        if number % 20 == 7:
            return Answer(hangs=True)
        if number % 9 == 4:
            return Answer(drops=True)
        return Answer(status=429, headers={"retry-after": "0"}) if number % 7 == 3 else Answer()

    channels = [ChannelPaths(model_key="two_tower", channel=name) for name in ("a", "b", "c", "d")]
    with receiving() as receiver:
        receiver.choose = mood
        post = make_post(api=webhook(receiver, timeout=0.2))
        stop = threading.Event()
        couriers = [threading.Thread(target=run_without_pauses, args=(post, stop)) for _ in range(4)]
        for courier in couriers:
            courier.start()
        try:
            for number in range(20):
                post.switch(number // 4 % 3 + 1, paths=channels[number % 4])
                post.insert_new()
            until(lambda: not post.rows(DeliveryState.PENDING), "all deliveries", limit_seconds=60)
        finally:
            stop.set()
            for courier in couriers:
                courier.join()
        assert [sequences(receiver, paths.channel) for paths in channels] == [list(range(1, 6))] * 4


def run_without_pauses(post: Post, stop: threading.Event) -> None:
    """Deliver like a worker, whose pauses between two attempts are over at once."""
    courier = post.courier("api")
    while not stop.is_set():
        courier.deliver_due(stop)
        with post.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE supabase_bridge_deliveries SET not_before_ms = 0 WHERE not_before_ms > 0 AND leased_by IS NULL"
            )
        stop.wait(0.02)
