"""Supabase's own clients list and read releases and manifests of the simulated project as ours do."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from supabase_bridge.storage.base import PutOptions
from tests.support.commands import clean_environment
from tests.support.consumers import BUCKET, FIRST, MODEL, SECOND, Bucket
from tests.support.peers import PEERS, official_command_line, run_peer
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import supabase_store

LIMIT_BYTES = 1_000_000


@pytest.fixture
def project() -> Iterator[StorageSimulator]:
    """Yield a project with two releases, which our own store wrote."""
    with StorageSimulator() as simulator, closing(supabase_store(simulator)) as store:
        store.ensure_bucket()
        bucket = Bucket(lambda key, data: store.overwrite(key, data, PutOptions(sha256=digest(data))))
        bucket.promote(FIRST)
        bucket.promote(SECOND)
        yield simulator


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("role", ["service", "anon"])
def test_the_javascript_client_lists_and_reads_what_the_bridge_wrote(project: StorageSimulator, role: str) -> None:
    project.let_anon_read(BUCKET)
    keys = project.object_keys(BUCKET)
    project.put_object(BUCKET, "_tmp/unfinished", b"")
    key = project.service_key if role == "service" else project.anon_key
    found = run_peer("read.mjs", {"url": project.url, "key": key, "bucket": BUCKET})
    if role == "service":
        keys = ["_tmp/unfinished", *keys]
    assert len(keys) >= 9
    assert sorted(found["folders"]) == keys
    assert sorted(found["prefix"]) == keys
    assert found["objects"] == {key: digest(project.object_bytes(BUCKET, key)) for key in keys}
    assert found["metadata"] == {key: project.object_metadata(BUCKET, key) for key in keys}


def test_supabases_command_line_lists_and_copies_what_the_bridge_wrote(
    project: StorageSimulator, tmp_path: Path
) -> None:
    (tmp_path / "supabase").mkdir()
    port = project.url.rpartition(":")[2]
    (tmp_path / "supabase" / "config.toml").write_text(f'project_id = "peers"\n[api]\nport = {port}\n')
    environment = clean_environment(
        tmp_path,
        {
            "SUPABASE_AUTH_SERVICE_ROLE_KEY": project.service_key,
            "SUPABASE_AUTH_JWT_SECRET": "a secret of forty characters or so for it",
            "SUPABASE_TELEMETRY_DISABLED": "1",
        },
    )

    def run(*arguments: str) -> str:
        command = [str(official_command_line()), "storage", *arguments, "--experimental"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    keys = project.object_keys(BUCKET)
    assert sorted(run("ls", "-r", f"ss:///{BUCKET}/").splitlines()) == [f"/{BUCKET}/{key}" for key in keys]
    run("cp", "-r", f"ss:///{BUCKET}/{MODEL}", "copied")
    copied = {str(path.relative_to(tmp_path / "copied")): path for path in (tmp_path / "copied").rglob("*.*")}
    assert {f"{MODEL}/{name}": digest(path.read_bytes()) for name, path in copied.items()} == {
        key: digest(project.object_bytes(BUCKET, key)) for key in keys
    }


def test_the_lock_file_of_the_peers_has_digests_and_names_no_registry() -> None:
    lock = (PEERS / "package-lock.json").read_text()
    assert '"integrity"' in lock
    assert "://" not in re.sub(r'"(?:url|funding)": "[^"]*"', "", lock)
