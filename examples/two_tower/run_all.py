"""Run the whole procedure: server, prep, train, eval, embeddings, promotion, and a consumer that recommends."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from upsert_two_tower import database_url

HERE = Path(__file__).parent


@contextmanager
def server(ml: Path, environment: dict[str, str], criteria: list[str]) -> Iterator[None]:
    """Run `supabase-bridge server` with a gate and two steps; the environment gets its address."""
    (home := ml / "mlruns").mkdir(parents=True, exist_ok=True)
    lines = ["[gates.two_tower]", f"criteria = {json.dumps(criteria)}"]
    for name in ("gen_user_embeddings", "upsert_two_tower"):
        command = [sys.executable, str(HERE / f"{name}.py"), "--ml", str(ml)]
        lines += [f"[steps.two_tower.{name}]", f"run = {json.dumps(command)}"]
        lines += ['environment = ["SUPABASE_BRIDGE_EMBEDDINGS_URL", "SUPABASE_BRIDGE_HOME"]']
    (home / "supabase-bridge.toml").write_text("\n".join(lines) + "\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # The consumer remembers the manifests that it saw: those of this folder alone, which may be deleted and made again.
    environment |= {"SUPABASE_BRIDGE_CACHE": str(ml / "cache")}
    environment |= {"SUPABASE_BRIDGE_HOME": str(home), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    with (home / "server.log").open("ab") as log:
        command = ["supabase-bridge", "server", "--port", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ml", type=Path, default=Path("ml"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--slice", type=int, default=0)
    parser.add_argument("--releases", type=int, default=2, help="how many trainings are released one after the other")
    parser.add_argument("--criterion", action="append", help="by default the model has to beat popularity")
    given = parser.parse_args()
    environment, ml = {**os.environ, "PYTHONWARNINGS": "ignore"}, ["--ml", str(given.ml)]
    environment["SUPABASE_BRIDGE_EMBEDDINGS_URL"] = database_url(given.ml)

    def run(*command: str, show: bool = True) -> str:
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        if show:
            print(done.stdout, end="", flush=True)
        return done.stdout.strip()

    def script(name: str, *arguments: str) -> str:
        return run(sys.executable, str(HERE / f"{name}.py"), *arguments, *ml)

    criteria = given.criterion or ["recall_over_popularity@20 >= 1"]
    with server(given.ml.resolve(), environment, criteria):
        script("prep_two_tower", *(["--slice", str(given.slice)] if given.slice else []))
        for seed in range(given.releases):
            script("train_two_tower", "--epochs", str(given.epochs), "--seed", str(seed))
            version = re.findall(r"^version ([0-9]+),", script("eval_two_tower"), re.MULTILINE)[-1]
            client = MlflowClient(tracking_uri=environment["MLFLOW_TRACKING_URI"])
            client.transition_model_version_stage("two_tower", version, "Production", archive_existing_versions=True)
            # The worker runs the two steps before it moves the pointer.
            run("supabase-bridge", "wait", "two_tower", version, "--for", "active")
            script("recommend", "5")


if __name__ == "__main__":
    main()
