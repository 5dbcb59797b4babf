"""Call a Python function as a step, in a process of its own: `python -m supabase_bridge.steps.call MODULE:FUNCTION`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supabase_bridge.settings.sources import child_environment


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step is about.

    Attributes:
        model: The model's folder in the bucket.
        release_dir: The release's files, pulled and verified; deleted after the step.
        previous_run_id: The channel's current release; None: it has none yet.
        attempt: 1 at the first attempt at the activation.
    """

    model: str
    channel: str
    run_id: str
    release_dir: Path
    previous_run_id: str | None
    attempt: int

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> Step:
        """Read the variables that the worker gives to every step."""
        return cls(
            model=environ["SUPABASE_BRIDGE_MODEL"],
            channel=environ["SUPABASE_BRIDGE_CHANNEL"],
            run_id=environ["SUPABASE_BRIDGE_RUN_ID"],
            release_dir=Path(environ["SUPABASE_BRIDGE_RELEASE_DIR"]),
            previous_run_id=environ.get("SUPABASE_BRIDGE_PREVIOUS_RUN_ID") or None,
            attempt=int(environ["SUPABASE_BRIDGE_ATTEMPT"]),
        )


def main(target: str) -> None:
    """Import the function and call it with the step; an exception ends the process with its traceback and 1."""
    module, _, name = target.partition(":")
    getattr(importlib.import_module(module), name)(Step.of_environment(child_environment({})))


if __name__ == "__main__":
    main(sys.argv[1])
