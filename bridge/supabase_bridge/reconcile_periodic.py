"""The periodic pass beside a worker: of a registry's workers one does it, and no promotion waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from supabase_bridge.chores import Chore
from supabase_bridge.errors import RegistryUnavailableError
from supabase_bridge.outbox import duties
from supabase_bridge.outbox.clock import database_now
from supabase_bridge.reconcile import Depth, Reconciler

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = timedelta(minutes=1)


def reconcile_chores(reconciler: Reconciler) -> Sequence[Chore]:
    """What a worker does besides its events: a pass every `reconcile_interval`; nothing where that is 0."""
    interval = reconciler.settings.reconcile_interval
    if not interval:
        return ()

    def act(stop: threading.Event) -> None:
        pass_if_due(reconciler, stop=stop)

    return (Chore(name="reconcile", every=min(interval, _LONGEST_PAUSE), act=act),)


def pass_if_due(reconciler: Reconciler, *, stop: threading.Event, now: datetime | None = None) -> bool:
    """Do a pass where it is due and nobody else does it; returns whether it was done here.

    Args:
        now: The time, in place of the database's own: of several workers one whose clock is ahead would keep all others
            from the next pass, and delete what is being uploaded.

    Raises:
        RegistryUnavailableError, ObjectStoreError: the pass ended early; the next one does what is left.
    """
    interval = reconciler.settings.reconcile_interval
    try:
        due = duties.take(reconciler.engine, duties.RECONCILE, interval=interval, now=now)
        moment = now or database_now(reconciler.engine)
    except SQLAlchemyError as error:
        raise RegistryUnavailableError("see what is due", str(error).split("\n")[0][:300]) from error
    for found in reconciler.run(now=moment, depth=Depth.NEXT) if due else ():
        facts = {"subject": found.subject, "detail": found.detail, "remedy": found.remedy.value}
        logger.warning("reconcile: %s", found.kind.value, extra=facts)
        if stop.is_set():
            break
    return due
