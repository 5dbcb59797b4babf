"""A watch: it reports each switch once, outlives outages, and ends when it is told to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from supabase_bridge import Resolver
from supabase_bridge.client.release import PulledRelease, Release
from supabase_bridge.client.watch import Watch
from supabase_bridge.core.errors import InvalidNameError, SettingsError
from supabase_bridge.storage.errors import StoreUnavailableError
from tests.support.consumers import FIRST, MODEL, SECOND, Bucket
from tests.support.simulators.storage import StorageSimulator

SOON = timedelta(milliseconds=5)
LIMIT_SECONDS = 10


class Served:
    """What a watch looks at: a release, or an outage."""

    def __init__(self, run_id: str | None) -> None:
        self.run_id = run_id
        self.looked = threading.Semaphore(0)
        self.reported: queue.Queue[str] = queue.Queue()

    def look(self) -> Release:
        self.looked.release()
        if self.run_id is None:
            raise StoreUnavailableError("a store", "reading", "it is down")
        return release(self.run_id)

    def watch(self, *, fallback: str | None = None, stop: threading.Event | None = None) -> Watch[Release]:
        return Watch(
            poll=self.look,
            prepare=lambda found: found,
            callback=lambda found: self.reported.put(found.run_id),
            last_known=lambda: None if fallback is None else release(fallback),
            interval=SOON,
            stop=stop,
        ).start()

    def more_looks(self, count: int = 3) -> None:
        """Wait until so many looks have begun."""
        for _ in range(count):
            assert self.looked.acquire(timeout=LIMIT_SECONDS)


def release(run_id: str) -> Release:
    bucket = Bucket(lambda _key, _data: None)
    manifest = bucket.manifest(run_id, sequence=1)
    return Release(model=MODEL, run_id=run_id, files=manifest.current.files, signed=False, channel="latest")


def test_what_is_current_is_reported_at_the_start_and_each_switch_once() -> None:
    served = Served(FIRST)
    with served.watch():
        assert served.reported.get(timeout=LIMIT_SECONDS) == FIRST
        served.more_looks()
        served.run_id = SECOND
        assert served.reported.get(timeout=LIMIT_SECONDS) == SECOND
        served.more_looks()
        served.run_id = FIRST
        assert served.reported.get(timeout=LIMIT_SECONDS) == FIRST
        served.more_looks()
    assert served.reported.empty()


def test_an_outage_reports_nothing_and_the_switch_after_it_comes() -> None:
    served = Served(FIRST)
    with served.watch():
        assert served.reported.get(timeout=LIMIT_SECONDS) == FIRST
        served.run_id = None
        served.more_looks()
        served.run_id = SECOND
        assert served.reported.get(timeout=LIMIT_SECONDS) == SECOND
    assert served.reported.empty()


def test_an_outage_at_the_start_serves_what_was_current_when_last_known() -> None:
    served = Served(None)
    with served.watch(fallback=FIRST):
        assert served.reported.get(timeout=LIMIT_SECONDS) == FIRST
        served.more_looks()
        served.run_id = FIRST
        served.more_looks()
    assert served.reported.empty()


def test_failing_looks_come_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Served(None).watch()
    watch.stop()
    pauses = []
    for failures in (0, 1, 2, 8, 500):
        monkeypatch.setattr(watch, "_failures", failures)
        pauses.append(watch._pause_seconds() / SOON.total_seconds())
    bounds = [(1, 1.25), (2, 2.5), (4, 5), (256, 320), (60_000, 75_000)]
    assert all(low <= pause <= high for pause, (low, high) in zip(pauses, bounds, strict=True)), pauses


def test_a_callback_that_fails_is_logged_and_the_watch_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    served = Served(FIRST)
    told: queue.Queue[str] = queue.Queue()

    def callback(found: Release) -> None:
        told.put(found.run_id)
        raise RuntimeError("the application is not ready")

    with Watch(
        poll=served.look, prepare=lambda found: found, callback=callback, last_known=lambda: None, interval=SOON
    ).start():
        assert told.get(timeout=LIMIT_SECONDS) == FIRST
        served.more_looks()
        served.run_id = SECOND
        assert told.get(timeout=LIMIT_SECONDS) == SECOND
        served.more_looks()
    assert told.empty()
    assert "the application is not ready" in caplog.text


def test_a_release_that_could_not_be_prepared_is_tried_again() -> None:
    served = Served(FIRST)
    fails = iter([True, True, False])

    def prepare(found: Release) -> Release:
        if next(fails, False):
            raise StoreUnavailableError("a store", "reading", "it is down")
        return found

    watch = Watch(
        poll=served.look,
        prepare=prepare,
        callback=lambda found: served.reported.put(found.run_id),
        last_known=lambda: None,
        interval=SOON,
    ).start()
    assert served.reported.get(timeout=LIMIT_SECONDS) == FIRST
    watch.stop()


def test_a_watch_ends_by_its_event_and_from_its_callback() -> None:
    stop = threading.Event()
    watch = Served(FIRST).watch(stop=stop)
    stop.set()
    assert watch.wait(timedelta(seconds=LIMIT_SECONDS))
    watches: queue.Queue[Watch[Release]] = queue.Queue()
    served = Served(FIRST)
    other = Watch(
        poll=served.look,
        prepare=lambda found: found,
        callback=lambda _found: watches.get(timeout=LIMIT_SECONDS).stop(),
        last_known=lambda: None,
        interval=SOON,
    )
    watches.put(other)
    assert other.start().wait(timedelta(seconds=LIMIT_SECONDS))


@pytest.fixture
def simulator() -> Iterator[StorageSimulator]:
    with StorageSimulator() as running:
        yield running


def test_a_resolvers_watch_pulls_before_it_reports_and_serves_from_the_cache_in_an_outage(
    simulator: StorageSimulator, tmp_path: Path
) -> None:
    Bucket.of_simulator(simulator).promote(FIRST)
    reported: queue.Queue[PulledRelease] = queue.Queue()

    def resolver() -> Resolver:
        return Resolver(url=simulator.url, key=simulator.service_key, cache_dir=tmp_path)

    with resolver() as first, first.watch(MODEL, reported.put, pull=True):
        assert reported.get(timeout=LIMIT_SECONDS).onnx.read_bytes()
    simulator.stop()
    with resolver() as second, second.watch(MODEL, reported.put, pull=True):
        found = reported.get(timeout=LIMIT_SECONDS)
    assert (found.release.run_id, found.onnx.exists()) == (FIRST, True)


def test_a_watch_does_not_look_more_often_than_once_a_second(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="1 second"):
        Resolver(directory=tmp_path).watch(MODEL, lambda _found: None, interval=timedelta(seconds=0.9))


def test_only_a_channel_can_be_watched(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="never switches"):
        Resolver(directory=tmp_path).watch(f"{MODEL}/{FIRST}", lambda _found: None)
    with pytest.raises(InvalidNameError):
        Resolver(directory=tmp_path).watch(f"{MODEL}@", lambda _found: None)


def test_a_watch_reads_each_manifest_once_and_asks_otherwise_whether_it_changed(tmp_path: Path) -> None:
    with StorageSimulator() as simulator:
        bucket = Bucket.of_simulator(simulator)
        reported: queue.Queue[str] = queue.Queue()
        key = f"/{MODEL}/latest/manifest.json"

        def asked() -> list[int]:
            return [call.status for call in simulator.calls() if call.path.endswith(key)]

        def until_unchanged(times: int) -> None:
            begun, moment = len(asked()), threading.Event()
            for _ in range(2_000):
                if asked()[begun:].count(304) >= times:
                    return
                moment.wait(0.005)
            raise AssertionError(asked())

        bucket.promote(FIRST)
        simulator.reset_calls()
        arguments = {"url": simulator.url, "key": simulator.service_key, "cache_dir": tmp_path}
        with (
            Resolver(**arguments) as resolver,  # type: ignore[arg-type]  # settings by name
            Watch(
                poll=lambda: resolver.resolve(MODEL),
                prepare=resolver.pull,
                callback=lambda found: reported.put(found.release.run_id),
                last_known=lambda: None,
                interval=SOON,
            ).start(),
        ):
            assert reported.get(timeout=LIMIT_SECONDS) == FIRST
            until_unchanged(5)
            assert (asked().count(200), set(asked())) == (1, {200, 304})
            bucket.promote(SECOND)
            assert reported.get(timeout=LIMIT_SECONDS) == SECOND
            until_unchanged(5)
        assert (asked().count(200), set(asked())) == (2, {200, 304})
        assert [simulator.count("GET", f"{run_id}.onnx") for run_id in (FIRST, SECOND)] == [1, 1]


def test_a_watch_with_an_interval_beyond_what_a_timer_can_count_goes_on_waiting(tmp_path: Path) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    reported: queue.Queue[str] = queue.Queue()
    resolver = Resolver(directory=tmp_path / "models")
    with resolver.watch(MODEL, lambda found: reported.put(found.run_id), interval=timedelta.max) as watch:
        assert reported.get(timeout=LIMIT_SECONDS) == FIRST
        assert not watch.wait(timedelta(seconds=0.1))
