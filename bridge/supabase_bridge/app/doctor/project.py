"""Checks of the Supabase project: URL, keys and their rights, bucket, policy for readers, clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import SecretStr

from supabase_bridge.app.doctor.check import Check, Status, failed, ok, skipped, warning
from supabase_bridge.app.doctor.database import clock
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.settings.api_keys import PUBLISHABLE_KEY, SECRET_KEY, kind_of_key
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import BINARY_TYPE, JSON_TYPE
from supabase_bridge.storage.errors import AccessDeniedError, BucketNotFoundError, StoreUnavailableError

if TYPE_CHECKING:
    from httpx import Response

    from supabase_bridge.storage.supabase.client import Transport

_HOSTED = ".supabase.co"
_LIMIT_ADVISED_BYTES = 50_000_000
_NAMES = ("secret key", "publishable key", "Supabase", "Supabase clock", "rights", "bucket", "readers")
_KEY_PAGE = "the project's page Settings > API Keys"
_POLICY = "create the policy of docs/consumers.md in the project's SQL editor, or make the bucket public"


def project_checks(settings: Settings, ignored: Mapping[str, str], *, consumer: bool) -> Iterator[Check]:
    """Check the project, or the directory in its place.

    Args:
        ignored: See `api_keys.superseded_variables`.
        consumer: The installation only reads releases.
    """
    if settings.supabase_url is None:
        yield skipped("Supabase", f"no SUPABASE_URL is set; releases go to {settings.home / 'supabase'}")
        return
    checks = [
        _secret_key(settings.service_key, settings.supabase_url, ignored, consumer=consumer),
        _publishable_key(settings.anon_key, settings.supabase_url, ignored),
    ]
    yield from checks
    key = settings.service_key or settings.anon_key
    if any(check.status is Status.FAILED for check in checks):
        yield from _skip("a key is wrong or missing", after="publishable key")
    elif key is None:
        yield from _skip("no key is set: the bucket is read as a public one", after="publishable key")
    else:
        yield from _of_server(settings, key)


def _skip(reason: str, *, after: str) -> Iterator[Check]:
    return (skipped(name, reason) for name in _NAMES[_NAMES.index(after) + 1 :])


def _secret_key(key: SecretStr | None, url: str, ignored: Mapping[str, str], *, consumer: bool) -> Check:
    name = "secret key"
    if key is None and consumer:
        return skipped(name, f"{SECRET_KEY} is not set, and a consumer does not need it")
    if key is None:
        remedy = (
            f"set it to a secret key from {_KEY_PAGE}; an installation that only reads releases is checked by "
            "`supabase-bridge doctor --consumer`"
        )
        return failed(name, f"{SECRET_KEY} is not set, and the server and the worker need it", remedy)
    found = _key(name, key, url, ignored, writes=True)
    if consumer and found.status is not Status.FAILED:
        problem = f"{found.detail}, with which this consumer could change everything in the project"
        return warning(name, problem, f"remove it here, and set {PUBLISHABLE_KEY}")
    return found


def _publishable_key(key: SecretStr | None, url: str, ignored: Mapping[str, str]) -> Check:
    name = "publishable key"
    if key is None:
        return skipped(name, f"{PUBLISHABLE_KEY} is not set")
    return _key(name, key, url, ignored, writes=False)


def _key(name: str, key: SecretStr, url: str, ignored: Mapping[str, str], *, writes: bool) -> Check:
    """Check the kind of a key, its project and its end, as far as its text has them."""
    variable = SECRET_KEY if writes else PUBLISHABLE_KEY
    kind, host = kind_of_key(key.get_secret_value().strip()), urlsplit(url).hostname or ""
    remedy = f"copy the {name} from {_KEY_PAGE}, and set {variable} to it"
    if kind.writes is None:
        return failed(name, f"it is {kind.words}", remedy)
    if kind.writes is not writes:
        consequence = "it cannot write" if writes else "every consumer that has it can write everything"
        return failed(name, f"it is {kind.words}: {consequence}", remedy)
    if kind.expires is not None and kind.expires < datetime.now(timezone.utc):
        return failed(name, f"{kind.words}, and it expired on {kind.expires:%Y-%m-%d}", remedy)
    if kind.project is not None and host.endswith(_HOSTED) and host != f"{kind.project}{_HOSTED}":
        return failed(name, f"{kind.words} of the project {kind.project}, and SUPABASE_URL names {host}", remedy)
    for legacy, beside in ignored.items():
        if beside == variable:
            return warning(name, f"{kind.words}; {legacy} is set too, and ignored", f"remove {legacy}")
    if kind.legacy and host.endswith(_HOSTED):
        return warning(name, f"{kind.words}: Supabase ends these in 2026", remedy)
    return ok(name, kind.words)


def _of_server(settings: Settings, key: SecretStr) -> Iterator[Check]:
    transport = _transport(settings, key)
    with closing(transport):
        request = transport.request("listing the buckets")
        try:
            response = transport.run(request, lambda: transport.http().get(transport.url("bucket")))
        except AccessDeniedError as error:
            yield failed("Supabase", str(error), f"copy the key of this project from {_KEY_PAGE}")
            yield from _skip("the server refused the key", after="Supabase")
            return
        except BridgeError as error:
            remedy = "check SUPABASE_URL; a paused project must be restored in the dashboard"
            if isinstance(error, StoreUnavailableError):
                remedy += "; see also the network, and the proxy variables HTTPS_PROXY and NO_PROXY"
            yield failed("Supabase", str(error), remedy)
            yield from _skip("the server did not answer", after="Supabase")
            return
        yield ok("Supabase", f"{settings.supabase_url} answers and accepts the key")
        yield _server_clock(response.headers.get("date", ""))
        if settings.service_key is not None:
            yield _rights(response)
            yield _bucket(settings, transport)
        else:
            yield skipped("rights", "those of a reader: see the check of readers")
            yield skipped("bucket", "a consumer's key does not see the bucket's settings")
        yield _readers(settings, transport)


def _transport(settings: Settings, key: SecretStr) -> Transport:
    # The import of storage3 takes 0.2 s, which an installation without Supabase need not wait for.
    from supabase_bridge.storage.supabase.client import Transport

    return Transport(
        url=settings.supabase_url or "",
        key=key,
        bucket=settings.bucket,
        timeout=settings.request_timeout,
        pause=lambda _seconds: None,
    )


def _server_clock(header: str) -> Check:
    try:
        return clock("Supabase clock", parsedate_to_datetime(header))
    except (ValueError, TypeError):
        return skipped("Supabase clock", "the server sent no Date header")


def _rights(response: Response) -> Check:
    """Tell from the list of buckets whether the server lets the key pass its policies; only such a key sees any."""
    name = "rights"
    try:
        count = len(response.json())
    except (ValueError, TypeError):
        return failed(name, "the server sent no list of buckets", "check that SUPABASE_URL names a Supabase project")
    if count:
        return ok(name, f"the key may read and write everything: it sees {count} buckets")
    return skipped(name, "the key sees no bucket: the project has none yet, or the key has no rights")


def _bucket(settings: Settings, transport: Transport) -> Check:
    """Check that the secret key sees the bucket, and that the bucket accepts what a release has."""
    from supabase_bridge.storage.supabase.bucket import read_bucket

    name, bucket = "bucket", settings.bucket
    try:
        found = read_bucket(transport)
    except BucketNotFoundError:
        remedy = "nothing, if this is the right project: the worker creates it, private, when it starts"
        return warning(name, f"the secret key sees no bucket {bucket!r}", remedy)
    except BridgeError as error:
        return failed(name, str(error), "check the key's rights")
    limit, types = found.file_size_limit, found.allowed_mime_types
    facts = [f"{bucket!r} is {'public' if found.public else 'private'}"]
    if types is not None and (refused := {JSON_TYPE, BINARY_TYPE} - set(types)) and "*/*" not in types:
        problem = f"{bucket!r} accepts only some MIME types, and not {', '.join(sorted(refused))}"
        return failed(name, problem, "remove the restriction in the bucket's settings")
    project_limit = "file size limit of the project (Storage settings; 50 MB on the Free plan)"
    facts.append(project_limit if limit is None else f"files of up to {limit} bytes")
    remedies = []
    if limit is not None and limit < _LIMIT_ADVISED_BYTES:
        remedies.append("raise the bucket's file size limit if a model is larger")
    if found.kept_versions is not None:
        facts.append(found.kept_versions)
        remedies.append("set a lifecycle rule that expires old versions, or suspend versioning (docs/operations.md)")
    if remedies:
        return warning(name, ", ".join(facts), "; ".join(remedies))
    return ok(name, ", ".join(facts))


def _readers(settings: Settings, transport: Transport) -> Check:
    """Check what the publishable key sees: at least the object that the secret key sees."""
    from supabase_bridge.storage.supabase.store import list_objects

    name = "readers"
    if settings.anon_key is None:
        return skipped(name, f"set {PUBLISHABLE_KEY} here too to check the policy for readers")
    reader = _transport(settings, settings.anon_key)
    with closing(reader):
        try:
            seen = list(islice(list_objects(reader, ""), 1))
            hidden = list(islice(list_objects(reader, "_tmp/"), 1))
            if seen:
                if hidden:
                    remedy = "exclude _tmp/ in the policy, as docs/consumers.md does"
                    return warning(name, "the publishable key sees unfinished uploads (_tmp/)", remedy)
                return ok(name, f"the publishable key sees objects of {settings.bucket!r}")
            if settings.service_key is None:
                return warning(
                    name, f"the publishable key sees no object of {settings.bucket!r}", f"if it is not empty: {_POLICY}"
                )
            if next(iter(list_objects(transport, "")), None) is None:
                return skipped(name, "the bucket has no object yet")
        except BridgeError as error:
            return failed(name, str(error), _POLICY)
    return failed(name, f"the publishable key sees no object of {settings.bucket!r}", _POLICY)
