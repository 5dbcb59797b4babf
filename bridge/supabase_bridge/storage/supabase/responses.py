"""Translate error responses of Supabase Storage to the bridge's errors, and decide which requests to retry.

Source: exchanges recorded with supabase/storage v1.70.6. Nearly every error response has HTTP status 400; its body has
the actual status (`statusCode`, a text) and `code`.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from supabase_bridge.core.errors import BridgeError, InvalidObjectKeyError
from supabase_bridge.storage import errors
from supabase_bridge.storage.errors import Role, StoreUnavailableError, UnexpectedResponseError

TRIES = 4
"""Attempts of one request, or attempts in a row that transfer nothing."""

_BODY_LIMIT_BYTES = 64 * 1024
_TEXT_LIMIT = 200
_QUOTA = "the plan's quota is used up or an invoice is open: see the organization's billing in Supabase"
_OUTSIDE = {
    402: _QUOTA,
    507: "the disk of the storage is full: make room there",
    540: "the project is paused: restore it in Supabase's dashboard",
    544: "the project's database did not answer in time: see its load, or enlarge it",
}
"""Statuses that end when a person changes something outside, and what that is."""
_RETRYABLE_STATUS = frozenset({408, 423, 425, 429})
"""Besides every status from 500 on: timeouts, an object locked by another request, too many requests."""


@dataclass(eq=False, kw_only=True)
class RefusalError(Exception):
    """An error response of Supabase, without any secret; used inside this package only, `classify` translates it.

    Attributes:
        status: The body's status, or if it has none, that of HTTP.
        redirect: The host that a redirect leads to; None if the response is no redirect.
        retry_after: The pause that the server asks for.
    """

    status: int
    code: str
    message: str
    html: bool
    redirect: str | None
    retry_after: timedelta | None

    def __str__(self) -> str:
        return " ".join(part for part in (f"HTTP {self.status}", self.code, self.message) if part)


FAILURES = (
    *(RefusalError, httpx.HTTPError, httpx.StreamError),
    *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
)
"""Exceptions of a failed request; those of the second line mean that a response of status 200 cannot be parsed."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A request in words: the store's name, its bucket, the operation, the key if there is one, and who asks.

    Attributes:
        size_bytes: The size of the body that an upload sends.
    """

    store: str
    bucket: str
    operation: str
    key: str | None = None
    role: Role = Role.WRITER
    size_bytes: int | None = None

    def unavailable(self, reason: str, *, retry_after: timedelta | None = None) -> StoreUnavailableError:
        """Return the error of a request that may succeed later."""
        return StoreUnavailableError(self.store, self.operation, reason, retry_after=retry_after)

    def unexpected(self, response: str) -> UnexpectedResponseError:
        """Return the error of a response that has no error of its own."""
        return UnexpectedResponseError(self.store, self.operation, response)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failed attempt: the error to raise in the end, and whether to retry."""

    error: BridgeError
    again: bool

    def pause_seconds(self, *, tried: int) -> float:
        """The pause before the next attempt: exponential with jitter, at least what the server asks for, and capped."""
        seconds = 0.25 * 3 ** (tried - 1) * random.SystemRandom().uniform(0.5, 1.0)
        if isinstance(self.error, StoreUnavailableError) and self.error.retry_after is not None:
            seconds = max(seconds, self.error.retry_after.total_seconds())
        return float(min(seconds, 2.0))


def read_refusal(response: httpx.Response, *, secret: str | None) -> RefusalError:
    """Read the beginning of an error response's body, as it was sent, and parse it; raises httpx.HTTPError."""
    body = bytearray()
    if _redirect(response) is None:
        for piece in response.iter_raw():
            body += piece
            if len(body) > _BODY_LIMIT_BYTES:
                break
    return parse_refusal(response, bytes(body[:_BODY_LIMIT_BYTES]), secret=secret)


def parse_refusal(response: httpx.Response, body: bytes, *, secret: str | None) -> RefusalError:
    """Parse the head of an error response and (the beginning of) its body; a quoted `secret` is replaced by ***."""
    try:
        facts = json.loads(body)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        facts = {}
    if not facts and response.headers.get("content-type", "").startswith("text/plain"):
        # The routes of resumable uploads answer in plain text.
        facts = {"message": " ".join(body.decode(errors="replace").split())}

    def text(name: str) -> str:
        found = str(facts.get(name, ""))
        return (found.replace(secret, "***") if secret else found)[:_TEXT_LIMIT]

    stated = text("statusCode")
    # A gateway's 5xx is final. Otherwise the status in the body is more precise than the 400 of its response.
    of_body = response.status_code < 500 and len(stated) == 3 and stated.isascii() and stated.isdigit()
    return RefusalError(
        status=int(stated) if of_body else response.status_code,
        code=text("code") or text("error"),
        message=text("message"),
        html="html" in response.headers.get("content-type", ""),
        redirect=_redirect(response),
        retry_after=_retry_after(response.headers),
    )


def classify(failure: Exception, request: Operation) -> Failure:
    """Return the error of a failed attempt, and whether to retry. Timeouts are not retried."""
    again = True
    if isinstance(failure, RefusalError):
        if failure.redirect is not None:
            reason = f"a redirect to {failure.redirect[:200]!r}, which is not followed: check the project's URL"
            return Failure(error=request.unexpected(reason), again=False)
        if (cause := _outside_cause(failure)) is not None:
            reason = f"{failure}: {cause}"
            # A database that was too slow once answers the next request as a rule; the others need a person.
            again = failure.status == 544
            return Failure(error=request.unavailable(reason, retry_after=failure.retry_after), again=again)
        if not (failure.html or failure.status >= 500 or failure.status in _RETRYABLE_STATUS):
            return Failure(error=_meaning(failure, request), again=False)
        return Failure(error=request.unavailable(str(failure), retry_after=failure.retry_after), again=True)
    if isinstance(failure, httpx.TimeoutException):
        reason, again = str(failure), False
    elif isinstance(failure, httpx.HTTPError):
        reason, again = f"the connection failed ({type(failure).__name__})", isinstance(failure, httpx.TransportError)
    else:
        reason = f"the answer cannot be read ({type(failure).__name__})"
    return Failure(error=request.unavailable(reason), again=again)


def _outside_cause(answer: RefusalError) -> str | None:
    """Return what a person has to change outside before the request can succeed; None for every other answer."""
    said = f"{answer.code} {answer.message}".lower()
    if "enospc" in said or "no space left" in said or "edquot" in said:
        return _OUTSIDE[507]
    if "service for this project is restricted" in said or "exceed_" in said:
        return _QUOTA
    return _OUTSIDE.get(answer.status)


def _meaning(answer: RefusalError, request: Operation) -> BridgeError:
    store, operation, key = request.store, request.operation, request.key
    status, code = answer.status, answer.code
    missing_bucket = answer.message in {"Bucket not found", "The related resource does not exist"}
    if code == "NoSuchBucket" or (status == 404 and missing_bucket):
        if request.role is Role.WRITER:
            return errors.BucketNotFoundError(store, request.bucket)
        # A client cannot tell a missing bucket from one that its key may not see.
        hidden = str(answer)
        if request.role is Role.PUBLIC_READER:
            hidden = f"no public bucket {request.bucket!r}, and no key is set"
        return errors.AccessDeniedError(store, operation, hidden, role=request.role)
    if status in {401, 403} or code in {"AccessDenied", "InvalidJWT"} or "'authorization'" in answer.message:
        return errors.AccessDeniedError(store, operation, str(answer), role=request.role)
    if status == 415 or code == "InvalidMimeType":
        return request.unexpected(
            f"{answer}. Add the type to the bucket's allowed MIME types, or allow all (its settings)"
        )
    if key is not None:
        # A 404 without a known code may come from a gateway without this route; it does not mean "no object".
        if status == 404 and (code == "NoSuchKey" or answer.message == "Object not found"):
            return errors.ObjectNotFoundError(store, key)
        if status == 409:
            return errors.ObjectExistsError(store, key)
        if status == 413:
            return errors.ObjectTooLargeError(store, key, None, request.size_bytes)
        if code == "InvalidKey":
            return InvalidObjectKeyError(key, answer.message)
    return request.unexpected(str(answer))


def _redirect(response: httpx.Response) -> str | None:
    """The host that a redirect leads to, or "nowhere"; urlsplit refuses some texts. None: this is no redirect."""
    if not (300 <= response.status_code < 400 and "location" in response.headers):
        return None
    try:
        return urlsplit(response.headers["location"]).hostname or "nowhere"
    except ValueError:
        return "nowhere"


def _retry_after(headers: httpx.Headers) -> timedelta | None:
    """Retry-After (RFC 9110, section 10.2.3): seconds, or a date, relative to the response's own if it has one."""
    header = headers.get("retry-after", "")
    if header.isascii() and header.isdigit():
        return timedelta(seconds=int(header)) if len(header) <= 6 else None
    until = _date(header)
    if until is None:
        return None
    return max(timedelta(0), until - (_date(headers.get("date", "")) or datetime.now(timezone.utc)))


def _date(text: str) -> datetime | None:
    """An HTTP date (RFC 9110, section 5.6.7) in any of its three forms; it is always in UTC."""
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)
