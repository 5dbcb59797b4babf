"""Activate a release manually: run its steps first, then move the pointer, unless it moved meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from supabase_bridge.app.errors import CommandError
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.releases.channel import Activation, Channel
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.settings.model import Settings
from supabase_bridge.settings.sources import process_user
from supabase_bridge.settings.steps import StepSettings
from supabase_bridge.steps.errors import StepStoppedError
from supabase_bridge.steps.preparation import Preparation
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.trust.signer import SigningPolicy

if TYPE_CHECKING:
    from supabase_bridge.steps.records import StepRecords

logger = logging.getLogger(__name__)


def activate_prepared(
    settings: Settings,
    store: ObjectStore,
    paths: ChannelPaths,
    run_id: RunId,
    *,
    signing: SigningPolicy,
    skip_steps: bool = False,
    started: Callable[[StepSettings], None] = lambda _: None,
) -> Activation:
    """Run the steps of a release that have not succeeded, and make it current; see `activate_manually`.

    The log entry names the operating-system user.
    Without steps neither MLflow nor its database is needed. With steps, a database that does not answer only means that
    all of them run.

    Args:
        skip_steps: Run none of them; the log entry names those that were skipped.
        started: Called before each step.

    Raises:
        StepFailedError: a step failed; no pointer is moved.
        CommandError: the channel moved while the steps ran; no pointer is moved.
        BridgeError: see `activate_manually`.
    """
    release = verify_release(store, ReleasePaths(model_key=paths.model_key, run_id=run_id), signing=signing)
    origin = release.meta.mlflow
    name = None if origin is None else origin.registered_model
    steps = settings.steps_of(name, paths.model_key, paths.channel)
    by = process_user()
    if not steps:
        return activate_manually(store, paths, run_id, now=_now(), signing=signing, by=by)
    channel = Channel(store, paths, signing)
    before = channel.read_head().head
    with _records(settings) as records:
        preparation = Preparation(
            steps=steps,
            store=store,
            release=release,
            channel=paths.channel,
            records=records,
            previous_run_id=None if before is None else before.current.run_id,
        )
        pending = preparation.pending()
        if skip_steps:
            skipped = [step.name for step in pending]
            return activate_manually(store, paths, run_id, now=_now(), signing=signing, steps_skipped=skipped, by=by)

        def check() -> None:
            head = channel.read_head().head
            if (head and head.sequence) != (before and before.sequence):
                current = None if head is None else head.current.run_id
                raise StepStoppedError(pending[0].name, preparation.name, f"{paths.channel} moved to {current}")

        if pending:
            try:
                preparation.run(pending, keep_going=check, started=started)
                check()
            except StepStoppedError as error:
                raise CommandError(f"{error}. Run the command again if this release is still wanted") from error
    return activate_manually(store, paths, run_id, now=_now(), signing=signing, by=by)


@contextmanager
def _records(settings: Settings) -> Iterator[StepRecords | None]:
    """What the registry's database remembers; None where it does not answer."""
    # SQLAlchemy takes a while to import, and only channels with steps need it.
    from supabase_bridge.outbox.queue import open_outbox
    from supabase_bridge.steps.records import StepRecords

    with ExitStack() as stack:
        records = None
        try:
            records = StepRecords(stack.enter_context(open_outbox(settings)).engine, settings.bucket)
        except BridgeError as error:
            logger.warning("the database does not say which steps succeeded, so all run", extra={"reason": str(error)})
        yield records


def _now() -> datetime:
    return datetime.now(timezone.utc)
