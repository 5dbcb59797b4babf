"""Runs the examples for Edge Functions in Deno, the runtime under Supabase's: as functions, and step by step."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supabase_bridge.trust.signer import Signer
from tests.support.consumers import MODEL
from tests.support.machine import free_port
from tests.support.peers import PEERS, deno
from tests.support.served import until

EXAMPLE = Path(__file__).parents[2] / "examples" / "edge-function"
DRIVER = Path(__file__).parents[1] / "e2e" / "edge_function_driver.mjs"
_START_SECONDS = 30


def explain(
    options: dict[str, Any], *steps: dict[str, Any], runtime: list[str | Path] | None = None
) -> list[dict[str, Any]]:
    """Return the result of each step; for a refusal, its code and message.

    Args:
        runtime: The command that runs a script; by default Deno.
    """
    given = json.dumps({"options": {"model": MODEL, **options}, "steps": steps or [{}]})
    command = [*(runtime or [*deno(), "--allow-net=127.0.0.1"]), DRIVER]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said: list[dict[str, Any]] = json.loads(done.stdout)
    return said


def drive(options: dict[str, Any], *steps: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the result of each step; for a refusal, its code alone."""
    return [{k: v for k, v in one.items() if k != "message"} for one in explain(options, *steps)]


def pem(signer: Signer) -> str:
    """Return the public key of a signer as a consumer needs it."""
    return signer.public.pem.decode()


def run_snippet(lines: str, result: str, *, url: str, key: str, **given: Any) -> Any:
    """Run lines of a document with a client of PostgREST as `supabase`; return the value of the variable `result`."""
    script = PEERS / "snippet.mjs"
    command = [*deno(), "--allow-net=127.0.0.1", "--allow-read", script, lines, result]
    done = subprocess.run(
        command, input=json.dumps({"url": url, "key": key, "given": given}), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True, kw_only=True)
class EdgeFunction:
    """A function that answers on a port of its own.

    Attributes:
        process: Its Deno; one process is one isolate.
        log: What it wrote to its log.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, body: object = None) -> tuple[int, Any]:
        """Return the status and the JSON of a response to `body`, which is sent as JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url, data=data, headers={"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@contextmanager
def serving(script: str, home: Path, environment: Mapping[str, str]) -> Iterator[EdgeFunction]:
    """Run a script of the example as Supabase runs it: a copy of its folder, only these variables, and no file to read.

    It may ask hosts of this machine only. ONNX Runtime is where Supabase's runtime has it.
    """
    folder, log, port = home / "function", home / "function.log", free_port()
    shutil.copytree(EXAMPLE, folder)
    # Where `supabase functions deploy` resolves `npm:`, the test has the packages that are installed.
    for name in ("package.json", "node_modules"):
        (folder / name).symlink_to(PEERS / name)
    permissions = ["--allow-net=127.0.0.1", "--allow-env", f"--allow-read={PEERS},{folder}"]
    preload = ["--preload", str(PEERS / "onnxruntime.mjs")] if script == "recommend.ts" else []
    own = {"DENO_SERVE_ADDRESS": f"tcp:127.0.0.1:{port}", "DENO_DIR": str(home / "deno"), "NO_COLOR": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*deno(), *permissions, *preload, folder / script],
            env={**environment, **own, "PATH": os.environ["PATH"]},
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: process.poll() is not None or _listens(port), "Deno to listen", limit_seconds=_START_SECONDS)
        assert process.poll() is None, log.read_text()
        yield EdgeFunction(url=f"http://127.0.0.1:{port}", process=process, log=log)
    finally:
        process.terminate()
        process.wait(_START_SECONDS)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
