"""Supabase's own clients, installed by `npm ci` in `tests/peers`: independent readers and listeners."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.machine import missing, program

PEERS = Path(__file__).parents[1] / "peers"
_PACKAGES = PEERS / "node_modules"
_COMMAND_LINE = _PACKAGES / "@supabase" / "cli-linux-x64" / "bin" / "supabase"


def node() -> Path:
    """Return Node; skip, or fail in CI, where it is not installed."""
    return program("node", install="nodejs npm")


def peer(script: str) -> list[str | Path]:
    """Return the command that runs a script of `tests/peers`; skip, or fail in CI, where a part is missing."""
    if not (_PACKAGES / "@supabase" / "storage-js").exists():
        missing("packages of tests/peers", "npm ci --prefix tests/peers")
    return [node(), PEERS / script]


def deno() -> list[str | Path]:
    """Return the command that runs a script in Deno, offline; skip, or fail in CI, where it is not installed.

    The npm package `deno` has the program in a package for each platform, so that nothing else is downloaded.
    """
    found = next(iter(_PACKAGES.glob("@deno/*/deno")), None) or missing("Deno", "npm ci --prefix tests/peers")
    return [found, "run", "--quiet", "--no-lock", "--no-prompt", "--node-modules-dir=manual", "--cached-only"]


def run_peer(script: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run a script of `tests/peers` with `given` on its standard input; return the object that it prints."""
    done = subprocess.run(
        peer(script), input=json.dumps(given), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def official_command_line() -> Path:
    """Return Supabase's command line, for Linux on x64; skip, or fail in CI, where it is not installed."""
    if not _COMMAND_LINE.exists():
        missing("command line of Supabase", "npm ci --prefix tests/peers")
    return _COMMAND_LINE
