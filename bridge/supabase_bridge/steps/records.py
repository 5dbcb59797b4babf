"""What the outbox's database remembers of steps: those that succeeded, and the time of an activation's commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from supabase_bridge.core.layout import ReleasePaths
from supabase_bridge.outbox.database import DatabaseNow, database_errors, to_ms, to_time
from supabase_bridge.outbox.errors import ContentionError
from supabase_bridge.outbox.tables import ACTIVATIONS, STEPS
from supabase_bridge.releases.verify import VerifiedRelease


class StepRecords:
    """The records of one bucket. Thread-safe.

    Raises (every method):
        RegistryUnavailableError: the database did not answer.
    """

    def __init__(self, engine: Engine, bucket: str) -> None:
        self._engine = engine
        self._bucket = bucket

    def succeeded(self, release: VerifiedRelease) -> frozenset[str]:
        """Return the names of the steps that succeeded for a release and its ONNX file."""
        with self._transaction() as connection:
            query = sa.select(STEPS.c.step).where(*self._of(release))
            return frozenset(connection.execute(query).scalars())

    def record(self, release: VerifiedRelease, step: str) -> None:
        """Remember that a step succeeded. Idempotent."""
        with suppress(ContentionError), self._transaction() as connection:
            values = {"step": step, "finished_ms": DatabaseNow(), **self._key(release)}
            connection.execute(STEPS.insert().values(values))

    def forget(self, release: VerifiedRelease, step: str) -> None:
        """Forget that a step succeeded: its result is gone."""
        with self._transaction() as connection:
            connection.execute(STEPS.delete().where(*self._of(release), STEPS.c.step == step))

    def forget_release(self, paths: ReleasePaths) -> None:
        """Forget every step of a release, whose results are dropped with it."""
        facts = {"bucket": self._bucket, "model_key": paths.model_key, "run_id": str(paths.run_id)}
        with self._transaction() as connection:
            connection.execute(STEPS.delete().where(*(STEPS.c[name] == value for name, value in facts.items())))

    def commit_time(self, event_id: int, channel: str, now: datetime) -> datetime:
        """Return the time at which an event's activation in a channel was first about to be committed.

        Args:
            now: That time, if this is the first call.
        """
        query = sa.select(ACTIVATIONS.c.published_ms).where(
            ACTIVATIONS.c.event_id == event_id, ACTIVATIONS.c.channel == channel
        )
        values = {"event_id": event_id, "channel": channel, "published_ms": to_ms(now)}
        with suppress(ContentionError), self._transaction() as connection:
            if connection.execute(query).scalar_one_or_none() is None:
                connection.execute(ACTIVATIONS.insert().values(values))
        with self._transaction() as connection:
            return to_time(connection.execute(query).scalar_one())

    def _key(self, release: VerifiedRelease) -> dict[str, str]:
        paths = release.paths
        return {
            "bucket": self._bucket,
            "model_key": paths.model_key,
            "run_id": str(paths.run_id),
            "onnx_sha256": release.files[paths.onnx_name].sha256,
        }

    def _of(self, release: VerifiedRelease) -> list[sa.ColumnElement[bool]]:
        return [STEPS.c[name] == value for name, value in self._key(release).items()]

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with database_errors("remember a step"), self._engine.begin() as connection:
            yield connection
