"""Runs the example for Edge Functions in Node, step by step in one process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from supabase_bridge.signing import Signer
from tests.consumers import MODEL
from tests.requirements_on_machine import program

DRIVER = Path(__file__).parent / "e2e" / "edge_function_driver.mjs"


def explain(options: dict[str, Any], *steps: dict[str, Any]) -> list[dict[str, Any]]:
    """What came of each step; of a refusal, its code and its message."""
    node = program("node", install="nodejs")
    given = json.dumps({"options": {"model": MODEL, **options}, "steps": steps or [{}]})
    done = subprocess.run([node, DRIVER], input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said: list[dict[str, Any]] = json.loads(done.stdout)
    return said


def drive(options: dict[str, Any], *steps: dict[str, Any]) -> list[dict[str, Any]]:
    """What came of each step; of a refusal, its code alone."""
    return [{k: v for k, v in one.items() if k != "message"} for one in explain(options, *steps)]


def pem(signer: Signer) -> str:
    """What a consumer is given to trust it."""
    return signer.public.pem.decode()
