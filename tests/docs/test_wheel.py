"""The built wheel installs into a bare environment, with and without the extras, and its command runs there."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.commands import clean_environment

ROOT = Path(__file__).parents[2]
_LIMIT_SECONDS = 1_200

pytestmark = pytest.mark.exhaustive


def run(*command: object, directory: Path, code: int = 0) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=directory,
        env=clean_environment(directory),
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sources as docs/deploy.md says."""
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", directory / "dist", ROOT, directory=directory)
    (found,) = (directory / "dist").glob("mlflow_supabase_bridge-*.whl")
    return found


def install(environment: Path, *what: object) -> None:
    """Install into an environment with the pip of this one."""
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin/python", "install", "--quiet", "--no-compile"]
    run(*pip, *what, directory=environment)


def statuses(environment: Path, *, code: int) -> dict[str, str]:
    """The findings of `doctor` in an environment, by their names; `--help` works there, too."""
    command = environment / "bin/supabase-bridge"
    assert "doctor" in run(command, "--help", directory=environment)
    found = run(command, "doctor", "--json", "--home", environment / "home", directory=environment, code=code)
    return {item["name"]: item["status"] for item in json.loads(found)}


def test_the_wheel_installs_and_doctor_runs_without_mlflow(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path)
    for target in (wheel, f"{wheel}[signing,postgres,mysql]"):
        install(tmp_path, target)
        found = statuses(tmp_path, code=1)
        # Without MLflow the embedded default cannot run, and doctor says so.
        assert (found["settings"], found["MLflow"]) == ("ok", "failed")


def test_the_wheel_runs_with_the_mlflow_of_the_tests(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path)
    install(tmp_path, "--no-deps", wheel)
    packages = tmp_path / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    # Lines of a .pth file add directories after the environment's own.
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = statuses(tmp_path, code=0)
    assert (found["settings"], found["MLflow"]) == ("ok", "ok")
