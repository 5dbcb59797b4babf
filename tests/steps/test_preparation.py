"""Steps before an activation: real commands, remembered, stopped, and not taken at their word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from supabase_bridge.core.documents import FileRecord, ModelMeta
from supabase_bridge.outbox.database import connect
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.releases.errors import ReleaseDamagedError
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.settings.steps import StepSettings
from supabase_bridge.steps.errors import StepFailedError
from supabase_bridge.steps.preparation import Preparation
from supabase_bridge.steps.records import StepRecords
from supabase_bridge.storage.directory import DirectoryStore
from tests.support.small_releases import PLAIN, keys_of, lay_out, run_id

NAME = f"two_tower/{run_id(1)}"
LIMIT_SECONDS = 60


class StopError(Exception):
    """What a test raises to stop a step."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = connect(f"sqlite:///{tmp_path / 'records.db'}", connections=3)
    ensure_schema(made)
    yield made
    made.dispose()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    made = DirectoryStore(tmp_path / "models")
    made.ensure_bucket()
    lay_out(made, 1)
    return made


@pytest.fixture
def prepare(engine: Engine, store: DirectoryStore) -> Callable[..., Preparation]:
    """Steps before the activation of release 1 in `latest`."""

    def make(*steps: StepSettings, bucket: str = "models") -> Preparation:
        return Preparation(
            steps=steps,
            store=store,
            release=verify_release(store, keys_of(1)),
            channel="latest",
            records=StepRecords(engine, bucket),
            previous_run_id="20250101T000000Z",
            attempt=3,
        )

    return make


Prepare = Callable[..., Preparation]


def shell(name: str, script: str, *, check: str = "", **more: object) -> StepSettings:
    checked = ("/bin/sh", "-c", check) if check else ()
    return StepSettings(name=name, command=("/bin/sh", "-c", script), check=checked, **more)  # type: ignore[arg-type]


def run(preparation: Preparation, keep_going: Callable[[], None] = lambda: None) -> list[str]:
    """Run what is pending; the names of the steps that began."""
    begun: list[str] = []
    preparation.run(preparation.pending(), keep_going=keep_going, started=lambda step: begun.append(step.name))
    return begun


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(process_id: int) -> bool:
    with suppress(FileNotFoundError):
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    return False


def ids(path: Path) -> list[int]:
    return [int(text) for text in path.read_text().split()] if path.exists() else []


def family(target: Path) -> str:
    """A script that ignores SIGTERM no more than its child does, and never ends."""
    return f"sleep 600 & echo $$ $! > {target}.part; mv {target}.part {target}; wait"


def test_steps_run_in_their_order_and_once(prepare: Prepare, tmp_path: Path) -> None:
    log = tmp_path / "log"
    steps = [shell(name, f"echo {name} >> {log}") for name in ("second", "first")]
    assert run(prepare(*steps)) == ["second", "first"]
    assert log.read_text() == "second\nfirst\n"
    assert prepare(*steps).pending() == []
    assert [step.name for step in prepare(*steps, shell("third", "true")).pending()] == ["third"]
    assert len(prepare(*steps, bucket="another").pending()) == 2


def test_a_step_that_failed_runs_again_and_those_before_it_do_not(prepare: Prepare, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    steps = [shell("first", "true"), shell("second", f"test -e {ready} || {{ echo no {ready} >&2; exit 3; }}")]
    with pytest.raises(StepFailedError, match=f"step second of {NAME} failed: it ended with 3: no .*ready") as raised:
        run(prepare(*steps, shell("third", "true")))
    assert raised.value.retryable
    ready.touch()
    assert run(prepare(*steps)) == ["second"]


def test_the_same_step_runs_again_for_another_onnx_file(prepare: Prepare, store: DirectoryStore) -> None:
    step = shell("first", "true")
    run(prepare(step))
    store.delete([item.key for item in store.list(keys_of(1).prefix)])
    lay_out(store, 1)
    assert prepare(step).pending() == []
    paths = keys_of(1)
    store.overwrite(paths.onnx, b"another", PLAIN)
    meta = verify_meta_with(store, b"another")
    store.overwrite(paths.meta, meta, PLAIN)
    assert prepare(step).pending() == [step]


def verify_meta_with(store: DirectoryStore, onnx: bytes) -> bytes:
    """The release's model_meta.json with the record of another ONNX file."""
    paths = keys_of(1)
    meta = ModelMeta.parse(store.read(paths.meta, limit_bytes=100_000))
    return meta.model_copy(update={"files": {**meta.files, paths.onnx_name: FileRecord.of(onnx)}}).to_bytes()


def test_a_step_that_ends_with_0_without_its_result_has_failed(prepare: Prepare, tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    step = shell("load", "true", check=f"test -e {loaded} || {{ echo nothing is loaded; exit 1; }}")
    message = "it ended with 0, but its check failed: it ended with 1: nothing is loaded"
    with pytest.raises(StepFailedError, match=message):
        run(prepare(step))
    assert prepare(step).pending() == [step]


def test_a_step_whose_result_is_gone_runs_again(prepare: Prepare, tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    step = shell("load", f"touch {loaded}", check=f"test -e {loaded}")
    assert run(prepare(step)) == ["load"]
    assert prepare(step).pending() == []
    loaded.unlink()
    assert run(prepare(step)) == ["load"]


def test_a_step_that_hangs_is_ended_with_all_its_processes(prepare: Prepare, tmp_path: Path) -> None:
    step = shell("hangs", family(tmp_path / "ids"), timeout=timedelta(seconds=1))
    with pytest.raises(StepFailedError, match="it did not end within 1 seconds"):
        run(prepare(step))
    assert len(ids(tmp_path / "ids")) == 2
    assert not any(map(is_running, ids(tmp_path / "ids")))


def test_a_step_that_is_no_longer_wanted_is_stopped(prepare: Prepare, tmp_path: Path) -> None:
    def stop() -> None:
        if ids(tmp_path / "ids"):
            raise StopError

    step = shell("hangs", family(tmp_path / "ids"))
    with pytest.raises(StopError):
        run(prepare(step), stop)
    assert not any(map(is_running, ids(tmp_path / "ids")))
    assert prepare(step).pending() == [step]


def test_a_step_ends_with_the_worker_that_runs_it(tmp_path: Path) -> None:
    program = (
        "import sys; from datetime import timedelta; from supabase_bridge.steps.command import run_command; "
        "run_command(['/bin/sh', '-c', sys.argv[1]], {'PATH': '/bin:/usr/bin'}, timeout=timedelta(hours=1), "
        "keep_going=lambda: None)"
    )
    with subprocess.Popen([sys.executable, "-c", program, family(tmp_path / "ids")]) as worker:
        wait_until(lambda: len(ids(tmp_path / "ids")) == 2)
        worker.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, ids(tmp_path / "ids"))))


def test_a_step_gets_the_release_and_no_secret_that_is_not_named(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_BRIDGE_EMBEDDINGS_URL", "FEATURES"):
        monkeypatch.setenv(name, f"value of {name}")
    output = tmp_path / "environment"
    script = f"env > {output}; ls -l $SUPABASE_BRIDGE_RELEASE_DIR > {tmp_path / 'files'}"
    run(prepare(shell("shows", script, environment=("FEATURES", "NOT_SET"))))
    found = dict(line.split("=", 1) for line in output.read_text().splitlines())
    directory = found.pop("SUPABASE_BRIDGE_RELEASE_DIR")
    assert {name: value for name, value in found.items() if name not in {"PWD", "SHLVL", "_", "OLDPWD"}} == {
        **{
            name: os.environ[name]
            for name in ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR")
            if name in os.environ
        },
        "FEATURES": "value of FEATURES",
        "SUPABASE_BRIDGE_MODEL": "two_tower",
        "SUPABASE_BRIDGE_CHANNEL": "latest",
        "SUPABASE_BRIDGE_RUN_ID": str(run_id(1)),
        "SUPABASE_BRIDGE_RELEASE": NAME,
        "SUPABASE_BRIDGE_ONNX_SHA256": FileRecord.of(b"onnx 1").sha256,
        "SUPABASE_BRIDGE_RELEASE_BUCKET": f"directory {tmp_path / 'models'}",
        "SUPABASE_BRIDGE_PREVIOUS_RUN_ID": "20250101T000000Z",
        "SUPABASE_BRIDGE_ATTEMPT": "3",
    }
    listed = (tmp_path / "files").read_text()
    assert listed.count("-r--r--r--") == 3
    assert keys_of(1).onnx_name in listed
    assert not Path(directory).exists()


def test_a_python_function_may_be_a_step(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_steps.py").write_text(
        "def load(step):\n"
        "    print(step.model, step.run_id, step.channel, step.previous_run_id, step.attempt)\n"
        "    assert (step.release_dir / 'model_meta.json').is_file()\n"
        "    raise SystemExit('this is what it said')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    step = StepSettings(name="load", call="our_steps:load", environment=("PYTHONPATH",))
    with pytest.raises(StepFailedError, match="it ended with 1: ") as raised:
        run(prepare(step))
    for said in (f"two_tower {run_id(1)} latest 20250101T000000Z 3", "this is what it said"):
        assert said in str(raised.value)


def test_a_program_that_does_not_exist_is_named(prepare: Prepare) -> None:
    step = StepSettings(name="load", command=("/no/such/program",))
    with pytest.raises(StepFailedError, match="/no/such/program: No such file or directory"):
        run(prepare(step))


def test_no_step_sees_a_damaged_file(prepare: Prepare, store: DirectoryStore, tmp_path: Path) -> None:
    made = prepare(shell("load", f"touch {tmp_path / 'ran'}"))
    store.overwrite(keys_of(1).onnx, b"forged", PLAIN)
    with pytest.raises(ReleaseDamagedError):
        run(made)
    assert not (tmp_path / "ran").exists()


def test_the_time_of_a_commit_is_that_of_the_first_attempt(engine: Engine) -> None:
    records = StepRecords(engine, "models")
    first = datetime(2025, 11, 1, 12, 0, 0, 250_000, tzinfo=timezone.utc)
    times: Sequence[datetime] = [first, first + timedelta(hours=1)]
    assert [records.commit_time(7, "latest", now) for now in times] == [first, first]
    assert records.commit_time(7, "staging", times[1]) == times[1]
    assert records.commit_time(8, "latest", times[1]) == times[1]
