"""`pull`, `watch` and `verify`, as somebody runs them who has no service key and no MLflow server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.commands import EXECUTABLE, clean_environment, execute, invoke
from tests.support.consumers import BUCKET, FIRST, LATEST, MODEL, SECOND, Bucket, new_signer
from tests.support.served import until
from tests.support.simulators.storage import Fault, Respond, StorageSimulator

pytestmark = pytest.mark.exhaustive

ONNX = f"{MODEL}_{FIRST}.onnx"


@pytest.fixture
def embedded(tmp_path: Path) -> Bucket:
    """The embedded store of a home, with one release current."""
    bucket = Bucket.of_directory(tmp_path / "home" / "supabase" / BUCKET)
    bucket.promote(FIRST)
    return bucket


@pytest.fixture
def simulator() -> Iterator[StorageSimulator]:
    with StorageSimulator() as running:
        yield running


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_pull_makes_a_directory_of_a_release(embedded: Bucket, tmp_path: Path) -> None:
    said = invoke("pull", MODEL, tmp_path / "dest", "--home", tmp_path / "home")
    assert said.code == 0, said.err
    assert said.out.splitlines()[0].startswith(f"{MODEL}@latest {FIRST} (3 files, ")
    assert contents(tmp_path / "dest") == embedded.files(FIRST)


def test_pull_with_json_says_what_came(embedded: Bucket, tmp_path: Path) -> None:
    said = invoke("pull", f"{MODEL}/{FIRST}", tmp_path / "dest", "--json", "--home", tmp_path / "home")
    told = json.loads(said.out)
    assert (told["model"], told["run_id"], told["signed"]) == (MODEL, FIRST, False)
    assert told["directory"] == str(tmp_path / "dest")
    assert set(told["files"]) == set(embedded.files(FIRST))


@pytest.mark.parametrize("key", ["anon", "none"])
def test_pull_needs_no_service_key(simulator: StorageSimulator, tmp_path: Path, key: str) -> None:
    bucket = Bucket.of_simulator(simulator)
    bucket.promote(FIRST)
    environment = {"SUPABASE_URL": simulator.url}
    if key == "anon":
        simulator.let_anon_read(BUCKET)
        environment["SUPABASE_PUBLISHABLE_KEY"] = simulator.anon_key
    else:
        simulator.make_public(BUCKET)
    said = execute("pull", MODEL, "dest", directory=tmp_path, environment=environment)
    assert said.code == 0, said.err
    assert contents(tmp_path / "dest") == bucket.files(FIRST)
    assert simulator.anon_key not in said.out + said.err


def test_pull_with_a_key_that_no_policy_lets_read_names_the_policy(simulator: StorageSimulator, tmp_path: Path) -> None:
    Bucket.of_simulator(simulator).promote(FIRST)
    environment = {"SUPABASE_URL": simulator.url, "SUPABASE_PUBLISHABLE_KEY": simulator.anon_key}
    for reference, path in ((MODEL, "latest/manifest.json"), (f"{MODEL}/{FIRST}", f"{FIRST}/model_meta.json")):
        said = invoke("pull", reference, tmp_path / "dest", "--home", tmp_path, environment=environment)
        assert said.code == 1
        assert said.error.startswith(f"Error: {MODEL}/{path} cannot be read with the key in use: no policy lets")


def test_pull_of_an_unknown_model_advises_no_command_that_fails(embedded: Bucket, tmp_path: Path) -> None:  # noqa: ARG001 - it fills the store
    said = invoke("pull", "nosuch", tmp_path / "dest", "--home", tmp_path / "home")
    assert said.code == 1
    assert "status nosuch" not in said.error
    assert "Check the name of the model" in said.error


def test_a_command_that_writes_still_needs_the_service_key(simulator: StorageSimulator, tmp_path: Path) -> None:
    environment = {"SUPABASE_URL": simulator.url, "SUPABASE_PUBLISHABLE_KEY": simulator.anon_key}
    said = invoke("activate", MODEL, FIRST, "--home", tmp_path, environment=environment)
    assert said.error.startswith("Error: SUPABASE_SECRET_KEY: missing")
    assert (said.code, simulator.calls()) == (2, [])


@pytest.mark.usefixtures("embedded")
def test_verify_reads_every_byte_and_says_what_differs(tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    assert invoke("pull", MODEL, tmp_path / "dest", *home).code == 0
    said = invoke("verify", MODEL, *home)
    assert (said.code, said.out.count("  ok  ")) == (0, 3)
    path = tmp_path / "home" / "supabase" / BUCKET / MODEL / FIRST / ONNX
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    said = invoke("verify", MODEL, *home)
    assert (said.code, said.out.count("  ok  "), said.out.count(f"  BAD {ONNX}")) == (1, 2, 1)
    told = json.loads((said := invoke("verify", MODEL, "--json", *home)).out)
    assert (said.code, told["verified"], list(told["problems"])) == (1, False, [ONNX])
    path.unlink()
    assert invoke("verify", MODEL, *home).code == 1


def test_verify_calls_no_file_bad_that_it_could_not_read(simulator: StorageSimulator, tmp_path: Path) -> None:
    Bucket.of_simulator(simulator).promote(FIRST)
    simulator.make_public(BUCKET)
    simulator.inject(Fault(action=Respond(status=403), path_contains=ONNX))
    options = ("--home", tmp_path)
    said = invoke("verify", MODEL, *options, environment={"SUPABASE_URL": simulator.url})
    assert (said.code, said.out.count("  ok  "), said.out.count("BAD")) == (1, 2, 0)
    assert f"  ??? {ONNX}" in said.out
    said = invoke("verify", MODEL, "--json", *options, environment={"SUPABASE_URL": simulator.url})
    told = json.loads(said.out)
    assert (said.code, told["verified"], told["problems"], list(told["unread"])) == (1, False, {}, [ONNX])


def test_verify_and_pull_believe_only_trusted_keys(embedded: Bucket, tmp_path: Path) -> None:
    signer = new_signer()
    (tmp_path / "public.pem").write_bytes(signer.public.pem)
    environment = {"SUPABASE_BRIDGE_TRUSTED_KEYS": str(tmp_path / "public.pem")}
    home = ("--home", tmp_path / "home")
    for command in (("verify", MODEL), ("pull", MODEL, tmp_path / "dest")):
        said = invoke(*command, *home, environment=environment)
        assert said.error.startswith(f"Error: {LATEST.manifest} is refused: it is not signed")
        assert said.code == 1
    assert not (tmp_path / "dest").exists()
    embedded.signer = signer
    embedded.promote(SECOND)
    said = invoke("verify", MODEL, *home, environment=environment)
    assert said.code == 0, said.err
    assert f"{SECOND} (3 files" in said.out
    assert ", signed)" in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["pull", f"{MODEL}@", "dest"], 2, "Error: 'two_tower@' names no release"),
        (["pull", f"{MODEL}@Latest", "dest"], 2, "Error: 'Latest' cannot be a channel"),
        (["pull", f"{MODEL}/yesterday", "dest"], 2, "Error: 'yesterday' is not a run_id"),
        (["pull", "../x", "dest"], 2, "Error: model '..' cannot be a folder"),
        (["verify", "../x"], 2, "Error: model '..' cannot be a folder"),
        (["pull", MODEL, "."], 1, "Error: .: it has no name of its own"),
        (["pull", MODEL, ""], 1, "Error: .: it has no name of its own"),
        (["pull", MODEL, "/"], 1, "Error: /: it has no name of its own"),
        (["pull", MODEL, "dest/.."], 1, "Error: dest/..: it has no name of its own"),
        (["pull", "nobody", "dest"], 1, "Error: nobody has no channel 'latest'"),
        (["pull", f"{MODEL}/{SECOND}", "dest"], 1, f"Error: {MODEL} has no complete release {SECOND}"),
        (["pull", MODEL], 2, "Error: Missing argument 'DEST'"),
        (["verify", f"{MODEL}@staging"], 1, "Error: two_tower has no channel 'staging'"),
        (["watch", f"{MODEL}/{FIRST}"], 2, "Error: watch: two_tower/20251031T093831Z is one release"),
        (["watch", MODEL, "--interval", "0.5"], 2, "Error: Invalid value for '--interval'"),
        (["watch", MODEL, "--interval", "nan"], 2, "Error: Invalid value for '--interval'"),
        (["watch", MODEL, "--interval", "inf"], 2, "Error: Invalid value for '--interval'"),
        (["watch", MODEL, "--interval", "1e300"], 2, "Error: Invalid value for '--interval'"),
        (["watch", MODEL, "--exec", "it's"], 2, "Error: Invalid value for --exec"),
        (["watch", MODEL, "--exec", ""], 2, "Error: Invalid value for --exec: it names no command"),
        (["watch", MODEL, "--exec", "''"], 2, "Error: Invalid value for --exec: it names no command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.usefixtures("embedded")
def test_bad_input_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = invoke(*arguments, "--home", tmp_path / "home")
    assert said.error.startswith(line)
    assert said.code == code
    assert not (tmp_path / "dest").exists()


@contextmanager
def watching(
    directory: Path, *arguments: str, environment: Mapping[str, str] | None = None, stdout: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`supabase-bridge watch` in a directory; what it says goes to the files `out`, unless to `stdout`, and `err`."""
    with (directory / "out").open("w") as out, (directory / "err").open("w") as err:
        process = subprocess.Popen(
            [EXECUTABLE, "watch", *arguments],
            cwd=directory,
            env=clean_environment(directory, environment),
            stdin=subprocess.DEVNULL,
            stdout=out if stdout is None else stdout,
            stderr=err,
            text=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_watch_runs_a_command_for_each_switch_with_its_facts_in_the_environment(
    embedded: Bucket, tmp_path: Path
) -> None:
    script = tmp_path / "reload.sh"
    script.write_text(
        '#!/bin/sh\necho "$1 $SUPABASE_RELEASE_MODEL $SUPABASE_RELEASE_CHANNEL $SUPABASE_RELEASE_RUN_ID '
        '$SUPABASE_RELEASE_SEQUENCE $(ls "$SUPABASE_RELEASE_DIRECTORY" | wc -l) $(wc -c < "$SUPABASE_RELEASE_ONNX")"'
        f" >> {tmp_path / 'told'}\nexit 3\n"
    )
    script.chmod(0o755)
    told = tmp_path / "told"

    def lines() -> list[str]:
        return told.read_text().splitlines() if told.exists() else []

    command = f"{script} 'two words; $(touch {tmp_path}/injected)'"
    with watching(tmp_path, MODEL, "--home", "home", "--interval", "1", "--exec", command) as process:
        until(lambda: len(lines()) == 1, "the first report", limit_seconds=30)
        embedded.promote(SECOND)
        until(lambda: len(lines()) == 2, "the switch", limit_seconds=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    size = len(embedded.files(FIRST)[ONNX])
    first = f"two words; $(touch {tmp_path}/injected)"
    assert lines() == [
        f"{first} {MODEL} latest {FIRST} 1 3 {size}",
        f"{first} {MODEL} latest {SECOND} 2 3 {size}",
    ]
    assert not (tmp_path / "injected").exists()
    assert (tmp_path / "err").read_text().count("reload.sh ended with exit code 3 for") == 2
    assert [line.split()[1] for line in (tmp_path / "out").read_text().splitlines()] == [FIRST, SECOND]


def test_watch_ends_its_command_with_itself(embedded: Bucket, tmp_path: Path) -> None:
    assert embedded.sequence == 1
    command = f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600'"
    with watching(tmp_path, MODEL, "--home", "home", "--json", "--exec", command) as process:
        until((tmp_path / "pid").exists, "the command", limit_seconds=30)
        until(lambda: (tmp_path / "pid").read_text() != "", "its number", limit_seconds=30)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert json.loads((tmp_path / "out").read_text())["run_id"] == FIRST


def test_watch_runs_its_command_where_nobody_reads_what_it_prints(embedded: Bucket, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    told = tmp_path / "told"
    command = f"sh -c 'echo $SUPABASE_RELEASE_RUN_ID && echo $SUPABASE_RELEASE_RUN_ID >> {told}'"
    with watching(tmp_path, MODEL, "--home", "home", "--interval", "1", "--exec", command, stdout=write) as process:
        os.close(write)
        until(lambda: told.exists() and told.read_text() == f"{FIRST}\n", "the first run", limit_seconds=30)
        embedded.promote(SECOND)
        until(lambda: told.read_text() == f"{FIRST}\n{SECOND}\n", "the second run", limit_seconds=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert (tmp_path / "err").read_text().count("stdout is closed") == 1


def test_watch_kills_a_command_that_does_not_end_when_it_is_asked_to(embedded: Bucket, tmp_path: Path) -> None:
    assert embedded.sequence == 1
    command = f"""sh -c 'trap "" TERM; echo $$ > {tmp_path}/pid; exec sleep 600'"""
    with watching(tmp_path, MODEL, "--home", "home", "--exec", command) as process:
        until((tmp_path / "pid").exists, "the command", limit_seconds=30)
        until(lambda: (tmp_path / "pid").read_text() != "", "its number", limit_seconds=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_watch_says_that_a_command_cannot_be_run(embedded: Bucket, tmp_path: Path) -> None:
    assert embedded.sequence == 1
    with watching(tmp_path, MODEL, "--home", "home", "--exec", "no-such-program") as process:
        until(lambda: "cannot be run" in (tmp_path / "err").read_text(), "the complaint", limit_seconds=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


@pytest.mark.usefixtures("embedded")
def test_pull_refuses_a_directory_of_other_files_by_its_top_level(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep" / "closed").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "closed" / "file").write_text("mine")
    said = invoke("pull", MODEL, tmp_path / "data", "--home", tmp_path / "home")
    assert (said.code, "it holds 'deep', which is no part of a release" in said.error) == (1, True)


def test_a_model_name_in_japanese_is_shown_as_its_characters_with_the_remedy(tmp_path: Path) -> None:
    said = invoke("pull", "\u30c7\u30e2", tmp_path / "dest", "--home", tmp_path / "home")
    assert said.code == 2
    assert "it has '\u30c7', '\u30e2' in it" in said.error
    assert "tag supabase.key" in said.error
