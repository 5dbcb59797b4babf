"""The recipes in deploy/ are well formed, and the commands in them exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped]  # it ships no annotations

from supabase_bridge.cli import main
from tests.support.commands import EXECUTABLE, clean_environment, execute
from tests.support.machine import program

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return found


def test_only_the_workers_of_the_compose_file_have_the_projects_key() -> None:
    services = read("compose.yaml")["services"]
    assert services.keys() == {"database", "mlflow", "worker"}
    assert [name for name, one in services.items() if "SUPABASE_SECRET_KEY" in one["environment"]] == ["worker"]
    assert services["worker"]["deploy"]["replicas"] == 2
    backend = services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert services["mlflow"]["environment"]["MLFLOW_REGISTRY_STORE_URI"] == f"supabase+{backend}"
    assert services["worker"]["environment"]["SUPABASE_BRIDGE_DATABASE_URL"] == backend
    assert (DEPLOY / services["worker"]["build"]["context"] / services["worker"]["build"]["dockerfile"]).is_file()


def test_each_job_of_the_workflow_has_an_environment_and_no_secret_key_of_the_project() -> None:
    text = (DEPLOY / "github-actions" / "release.yml").read_text()
    jobs = read("github-actions/release.yml")["jobs"]
    assert {name: job["environment"] for name, job in jobs.items()} == {
        "train": "training",
        "promote": "production",
        "announce": "consumers",
    }
    assert set(re.findall(r"secrets\.(\w+)", text)) == {"MLFLOW_TRACKING_TOKEN", "SUPABASE_PUBLISHABLE_KEY"}
    needed = [need for job in jobs.values() for need in [job.get("needs", [])]]
    assert needed == [[], "train", ["train", "promote"]]


def test_every_command_line_in_the_recipes_names_a_command_and_options_that_exist() -> None:
    context = click.Context(main)
    lines = [
        line
        for path in [*DEPLOY.rglob("*"), ROOT / "docs" / "deploy.md"]
        if path.is_file()
        for line in re.findall(r"(?:run: |ExecStart=\S*/)supabase-bridge (.*)", path.read_text())
    ]
    assert len(lines) >= 4
    for line in lines:
        command = main.get_command(context, line.split()[0])
        assert command is not None, line
        known = {option for item in command.params for option in item.opts}
        assert set(re.findall(r"--[a-z-]+", line)) <= known, line


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    analyze = program("systemd-analyze", install="systemd")
    # The programs and the user of a real installation are not on this machine.
    text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", unit.read_text())
    copy = tmp_path / unit.name
    copy.write_text(text)
    done = subprocess.run([analyze, "verify", copy], capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert complaints == []
    copy.write_text(text.replace("Restart=", "Restrat="))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60, check=False)
    assert "Restrat" in done.stderr


@pytest.mark.parametrize(
    ("name", "schema", "misspelt"),
    [
        ("compose.yaml", "vendor.compose-spec", ("restart:", "restrat:")),
        ("github-actions/release.yml", "vendor.github-workflows", ("runs-on:", "run-on:")),
    ],
)
def test_the_file_has_the_form_that_its_published_schema_describes(
    name: str, schema: str, misspelt: tuple[str, str], tmp_path: Path
) -> None:
    def check(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = check(DEPLOY / name)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / Path(name).name
    wrong.write_text((DEPLOY / name).read_text().replace(*misspelt))
    done = check(wrong)
    assert (done.returncode, misspelt[1].rstrip(":") in done.stdout) == (1, True)


BASH = """
set -u
. /dev/stdin
COMP_WORDS=(supabase-bridge "$1") COMP_CWORD=1
"$(complete -p supabase-bridge | sed -E 's/.* -F ([^ ]+) .*/\\1/')" supabase-bridge
printf '%s\n' "${COMPREPLY[@]}"
"""


def test_bash_completes_commands_with_the_documented_script(tmp_path: Path) -> None:
    assert "_SUPABASE_BRIDGE_COMPLETE=bash_source" in (ROOT / "docs" / "deploy.md").read_text()
    said = execute(directory=tmp_path, environment={"_SUPABASE_BRIDGE_COMPLETE": "bash_source"})
    environment = clean_environment(tmp_path, {"PATH": f"{EXECUTABLE.parent}:{os.environ['PATH']}"})
    done = subprocess.run(
        [program("bash", install="bash"), "-c", BASH, "bash", "watch"],
        input=said.out,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["watch", "watch-registry"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_documented_scripts_of_other_shells_ask_the_command_which_answers(shell: str, tmp_path: Path) -> None:
    """The test runs what the script runs; it does not need the shell."""
    assert f"_SUPABASE_BRIDGE_COMPLETE={shell}_source" in (ROOT / "docs" / "deploy.md").read_text()
    said = execute(directory=tmp_path, environment={"_SUPABASE_BRIDGE_COMPLETE": f"{shell}_source"})
    assert said.code == 0
    assert f"_SUPABASE_BRIDGE_COMPLETE={shell}_complete" in said.out
    words = {"zsh": "supabase-bridge watch", "fish": "supabase-bridge "}[shell]
    asked = {
        "_SUPABASE_BRIDGE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": {"zsh": "1", "fish": "watch"}[shell],
    }
    answered = execute(directory=tmp_path, environment=asked)
    assert answered.code == 0
    assert re.findall(r"watch(?:-registry)?(?=[\t\n])", answered.out) == ["watch", "watch-registry"]
