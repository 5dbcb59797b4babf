"""Settings, database URLs and files on the disk that hold anything: an error of ours, or as if they were not there."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from supabase_bridge.client.cache import Cache
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.outbox.queue import open_outbox
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.supabase.resumable import lock_upload, upload_id
from tests.attacks.fuzzing import fuzzed, junk, text

NAMES = [
    *("supabase_url", "bucket", "database_url", "artifacts_destination", "tracking_uri", "artifact_buckets"),
    *("allowed_sources", "cache_dir", "cache_limit_bytes", "resumable_threshold_bytes", "lease", "poll_interval"),
    *(
        "channels",
        "channels.stages.Production",
        "channels.aliases.x",
        "workspaces.x",
        "service_key",
        "home",
        "nonsense",
    ),
]
VALUES = [
    *(
        "1",
        "-1",
        "nan",
        "inf",
        "1e999",
        "true",
        "''",
        "'x'",
        '"\\u0000"',
        "'~nobody-here/x'",
        "[]",
        "['x']",
        "[1]",
        "{}",
    ),
    *("{x = 'y'}", "2025-10-31", "2025-13-45", "9" * 5_000, "[" * 2_000, "{a=" * 2_000, "'https://[x'", "'\"", "= ="),
]
VARIABLES = [
    *("SUPABASE_URL", "SUPABASE_PROJECT_REF", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_BRIDGE_BUCKET", "HOME"),
    *("SUPABASE_BRIDGE_DATABASE_URL", "SUPABASE_BRIDGE_ARTIFACT_BUCKETS", "SUPABASE_BRIDGE_CACHE", "XDG_CACHE_HOME"),
    *("SUPABASE_BRIDGE_HOME", "SUPABASE_BRIDGE_TRACKING_URI", "SUPABASE_BRIDGE_ARTIFACTS_DESTINATION"),
]
URL_PARTS = [
    "https://",
    "http:",
    "//",
    "x.supabase.co",
    "@",
    ":",
    "user",
    "[",
    "]",
    "::1",
    "99999999",
    "?",
    "#",
    "/",
    "\n",
    " ",
]
DATABASE_PARTS = [
    *(
        "postgresql",
        "+psycopg",
        "+nope",
        "sqlite",
        "mysql+pymysql",
        "://",
        "/",
        "//",
        "user",
        ":",
        "@",
        "host",
        "99999999",
    ),
    *("?", "timeout=x", "a=b", "&", "[::1", "%00", "\0", "db", "isolation_level=1", "port"),
]


def load(home: Path, environ: Mapping[str, str]) -> Settings | None:
    try:
        return Settings.load(home=home, environ=environ)
    except BridgeError:
        return None


@fuzzed()
@given(
    st.one_of(
        junk,
        st.lists(st.builds("{} = {}".format, st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=4)
        .map("\n".join)
        .map(str.encode),
    )
)
@example(b"a = " + b"[" * 10_000)
@example(b"x = " + b"9" * 10_000)
@example(b'cache_dir = "~nobody-here/x"')
def test_any_settings_file_is_read_or_an_error_of_ours(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "supabase-bridge.toml").write_bytes(data)
        load(Path(directory), {})


@fuzzed()
@given(
    st.dictionaries(
        st.sampled_from(VARIABLES),
        st.one_of(
            text.map(lambda value: value.replace("\0", "")),
            st.lists(st.sampled_from(URL_PARTS), max_size=6).map("".join),
        ),
        max_size=4,
    )
)
def test_any_environment_is_read_or_an_error_of_ours(environ: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        found = load(Path(directory), environ)
        if found is not None and found.supabase_url is not None:
            assert "@" not in found.supabase_url


@fuzzed()
@given(st.one_of(text, st.lists(st.sampled_from(DATABASE_PARTS), max_size=8).map("".join)))
@example("postgresql://u:p@host:port/db")
@example("sqlite:///x?timeout=x")
@example("sqlite:///\0")
def test_any_database_url_is_opened_or_an_error_of_ours(url: str) -> None:
    # A host that is none is looked up; nothing here names one that could be.
    if "host" in url and "://" in url and not url.startswith("sqlite"):
        url = url.replace("host", "127.0.0.1:1")
    with tempfile.TemporaryDirectory() as directory, suppress(BridgeError):
        settings = Settings.load(home=Path(directory), environ={}, database_url=url)
        with open_outbox(settings):
            pass


@fuzzed()
@given(junk, st.sampled_from(["entry", "directory", "link", "missing"]))
def test_a_damaged_cache_is_as_if_it_were_not_there(data: bytes, kind: str) -> None:
    content = b"what was released"
    record = FileRecord(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    with tempfile.TemporaryDirectory() as directory:
        entry = Path(directory, "cache", "blobs", record.sha256)
        entry.parent.mkdir(parents=True)
        if kind == "entry":
            entry.write_bytes(data)
        elif kind == "directory":
            entry.mkdir()
        elif kind == "link":
            entry.symlink_to("/etc/passwd")
        target = Path(directory, "target")
        cache = Cache(Path(directory, "cache"), limit_bytes=10**6)
        if not cache.copy_to(record, target):
            assert not target.exists()
            target.write_bytes(content)
            cache.add(record, target)
        assert target.read_bytes() == content


@fuzzed()
@given(
    st.one_of(
        junk,
        st.builds(
            lambda url, token: json.dumps({"url": url, "token": token}).encode(),
            st.one_of(text, st.just("https://evil.example/upload/resumable/x")),
            st.sampled_from(["0" * 32, "../x", "0" * 32 + "\n", ""]),
        ),
    )
)
def test_a_damaged_memory_of_an_upload_is_as_if_it_were_not_there(data: bytes) -> None:
    name = upload_id("https://x/", "models", "k", size_bytes=1, sha256="0" * 64)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, f"{name}.json").write_bytes(data)
        with lock_upload(Path(directory), name) as claim:
            assert len(claim.token) == 32
            assert set(claim.token) <= set("0123456789abcdef")
        assert not list(Path(directory).iterdir())
