"""A storage server that answers anything: an error of ours, in bounded time, and never more than was asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from supabase_bridge.core.errors import BridgeError
from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.hashing import md5_of
from supabase_bridge.storage.supabase.client import Transport
from supabase_bridge.storage.supabase.store import SupabaseStore
from supabase_bridge.storage.supabase.upload import read_info
from tests.attacks.fuzzing import fuzzed, json_value, junk, mixed, text
from tests.support.simulators.storage import Fault, Respond, StorageSimulator

KEY = "two_tower/latest/manifest.json"
COPIED = PutOptions(sha256=hashlib.sha256(b"{}").hexdigest(), md5=md5_of(b"{}").hexdigest())
TRANSPORT = Transport(
    url="https://x.supabase.co",
    key=SecretStr("key"),
    bucket="models",
    timeout=timedelta(seconds=1),
    pause=lambda _: None,
)
"""Never connected."""

status = st.sampled_from(
    [200, 201, 204, 206, 301, 304, 400, 401, 403, 404, 409, 410, 413, 416, 418, 429, 500, 503, 599]
)
refusal = mixed(statusCode=text, code=text, error=text, message=st.one_of(text, st.just("Bucket not found")))
listing = mixed(
    objects=st.lists(
        mixed(name=text, id=text, key=text, updated_at=text, metadata=mixed(size=st.integers())), max_size=2
    ),
    folders=st.just([]),
    hasNext=st.booleans(),
    nextCursor=text,
)
info = mixed(
    size=st.integers(),
    last_modified=text,
    etag=text,
    metadata=mixed(sha256=st.one_of(text, st.just("0" * 64)), upload=text, signing=st.one_of(text, st.just("0" * 64))),
)
signed = mixed(signedURL=text)
body = st.one_of(
    junk, st.one_of(refusal, listing, info, signed, json_value).map(lambda value: json.dumps(value).encode())
)
plain = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
headers = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(["application/json", "text/html", "text/plain", "x", ""]),
        "etag": plain,
        "content-range": st.one_of(plain, st.just("bytes 0-1/2"), st.just("bytes 99999999999999999999-1/2")),
        "content-encoding": st.sampled_from(["identity", "gzip", "br", "x"]),
        "location": st.one_of(plain, st.just("https://evil.example/x"), st.just("//evil.example"), st.just("http://[")),
        "upload-offset": st.sampled_from(["0", "-1", "x", "99999999999", "1e3", "٣".encode().decode("latin-1")]),
        "upload-length": plain,
        "retry-after": st.sampled_from(["0", "-1", "999999999", "x"]),
    },
)


@pytest.fixture(scope="module")
def server() -> Iterator[StorageSimulator]:
    with StorageSimulator() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def store(server: StorageSimulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupabaseStore]:
    """The adapter, with pauses that take no time."""
    made = SupabaseStore(
        url=server.url,
        key=SecretStr(server.service_key),
        bucket="models",
        timeout=timedelta(seconds=5),
        resumable_threshold_bytes=100,
        uploads=tmp_path_factory.mktemp("uploads"),
        pause=lambda _: None,
    )
    server.put_object("models", KEY, b"{}")
    with closing(made):
        yield made


OPERATIONS: dict[str, Callable[[SupabaseStore, Path], object]] = {
    "read": lambda store, _: store.read(KEY, limit_bytes=1_000),
    "stream": lambda store, _: sum(map(len, store.stream(KEY))),
    "stat": lambda store, _: store.stat(KEY),
    "list": lambda store, _: list(store.list("two_tower/")),
    "create": lambda store, _: store.create("two_tower/new", b"x", PutOptions()),
    "overwrite": lambda store, _: store.overwrite(KEY, b"{}", PutOptions()),
    "resumable": lambda store, path: store.overwrite("two_tower/large", path, PutOptions()),
    "copy": lambda store, _: store.copy_in("models", store.stat(KEY), "two_tower/copy", COPIED),
    "delete": lambda store, _: store.delete(["two_tower/none"]),
    "sign": lambda store, _: store.signed_url(KEY, lifetime=timedelta(seconds=60)),
    "bucket": lambda store, _: store.ensure_bucket(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@fuzzed(12, deadline=timedelta(seconds=5))
@given(status=status, body=body, headers=headers, times=st.sampled_from([1, 3, None]))
def test_a_server_that_answers_anything_gets_an_error_of_ours_and_is_not_asked_for_ever(
    server: StorageSimulator,
    store: SupabaseStore,
    tmp_path_factory: pytest.TempPathFactory,
    operation: str,
    status: int,
    body: bytes,
    headers: dict[str, str],
    times: int | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "large"
    path.write_bytes(b"x" * 500)
    server.clear_faults()
    server.reset_calls()
    server.inject(Fault(action=Respond(status, b"" if status in {204, 304} else body, headers), times=times))
    told = ""
    try:
        OPERATIONS[operation](store, path)
    except BridgeError as error:
        told = str(error)
    finally:
        server.clear_faults()
    assert len(told) <= 1_000
    assert server.service_key not in told
    assert len(server.calls()) <= 60


@fuzzed()
@given(st.one_of(info, json_value))
def test_any_answer_about_an_object_is_understood_or_a_value_error(answer: object) -> None:
    try:
        found = read_info(TRANSPORT, KEY, answer)
    except ValueError:
        return
    assert found.info.size_bytes >= 0
    assert found.info.sha256 is None or len(found.info.sha256) == 64
    assert not found.info.digest_authenticated
