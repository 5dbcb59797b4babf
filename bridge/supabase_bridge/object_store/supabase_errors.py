"""What Supabase Storage means by a refusal: from its answer to one of the bridge's errors.

Source: exchanges recorded with supabase/storage v1.70.6. Nearly every refusal has HTTP status 400; what it means is in
the body: `statusCode` (a text) and `code`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import httpx
from storage3.utils import StorageException

from supabase_bridge.errors import (
    AccessDeniedError,
    BridgeError,
    BucketNotFoundError,
    InvalidObjectKeyError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoreUnavailableError,
    UnexpectedAnswerError,
)
from supabase_bridge.object_store.bounded_transport import SlowAnswerError, SlowUploadError

_TEXT_LIMIT = 200
_SECONDS_DIGITS = 6
_UNAVAILABLE = frozenset({408, 423, 425, 429})
"""Besides everything from 500 on: timeouts, an object locked by another request, too many requests."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A refusal as it came: status (the body's, where it has one), code and message, without any secret."""

    status: int
    code: str
    message: str
    html: bool
    retry_after: timedelta | None

    def __str__(self) -> str:
        return " ".join(part for part in (f"HTTP {self.status}", self.code, self.message) if part)


class RefusalError(Exception):
    """Supabase answered with anything but success; it never leaves this package, `diagnose` gives it its name."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(str(answer))
        self.answer = answer


FAILURES = (
    *(RefusalError, httpx.HTTPError, httpx.StreamError, StorageException),
    *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
)
"""What a call through httpx or storage3 raises; the second line where it cannot read an answer that came with 200."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked: the store's name, its bucket, the operation in words, and the key where there is one."""

    store: str
    bucket: str
    operation: str
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A failed try: the error to raise in the end, whether to try again, and how long the server wants to rest."""

    error: BridgeError
    again: bool
    retry_after: timedelta | None = None


def read_answer(response: httpx.Response, body: bytes, *, secret: str) -> Answer:
    """Make sense of a refusal's head and (the beginning of) its body; `secret` is blotted out should it be quoted."""
    try:
        facts = json.loads(body)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        facts = {}

    if not facts and response.headers.get("content-type", "").startswith("text/plain"):
        facts = {"message": " ".join(body.decode(errors="replace").split())}  # The resumable uploads' way.

    def text(name: str) -> str:
        return str(facts.get(name, "")).replace(secret, "***")[:_TEXT_LIMIT]

    stated = text("statusCode")
    # A gateway's own 5xx counts whatever is in its body; otherwise the body knows better than the 400 it comes with.
    of_body = response.status_code < 500 and len(stated) == 3 and stated.isascii() and stated.isdigit()
    return Answer(
        status=int(stated) if of_body else response.status_code,
        code=text("code") or text("error"),
        message=text("message"),
        html="html" in response.headers.get("content-type", ""),
        retry_after=_retry_after(response.headers),
    )


def diagnose(failure: Exception, request: Request) -> Trouble:
    """The error behind a failed try.

    A silent or slow server is not asked again: a timeout was all the patience there is.
    """
    if isinstance(failure, RefusalError):
        return _refused(failure.answer, request)
    if isinstance(failure, (SlowAnswerError, SlowUploadError)):
        return Trouble(error=_unavailable(request, str(failure)), again=False)
    if isinstance(failure, httpx.TimeoutException):
        return Trouble(error=_unavailable(request, "no answer in time"), again=False)
    if isinstance(failure, httpx.HTTPError):
        reason = f"the connection failed ({type(failure).__name__})"
        return Trouble(error=_unavailable(request, reason), again=isinstance(failure, httpx.TransportError))
    return Trouble(error=_unavailable(request, f"the answer cannot be read ({type(failure).__name__})"), again=True)


def _refused(answer: Answer, request: Request) -> Trouble:
    if answer.html or answer.status >= 500 or answer.status in _UNAVAILABLE:
        error = _unavailable(request, str(answer), retry_after=answer.retry_after)
        return Trouble(error=error, again=True, retry_after=answer.retry_after)
    return Trouble(error=_meaning(answer, request), again=False)


def _meaning(answer: Answer, request: Request) -> BridgeError:
    store, operation, key = request.store, request.operation, request.key
    status, code = answer.status, answer.code
    missing_bucket = answer.message in {"Bucket not found", "The related resource does not exist"}
    if code == "NoSuchBucket" or (status == 404 and missing_bucket):
        return BucketNotFoundError(store, request.bucket)
    if status in {401, 403} or code in {"AccessDenied", "InvalidJWT"} or "'authorization'" in answer.message:
        return AccessDeniedError(store, operation, str(answer))
    if key is not None:
        # A bare 404 may be a gateway that knows no such route: only the server's own word makes an object absent.
        if status == 404 and (code == "NoSuchKey" or answer.message == "Object not found"):
            return ObjectNotFoundError(store, key)
        if status == 409:
            return ObjectExistsError(store, key)
        if status == 413:
            return ObjectTooLargeError(store, key, None)
        if code == "InvalidKey":
            return InvalidObjectKeyError(key, answer.message)
    return UnexpectedAnswerError(store, operation, str(answer))


def _unavailable(request: Request, reason: str, *, retry_after: timedelta | None = None) -> StoreUnavailableError:
    return StoreUnavailableError(request.store, request.operation, reason, retry_after=retry_after)


def _retry_after(headers: httpx.Headers) -> timedelta | None:
    """Retry-After (RFC 9110, section 10.2.3): seconds, or a date, held against the server's own where it says it."""
    header = headers.get("retry-after", "")
    if header.isascii() and header.isdigit():
        return timedelta(seconds=int(header)) if len(header) <= _SECONDS_DIGITS else None
    until = _date(header)
    if until is None:
        return None
    return max(timedelta(0), until - (_date(headers.get("date", "")) or datetime.now(timezone.utc)))


def _date(text: str) -> datetime | None:
    """A date of HTTP (RFC 9110, section 5.6.7), in any of its three forms; it is always in UTC."""
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)
