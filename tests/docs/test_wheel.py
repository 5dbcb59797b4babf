"""The built wheel installs into a bare environment, with each extra, and its command runs there."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path

import pytest

from tests.support.commands import clean_environment

ROOT = Path(__file__).parents[2]
_LIMIT_SECONDS = 1_200

pytestmark = pytest.mark.exhaustive


def run(*command: object, directory: Path) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=directory,
        env=clean_environment(directory),
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sources as docs/deploy.md says."""
    directory = tmp_path_factory.mktemp("wheel")
    builder = directory / "builder"
    venv.create(builder, with_pip=True)
    run(builder / "bin/pip", "wheel", "--no-deps", "--wheel-dir", directory / "dist", ROOT, directory=directory)
    (found,) = (directory / "dist").glob("mlflow_supabase_bridge-*.whl")
    return found


@pytest.mark.parametrize("extra", ["", "mlflow", "signing", "postgres", "mysql"])
def test_the_wheel_installs_and_doctor_runs(extra: str, wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    target = f"{wheel}[{extra}]" if extra else wheel
    run(environment / "bin/pip", "install", "--quiet", "--no-compile", target, directory=tmp_path)
    command = environment / "bin/supabase-bridge"
    assert "doctor" in run(command, "--help", directory=tmp_path)
    done = subprocess.run(
        [command, "doctor", "--json", "--home", tmp_path / "home"],
        cwd=tmp_path,
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    statuses = {item["name"]: item["status"] for item in json.loads(done.stdout)}
    assert statuses["settings"] == "ok"
    # Without MLflow the embedded default cannot run, and doctor says so.
    assert statuses["MLflow"] == ("ok" if extra == "mlflow" else "failed")
    assert done.returncode == (0 if extra == "mlflow" else 1)
