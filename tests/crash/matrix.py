"""Every point at which a worker can be killed, on every store and database; compared with a run that was not disturbed.

`python -m tests.crash.matrix` takes every point, and prints how many there are.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROCESSES = 2
"""How many drivers share the points of a combination."""

_LIMIT_SECONDS = 900
_TIME = re.compile(rb'2025-11-01T12:0[01]:[0-9]{2}(?:\.[0-9]+)?Z|(?<="previous_entry_sha256": ")[0-9a-f]{64}')
"""A time of a run, and the digest of an entry that has such a time."""
_DRIVER = "from tests.crash.driver import main; main()"
"""Not `-m`: each process of the checks would import that module, and so MLflow, once more."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    """A store and a database.

    Attributes:
        environment: What names the store.
        objects: What a run has left in the store, from its directory.
        database: What tells the driver which database to copy; empty: SQLite's.
        steps: Whether a step comes before each activation. Its length is in the activation's time, which then does not
            count, nor does the digest of an entry with such a time.
    """

    environment: Mapping[str, str]
    objects: Callable[[Path], dict[str, bytes]]
    database: tuple[str, ...] = ()
    steps: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run ended: what is in the store, and what the database says."""

    objects: Mapping[str, bytes]
    rows: Mapping[str, list[list[Any]]]

    def differences(self, other: Outcome) -> list[str]:
        """Where another outcome differs, in words."""
        keys = sorted(self.objects.keys() | other.objects.keys())
        found = [key for key in keys if self.objects.get(key) != other.objects.get(key)]
        return found + [f"{name}: {other.rows[name]}" for name in self.rows if self.rows[name] != other.rows[name]]


def check_points(combination: Combination, home: Path, runs: Path, *, first: int, every: int) -> int:
    """Kill a worker at every n-th point, and compare every run with the one that was not disturbed.

    Args:
        home: Has three versions registered, which no worker has claimed; version 3 below a directory that is not there.

    Returns:
        How many points there were.
    """
    ended = _driven(combination, home, runs, first=first, every=every)
    apart = {name: ended.pop(name) for name in list(ended) if name.startswith(("rehearsal", "undisturbed"))}
    assert {tuple(said["codes"]) for said in apart.values()} == {(0,)}, apart
    assert ended
    killed = [-signal.SIGKILL, 0]
    assert {name: said["codes"] for name, said in ended.items() if said["codes"] != killed} == {}, ended
    undisturbed, *others = (
        _outcome(combination, runs / name, said) for name, said in apart.items() if name.startswith("undisturbed")
    )
    _check_story(undisturbed)
    assert [found for other in others for found in undisturbed.differences(other)] == []
    different = {
        f"{name} {_last_effect(runs / name)}": differences
        for name, said in ended.items()
        if (differences := undisturbed.differences(_outcome(combination, runs / name, said)))
    }
    assert different == {}, json.dumps(different, indent=2)
    return len(ended)


def _check_story(undisturbed: Outcome) -> None:
    """What the runs are compared with is the whole story, so that nothing is proven by its absence."""
    rows = undisturbed.rows["events"]
    manifest = json.loads(undisturbed.objects["two_tower/latest/manifest.json"])
    assert (manifest["sequence"], manifest["current"]["model_version"]) == (3, 1)
    assert [pointer["model_version"] for pointer in manifest["previous"]] == [2]
    states = {(version, kind): state for _, kind, version, stage, state, _ in rows if stage in {"None", "Production"}}
    assert (states[3, "version_created"], states[3, "stage_changed"]) == ("pending", "superseded")
    other = json.loads(undisturbed.objects["two_tower/champion/manifest.json"])
    assert (other["sequence"], other["current"]["model_version"]) == (1, 1)
    tags = {(version, name): value for version, name, value in undisturbed.rows["tags of versions"]}
    assert tags[2, "supabase.channel.latest"].startswith("superseded by ")
    assert tags[1, "supabase.channel.champion"].startswith("current since ")
    assert tags[1, "supabase.status"] == "active"
    assert tags[1, "supabase.note"].startswith("left Production with no successor")


def _driven(combination: Combination, home: Path, runs: Path, *, first: int, every: int) -> dict[str, dict[str, Any]]:
    """Run the drivers side by side; what they say of each run, by its name."""
    runs.mkdir(parents=True)
    drivers = []
    for number in range(PROCESSES):
        options = ["--steps"] if combination.steps else []
        share = ["--first", str(first + number * every), "--every", str(every * PROCESSES)]
        command = [sys.executable, "-c", _DRIVER, str(home), str(runs), *combination.database, *share, *options]
        out, err = (runs / f"driver-{number}.{stream}" for stream in ("out", "err"))
        with out.open("wb") as stdout, err.open("wb") as stderr:
            environment = {**os.environ, **combination.environment}
            cwd = Path(__file__).parents[2]
            drivers.append(
                (subprocess.Popen(command, cwd=cwd, env=environment, stdout=stdout, stderr=stderr), out, err)
            )
    said: list[dict[str, Any]] = []
    for process, out, err in drivers:
        try:
            assert process.wait(_LIMIT_SECONDS) == 0, err.read_text()
        finally:
            process.kill()
        said += [json.loads(line) for line in out.read_text().splitlines()]
    return {line["name"]: line for line in said}


def _outcome(combination: Combination, run: Path, said: Mapping[str, Any]) -> Outcome:
    """How a run ended; temporary objects do not count."""
    lasting = {key: data for key, data in combination.objects(run).items() if not key.startswith("_tmp/")}
    rows = said["rows"]
    if combination.steps:
        lasting = {key: _TIME.sub(b"then", data) for key, data in lasting.items()}
        lasting |= {f"loaded {path.name}": path.read_bytes() for path in (run / "loaded").iterdir()}
        rows = json.loads(_TIME.sub(b"then", json.dumps(rows).encode()))
    return Outcome(objects=lasting, rows=rows)


def _last_effect(run: Path) -> str:
    """The side effect at which a run was killed."""
    return (run / "effects").read_text().splitlines()[-1]


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "--crash-every=1", str(Path(__file__).with_name("test_worker_killed.py"))]))
