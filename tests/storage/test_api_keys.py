"""Which key goes into which header, and what the simulated gateway makes of it, as the hosted one is documented to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

import httpx
import pytest
from pydantic import SecretStr

from supabase_bridge.core.errors import BridgeError
from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.errors import AccessDeniedError, StoreUnavailableError
from supabase_bridge.storage.supabase.client import Transport
from supabase_bridge.storage.supabase.endpoint import key_headers
from tests.support.simulators.storage import Outage, StorageSimulator
from tests.support.stores import supabase_store

BUCKET = "models"
PLAIN = PutOptions(content_type="application/octet-stream")
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36"


def asked(simulator: StorageSimulator, **headers: str) -> tuple[int, str]:
    """The status and the message of the listing of an object's bucket with these headers."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = httpx.post(f"{simulator.url}/storage/v1/object/list-v2/{BUCKET}", headers=sent, json={"prefix": ""})
    facts = answer.json()
    return answer.status_code, facts.get("message") or f"{len(facts['objects'])} objects"


@pytest.fixture
def project(simulator: StorageSimulator) -> StorageSimulator:
    simulator.put_object(BUCKET, "m/a", b"content")
    return simulator


# --- the client -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["sb_secret_abc", "sb_publishable_abc", "eyJhbGci.eyJyb2xl.abc"])
def test_a_key_goes_into_apikey_and_into_authorization_only_with_the_same_value(key: str) -> None:
    assert key_headers(key) == {"apikey": key, "authorization": f"Bearer {key}"}


@pytest.mark.parametrize("attribute", ["service_key", "legacy_service_key"])
def test_a_secret_key_of_either_form_writes_and_reads(project: StorageSimulator, attribute: str) -> None:
    store = supabase_store(project, key=getattr(project, attribute))
    store.ensure_bucket()
    store.create("m/b", b"1", PLAIN)
    assert store.read("m/b", limit_bytes=10) == b"1"
    assert [info.key for info in store.list("")] == ["m/a", "m/b"]
    store.close()


@pytest.mark.parametrize("attribute", ["anon_key", "legacy_anon_key"])
def test_a_publishable_key_of_either_form_reads_under_a_policy_and_writes_nothing(
    project: StorageSimulator, attribute: str
) -> None:
    project.let_anon_read(BUCKET)
    store = supabase_store(project, key=getattr(project, attribute))
    assert store.read("m/a", limit_bytes=10) == b"content"
    with pytest.raises(AccessDeniedError):
        store.create("m/b", b"1", PLAIN)
    store.close()


def test_a_deleted_key_is_refused_and_the_message_names_the_variable(project: StorageSimulator) -> None:
    key = project.gateway.create_secret_key()
    store = supabase_store(project, key=key)
    assert store.read("m/a", limit_bytes=10) == b"content"
    project.gateway.delete_key(key)
    with pytest.raises(AccessDeniedError, match="check SUPABASE_SECRET_KEY") as caught:
        store.read("m/a", limit_bytes=10)
    assert key not in str(caught.value)
    store.close()


# --- the gateway ------------------------------------------------------------------------------------------------------


def test_the_gateway_exchanges_a_key_in_apikey_alone_or_with_the_same_authorization(project: StorageSimulator) -> None:
    for key in (project.service_key, project.gateway.create_secret_key()):
        assert asked(project, apikey=key) == (200, "1 objects")
        assert asked(project, **key_headers(key)) == (200, "1 objects")
    assert asked(project, apikey=project.anon_key) == (200, "0 objects")


def test_the_gateway_refuses_a_new_key_in_authorization_that_is_not_the_one_in_apikey(
    project: StorageSimulator,
) -> None:
    bearer = f"Bearer {project.service_key}"
    assert asked(project, authorization=bearer)[0] == 401
    assert asked(project, authorization=bearer, apikey=project.anon_key)[0] == 401
    assert asked(project, authorization=bearer, apikey=project.legacy_service_key)[0] == 401


def test_the_gateway_refuses_unknown_keys_and_a_secret_key_from_a_browser(project: StorageSimulator) -> None:
    assert asked(project, apikey="sb_secret_of_another_project")[0] == 401
    assert asked(project, **key_headers("sb_publishable_of_another_project"))[0] == 401
    assert asked(project, apikey=project.service_key, user_agent=BROWSER)[0] == 401
    assert asked(project, apikey=project.anon_key, user_agent=BROWSER) == (200, "0 objects")


def test_the_gateway_passes_a_jwt_in_authorization_on_and_refuses_disabled_legacy_keys(
    project: StorageSimulator,
) -> None:
    bearer = f"Bearer {project.legacy_service_key}"
    assert asked(project, authorization=bearer) == (200, "1 objects")
    assert asked(project, authorization=bearer, apikey=project.anon_key) == (200, "1 objects")
    project.gateway.disable_legacy_keys()
    assert asked(project, authorization=bearer) == (401, "Legacy API keys are disabled")
    assert asked(project, apikey=project.legacy_anon_key)[0] == 401
    assert asked(project, apikey=project.service_key) == (200, "1 objects")


# --- what the newer server adds ---------------------------------------------------------------------------------------


def test_the_newer_build_wants_a_content_type_to_create_a_bucket_and_the_client_sends_one() -> None:
    with StorageSimulator(newer_build=True) as newer:
        headers = key_headers(newer.service_key)
        answer = httpx.post(f"{newer.url}/storage/v1/bucket", headers=headers, content=b'{"name":"models"}')
        assert (answer.status_code, answer.json()["message"]) == (400, "body must be object")
        store = supabase_store(newer)
        store.ensure_bucket()
        store.close()
        assert newer.buckets() == [BUCKET]


def warnings_in(log: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in log.records if record.levelno >= logging.WARNING]


RULE = {
    "id": "old",
    "status": "Enabled",
    "filter": {},
    "noncurrentVersionExpiration": {"noncurrentDays": 30, "newerNoncurrentVersions": 2},
}


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (lambda project: project.keep_versions(BUCKET), "is kept as an old version and paid for, and no rule removes"),
        (
            lambda project: project.keep_versions(BUCKET, rules=[RULE]),
            "until a rule removes it after 30 days, but for the newest 2 of each object",
        ),
        (lambda project: project.keep_versions(BUCKET, "SUSPENDED"), "versioning is suspended"),
        (lambda project: project.keep_versions(BUCKET, rules=[{**RULE, "status": "Disabled"}]), "no rule removes it"),
    ],
)
def test_a_bucket_that_keeps_old_versions_is_named_when_it_is_opened_with_what_that_means(
    project: StorageSimulator,
    bridge_log: pytest.LogCaptureFixture,
    keep: Callable[[StorageSimulator], None],
    said: str,
) -> None:
    keep(project)
    store = supabase_store(project)
    with bridge_log.at_level(logging.WARNING):
        store.ensure_bucket()
    store.close()
    (versions,) = {record.__dict__["versions"] for record in warnings_in(bridge_log)}
    assert said in versions


@pytest.mark.parametrize("status", [None, "DISABLED"])
def test_a_bucket_without_versioning_is_opened_with_one_request_and_no_warning(
    project: StorageSimulator, bridge_log: pytest.LogCaptureFixture, status: str | None
) -> None:
    if status is not None:
        project.keep_versions(BUCKET, status)
    store = supabase_store(project)
    store.ensure_bucket()
    store.close()
    assert warnings_in(bridge_log) == []
    assert [call.method for call in project.calls()] == ["GET"]


@pytest.mark.parametrize(
    ("outage", "remedy"),
    [
        (Outage.OVER_QUOTA, "billing"),
        (Outage.FULL_DISK, "the disk of the storage is full"),
        (Outage.PAUSED, "the project is paused"),
        (Outage.DATABASE_TIMEOUT, "the project's database did not answer in time"),
    ],
)
def test_an_outage_is_waited_for_with_its_remedy_and_a_full_disk_is_still_read(
    project: StorageSimulator, outage: Outage, remedy: str
) -> None:
    store = supabase_store(project)
    project.suffer(outage)
    with pytest.raises(StoreUnavailableError, match=remedy):
        store.create("m/b", b"1", PLAIN)
    try:
        readable = store.read("m/a", limit_bytes=10) == b"content"
    except StoreUnavailableError:
        readable = False
    assert readable == (outage is Outage.FULL_DISK)
    project.suffer(Outage.NONE)
    store.create("m/b", b"1", PLAIN)
    store.close()


def test_a_key_is_not_in_the_error_of_a_refusal(project: StorageSimulator) -> None:
    transport = Transport(
        url=project.url,
        key=SecretStr("sb_secret_wrong"),
        bucket=BUCKET,
        timeout=timedelta(seconds=10),
        pause=lambda _: None,
    )
    with pytest.raises(BridgeError) as caught:
        transport.run(transport.request("listing"), lambda: transport.http().get(transport.url("bucket")))
    assert "sb_secret_wrong" not in str(caught.value)
    transport.close()
