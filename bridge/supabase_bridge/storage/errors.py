"""Errors of object stores, by meaning."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum

from supabase_bridge.core.errors import BridgeError


class ObjectStoreError(BridgeError):
    """The root of the errors of object stores; `store` names the store, without its key."""

    template = "{store}"
    store: str


class ObjectNotFoundError(ObjectStoreError):
    """No object has this key (or, on Supabase, the secret key must not see it)."""

    template = "{store}: no object {key!r}"
    key: str


class ObjectExistsError(ObjectStoreError):
    """`create` found an object under this key and did not change it."""

    template = "{store}: object {key!r} exists already"
    key: str


class ObjectTooLargeError(ObjectStoreError):
    """An object is larger than a limit: the reader's own, or (None) the server's."""

    template = "{store}: object {key!r}{size} is larger than {limit}"
    key: str
    limit_bytes: int | None
    size_bytes: int | None = None

    @property
    def size(self) -> str:
        """The size as the message names it, where it is known."""
        return "" if self.size_bytes is None else f" of {self.size_bytes} bytes"

    @property
    def limit(self) -> str:
        """The limit as the message names it."""
        server_limit = (
            "the server accepts: raise the file size limit of the bucket (its settings) or of the project (Storage "
            "settings), or that of a proxy before it (nginx: client_max_body_size)"
        )
        return server_limit if self.limit_bytes is None else f"{self.limit_bytes} bytes"


class CorruptObjectError(ObjectStoreError):
    """A stored object differs from its record, or from what was sent."""

    template = "{store}: object {key!r} is damaged: expected {expected}, found {actual}"
    retryable = True
    key: str
    expected: str
    actual: str


class BucketNotFoundError(ObjectStoreError):
    """The bucket does not exist (or, on Supabase, the secret key must not see it)."""

    template = "{store}: no bucket {bucket!r}: create it in Supabase, or check that the key belongs to this project"
    retryable = True
    bucket: str


class Role(Enum):
    """Who sends a request; the value is the hint when access is denied."""

    WRITER = "check SUPABASE_SECRET_KEY, it must be a secret key of this project"
    READER = (
        "check the key in use (SUPABASE_PUBLISHABLE_KEY) and the bucket's policy, or get a fresh signed URL; "
        "docs/consumers.md has the policy"
    )
    PUBLIC_READER = "set SUPABASE_PUBLISHABLE_KEY, or make the bucket public; docs/consumers.md has the policy"


class AccessDeniedError(ObjectStoreError):
    """The server does not accept the key, or the key does not permit the operation."""

    template = "{store}: {operation} was refused ({answer}): {role.value}"
    retryable = True
    operation: str
    answer: str
    role: Role = Role.WRITER


class StoreUnavailableError(ObjectStoreError):
    """The store did not respond, or responded that it cannot serve now; the outcome is unknown.

    Attributes:
        retry_after: The pause that the server asks for, if any.
    """

    template = "{store}: {operation} did not succeed: {reason}. It may be tried again"
    retryable = True
    operation: str
    reason: str
    retry_after: timedelta | None = None


class UnexpectedResponseError(ObjectStoreError):
    """The server sent a response that has no error of its own, or a redirect, which is not followed."""

    template = "{store}: {operation} was answered unexpectedly: {answer}"
    operation: str
    answer: str


class DeadlineExceededError(ObjectStoreError):
    """A read did not end in its time, although the server sent bytes."""

    template = "{store}: {operation} did not end within {seconds:.3g} seconds and was given up"
    retryable = True
    operation: str
    seconds: float
