"""Run the steps of a release before a channel points to it, in their order, each until it has succeeded once."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from supabase_bridge.outbox.errors import RegistryUnavailableError
from supabase_bridge.releases.errors import ReleaseDamagedError
from supabase_bridge.releases.verify import VerifiedRelease
from supabase_bridge.settings.sources import limited_environment
from supabase_bridge.settings.steps import StepSettings
from supabase_bridge.steps.command import run_command
from supabase_bridge.steps.errors import StepFailedError
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.download import fetch

if TYPE_CHECKING:
    from supabase_bridge.steps.records import StepRecords

logger = logging.getLogger(__name__)

_CHECK_TIMEOUT = timedelta(seconds=60)


def _continue() -> None:
    """Let a short command run to its end."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The steps before one activation.

    A step is remembered by model, run_id, name and the digest of the ONNX file, so that a retry, another channel and a
    rollback skip it. A step may run twice, and twice at the same time: it must be idempotent.

    Attributes:
        records: None: nothing is remembered; every step runs.
        previous_run_id: The channel's current release.
    """

    steps: Sequence[StepSettings]
    store: ObjectStore
    release: VerifiedRelease
    channel: str
    records: StepRecords | None
    previous_run_id: str | None = None
    attempt: int = 1

    @property
    def name(self) -> str:
        """The release, as messages have it."""
        return f"{self.release.paths.model_key}/{self.release.paths.run_id}"

    def pending(self) -> list[StepSettings]:
        """Return the steps that have not succeeded yet, or whose check finds no result.

        Raises:
            RegistryUnavailableError: the database that remembers did not answer.
        """
        done = frozenset[str]() if self.records is None or not self.steps else self.records.succeeded(self.release)
        left = []
        for step in self.steps:
            if step.name in done and self._check(step, None) is None:
                continue
            if step.name in done and self.records is not None:
                self.records.forget(self.release, step.name)
            left.append(step)
        return left

    def run(
        self,
        pending: Sequence[StepSettings],
        *,
        keep_going: Callable[[], None],
        started: Callable[[StepSettings], None] = lambda _: None,
    ) -> None:
        """Run steps one after the other, on a copy of the release's files.

        Args:
            keep_going: Called every two seconds; what it raises ends the step and is raised.
            started: Called before each step.

        Raises:
            StepFailedError: a step failed, or ended with 0 while its check failed. Later steps did not run.
            ReleaseDamagedError, ObjectStoreError, LocalFileError: the release's files cannot be read.
        """
        with tempfile.TemporaryDirectory(prefix="supabase-bridge-") as directory:
            files = Path(directory) / "release"
            self._fetch(files)
            for step in pending:
                started(step)
                self._run(step, files, keep_going)
                if self.records is not None:
                    with suppress(RegistryUnavailableError):
                        self.records.record(self.release, step.name)

    def _run(self, step: StepSettings, files: Path, keep_going: Callable[[], None]) -> None:
        command = step.command or (sys.executable, "-m", "supabase_bridge.steps.call", str(step.call))
        environment = self._environment(step, files)
        facts = {"step": step.name, "release": self.name, "channel": self.channel}
        logger.info("a step begins", extra=facts)
        reason = run_command(command, environment, timeout=step.timeout, keep_going=keep_going)
        if reason is None and (problem := self._check(step, files)) is not None:
            reason = f"it ended with 0, but its check failed: {problem}"
        if reason is not None:
            raise StepFailedError(step.name, self.name, reason)
        logger.info("a step succeeded", extra=facts)

    def _check(self, step: StepSettings, files: Path | None) -> str | None:
        """Run the check of a step, if it has one; return why it failed."""
        if not step.check:
            return None
        environment = self._environment(step, files)
        return run_command(step.check, environment, timeout=_CHECK_TIMEOUT, keep_going=_continue)

    def _environment(self, step: StepSettings, files: Path | None) -> dict[str, str]:
        paths = self.release.paths
        facts = {
            "MODEL": paths.model_key,
            "RUN_ID": str(paths.run_id),
            "RELEASE": self.name,
            "ONNX_SHA256": self.release.files[paths.onnx_name].sha256,
            "RELEASE_BUCKET": self.store.name,
            "CHANNEL": self.channel,
            "PREVIOUS_RUN_ID": self.previous_run_id or "",
            "ATTEMPT": str(self.attempt),
            **({} if files is None else {"RELEASE_DIR": str(files)}),
        }
        added = {f"SUPABASE_BRIDGE_{name}": value for name, value in facts.items()}
        return limited_environment(step.environment, added)

    def _fetch(self, directory: Path) -> None:
        """Copy the release's files, each as the release records it."""
        for name, record in self.release.files.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            key = self.release.paths.file(name)
            if fetch(self.store, key, target).record != record:
                raise ReleaseDamagedError(key, "it differs from what model_meta.json records")
            target.chmod(0o444)
