"""The promotion gate inside MLflow's transaction: it refuses a promotion with an error that MLflow's UI shows."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from mlflow_supabase.facts import TransactionFacts
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.events import EventKind, NewEvent
from supabase_bridge.core.tags import promotion_verdict
from supabase_bridge.registry.promotion_gate import Refuse, decide, target_of
from supabase_bridge.settings.model import Settings

_REASON_LIMIT = 1_500
"""Maximum characters of a reason; a model may have any number of malformed tags."""


class TransitionGate:
    """Checks the promotions of one registry.

    Args:
        load: Reads the settings; called at the first promotion, and again after it failed.
    """

    def __init__(self, load: Callable[[], Settings]) -> None:
        self._load = load
        self._loading = threading.Lock()
        self._settings: Settings | None = None

    def check(self, event: NewEvent, facts: TransactionFacts) -> None:
        """Refuse a promotion, or write its verdict to the version's tag `supabase.verdict`.

        All reads and writes are part of the transaction that makes the change.

        Raises:
            MlflowException: the version fails an enforced gate, its files cannot become a release, or the settings
                cannot be read. The caller must roll the whole transaction back.
        """
        if event.version is None or event.kind not in {EventKind.STAGE_CHANGED, EventKind.ALIAS_SET}:
            return
        decision = decide(event, self._read_settings(event), facts)
        if isinstance(decision, Refuse):
            raise _refusal(event, decision.reason)
        if decision.verdict is not None:
            facts.tag_version(event.version, *promotion_verdict(target_of(event), decision.verdict))

    def trusted_user_header(self) -> str | None:
        """Return the header in which a trusted proxy names the user; None if no such setting can be read."""
        try:
            return self._loaded().trusted_user_header
        except SettingsError:
            return None

    def _read_settings(self, event: NewEvent) -> Settings:
        try:
            return self._loaded()
        except SettingsError as error:
            reason = f"the settings, which may hold its criteria, cannot be read: {error}"
            raise _refusal(event, reason) from error

    def _loaded(self) -> Settings:
        with self._loading:
            if self._settings is None:
                self._settings = self._load()
            return self._settings


def _refusal(event: NewEvent, reason: str) -> MlflowException:
    """Create the error that MLflow's UI shows after its code; BAD_REQUEST is HTTP 400, which no client retries."""
    verb = "go to" if event.stage else "be"
    shown = reason if len(reason) <= _REASON_LIMIT else f"{reason[:_REASON_LIMIT]}…"
    return MlflowException(
        f"{event.model} v{event.version} cannot {verb} {target_of(event)}: {shown}", error_code=BAD_REQUEST
    )
