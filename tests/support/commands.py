"""Runs `supabase-bridge` for tests: the installed executable, or the same command line within this process."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from supabase_bridge.cli import main

EXECUTABLE = Path(sys.executable).with_name("supabase-bridge")
_LIMIT_SECONDS = 120


@dataclass(frozen=True)
class Said:
    """The output of a command, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Return the only line that begins with 'Error: '; fail if there is a traceback or a result."""
        errors = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1, self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        return errors[0]


def clean_environment(directory: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment with the necessary variables, and none of the person who runs the tests."""
    return {"PATH": os.environ["PATH"], "HOME": str(directory), "LANG": "C.UTF-8", **(more or {})}


def execute(*arguments: object, directory: Path, environment: Mapping[str, str] | None = None) -> Said:
    """Run the executable in a directory."""
    done = subprocess.run(
        [EXECUTABLE, *map(str, arguments)],
        cwd=directory,
        env=clean_environment(directory, environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def invoke(*arguments: object, environment: Mapping[str, str] | None = None, color: bool = False) -> Said:
    """Run the command line in this process, which has imported MLflow already; logging is as before afterwards.

    Args:
        color: Print as to a terminal: click takes escape sequences out of what goes elsewhere.
    """
    root, ours = logging.getLogger(), logging.getLogger("supabase_bridge")
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in (root, ours)]
    try:
        result = CliRunner().invoke(
            main,
            [str(argument) for argument in arguments],
            env=dict(environment or {}),
            color=color,
            prog_name="supabase-bridge",
        )
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
    return Said(result.exit_code, result.stdout, result.stderr)


def lines_matching(text: str, pattern: str) -> list[str]:
    """Return the lines in which a regular expression matches."""
    return [line for line in text.splitlines() if re.search(pattern, line)]
