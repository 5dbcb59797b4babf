"""The side effects of a worker: each is counted and named, and a process can be killed before or after any of them."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from supabase_bridge.core.events import Event, EventState
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.releases.verify import VerifiedRelease
from supabase_bridge.steps import preparation
from supabase_bridge.steps.command import run_command
from supabase_bridge.steps.records import StepRecords
from supabase_bridge.storage.base import Body, ObjectInfo, ObjectStore, Progress, PutOptions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient

_T = TypeVar("_T")
_RECORD, _COMMIT_TIME = StepRecords.record, StepRecords.commit_time


@dataclass(frozen=True)
class Kill:
    """When a worker dies: before or after its n-th side effect, from 1."""

    number: int
    moment: str


class Effects:
    """Counts side effects, writes their names to a file, and kills this process at one of them."""

    def __init__(self, log: Path, kill: Kill | None) -> None:
        self._log = log
        self._kill = kill
        self._count = 0
        self._counting = threading.Lock()  # Several files are placed at once.

    def __call__(self, name: str, act: Callable[[], _T]) -> _T:
        with self._counting, self._log.open("a") as log:
            self._count += 1
            number = self._count
            log.write(f"{name}\n")
        self._reached(number, "before")
        result = act()
        self._reached(number, "after")
        return result

    def _reached(self, number: int, moment: str) -> None:
        if self._kill == Kill(number, moment):
            os.kill(os.getpid(), signal.SIGKILL)


class CountedStore:
    """An object store whose every change is a side effect."""

    def __init__(self, store: ObjectStore, effects: Effects) -> None:
        self._store = store
        self._effects = effects

    @property
    def name(self) -> str:
        return self._store.name

    def ensure_bucket(self) -> None:
        self._effects("ensure_bucket", self._store.ensure_bucket)

    def create(self, key: str, body: bytes, options: PutOptions) -> None:
        self._effects(f"create {key}", lambda: self._store.create(key, body, options))

    def overwrite(
        self, key: str, body: Body, options: PutOptions, progress: Progress | None = None
    ) -> ObjectInfo | None:
        return self._effects(f"overwrite {key}", lambda: self._store.overwrite(key, body, options, progress))

    def read(self, key: str, *, limit_bytes: int) -> bytes:
        return self._store.read(key, limit_bytes=limit_bytes)

    def stream(self, key: str, *, fresh: bool = False) -> Iterator[bytes]:
        return self._store.stream(key, fresh=fresh)

    def read_part(self, info: ObjectInfo, *, start: int, size_bytes: int) -> bytes:
        return self._store.read_part(info, start=start, size_bytes=size_bytes)

    def stat(self, key: str) -> ObjectInfo:
        return self._store.stat(key)

    def list(self, prefix: str, *, bucket_exists: bool = False) -> Iterator[ObjectInfo]:
        return self._store.list(prefix, bucket_exists=bucket_exists)

    def copy_in(self, bucket: str, info: ObjectInfo, key: str, options: PutOptions) -> ObjectInfo | None:
        return self._effects(f"copy in {key}", lambda: self._store.copy_in(bucket, info, key, options))

    def move(self, key: str, target: str) -> None:
        self._effects(f"move to {target}", lambda: self._store.move(key, target))

    def delete(self, keys: Sequence[str]) -> None:
        self._effects(f"delete {keys}", lambda: self._store.delete(keys))

    def close(self) -> None:
        self._store.close()


class CountedOutbox(Outbox):
    """An outbox whose every change is a side effect; lease renewals aside, which come by the clock on the wall."""

    def __init__(self, engine: sa.Engine, effects: Effects) -> None:
        super().__init__(engine)
        self._effects = effects

    def claim(self, worker: str, **more: Any) -> Event | None:
        return self._effects("claim", lambda: super(CountedOutbox, self).claim(worker, **more))

    def start_upload(self, event: Event, version: int) -> None:
        start = super().start_upload
        self._effects(f"start upload {event.id}", lambda: start(event, version))

    def end_upload(self, event: Event) -> None:
        end = super().end_upload
        self._effects(f"end upload {event.id}", lambda: end(event))

    def supersede(self, event: Event, *arguments: Any, **more: Any) -> Sequence[int]:
        supersede = super().supersede
        return self._effects(f"supersede {event.id}", lambda: supersede(event, *arguments, **more))

    def finish(
        self, event: Event, worker: str, state: EventState, outcome: str, *, now: datetime | None = None
    ) -> None:
        finish = super().finish
        self._effects(f"finish {event.id}", lambda: finish(event, worker, state, outcome, now=now))

    def postpone(self, event: Event, worker: str, reason: str, **more: Any) -> None:
        postpone = super().postpone
        self._effects(f"postpone {event.id}: {reason}", lambda: postpone(event, worker, reason, **more))


def count_steps(effects: Effects) -> None:
    """Make each command of a step, and each record of one, a side effect of this process."""

    def counted_run(command: Sequence[str], *arguments: Any, **more: Any) -> str | None:
        return effects(f"run {command[-1]}", lambda: run_command(command, *arguments, **more))

    def counted_record(self: StepRecords, release: VerifiedRelease, step: str) -> None:
        effects(f"record {step}", lambda: _RECORD(self, release, step))

    def counted_time(self: StepRecords, event_id: int, channel: str, now: datetime) -> datetime:
        return effects(f"commit time {event_id}", lambda: _COMMIT_TIME(self, event_id, channel, now))

    vars(preparation)["run_command"] = counted_run
    for name, counted in (("record", counted_record), ("commit_time", counted_time)):
        setattr(StepRecords, name, counted)


class CountedClient(MlflowClient):
    """MLflow's client; every tag it writes is a side effect."""

    def count(self, effects: Effects) -> None:
        self._effects = effects

    def set_model_version_tag(self, *arguments: Any, **more: Any) -> Any:
        write = super().set_model_version_tag
        return self._effects(f"tag {arguments[1:3]}", lambda: write(*arguments, **more))

    def delete_model_version_tag(self, *arguments: Any, **more: Any) -> Any:
        delete = super().delete_model_version_tag
        return self._effects(f"untag {arguments[1:3]}", lambda: delete(*arguments, **more))

    def set_registered_model_tag(self, *arguments: Any, **more: Any) -> Any:
        write = super().set_registered_model_tag
        return self._effects(f"tag model {arguments[1]}", lambda: write(*arguments, **more))
