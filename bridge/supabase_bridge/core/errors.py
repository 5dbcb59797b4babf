"""The root of all errors, and the errors about settings, names, documents and local files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import dataclass_transform

_USER_AND_PASSWORD = re.compile(r"(?<=://)[^\s/@'\"]*@")
_SECRET_IN_QUERY = re.compile(
    r"(?<![A-Za-z])((?:password|passwd|pwd|token|secret|api_?key|sig|signature)=)[^\s&;'\")]+", re.IGNORECASE
)


def redact_credentials(text: str) -> str:
    """Replace the user names, passwords and tokens in the URLs of a text by ***."""
    return _SECRET_IN_QUERY.sub(r"\1***", _USER_AND_PASSWORD.sub("***@", text))


@dataclass_transform(eq_default=False)
class BridgeError(Exception):
    """The root of all errors of the bridge.

    A subclass declares its facts as fields, as a dataclass does, and its message once, as a template over them:

        class ObjectMissingError(BridgeError):
            template = "{store}: no object {path!r:.200}"
            store: str
            path: str

    The fields are the constructor's parameters. The template may name properties too. `!r:.200` quotes and limits. A
    subclass without fields takes its message.

    Attributes:
        template: The message, in the syntax of `str.format`, over the error's attributes.
        retryable: True if the same call may succeed later although the operator changes nothing. The worker retries
            such an error with backoff and gives every other one up at once.
        rejects: True if the version itself is at fault: its files did not pass a check.
    """

    template: ClassVar[str]
    retryable: ClassVar[bool] = False
    rejects: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__annotations__:
            dataclass(eq=False, repr=False)(cls)

    def __init__(self, message: str) -> None:
        # Logs, terminals and public tags show the message. A driver's message can quote a URL that holds a password.
        super().__init__(redact_credentials(message))

    def __post_init__(self) -> None:
        BridgeError.__init__(self, self.template.format_map(_Attributes(self)))


class _Attributes:
    """The attributes of an error as the mapping that `str.format_map` reads."""

    def __init__(self, error: BridgeError) -> None:
        self._error = error

    def __getitem__(self, name: str) -> Any:
        return getattr(self._error, name)


class SettingsError(BridgeError):
    """A setting is missing, malformed or contradicts another one."""

    template = "{setting}: {problem}"
    setting: str
    problem: str


class InvalidGateError(BridgeError):
    """A release criterion, or a gate's mode, is malformed."""

    template = "{text!r:.80}: {reason}"
    text: str
    reason: str


class NameKind(Enum):
    """What a name should be; the value is the message about a name that is not valid."""

    MODEL_KEY = (
        "model {name!r} cannot be a folder in Supabase Storage: {reason}. "
        "Set the registered model's tag supabase.key to a name made of letters, digits, '_', '-' and '.'"
    )
    CHANNEL = "{name!r:.80} cannot be a channel: use lower-case letters, digits, '_' and '-', beginning with a letter"
    RUN_ID = (
        "{name!r:.80} is not a run_id: expected the UTC time YYYYMMDDTHHMMSSZ, "
        "optionally followed by '-' and letters, digits, '.', '_' or '-' (20251031T093831Z, 20251031T093831Z-ci42)"
    )
    REFERENCE = (
        "{name!r:.200} names no release: {reason}. Expected MODEL, MODEL@CHANNEL or MODEL/RUN_ID "
        "(two_tower, two_tower@staging, two_tower/20251031T093831Z)"
    )


class InvalidNameError(BridgeError):
    """A text is not a valid model's folder, channel, run_id or reference to a release; `kind` is which."""

    template = "{problem}"
    kind: NameKind
    name: str
    reason: str = ""

    @property
    def problem(self) -> str:
        return self.kind.value.format(name=self.name, reason=self.reason)


class InvalidObjectKeyError(BridgeError):
    """Supabase Storage does not accept an object path."""

    template = "object key {key!r:.200} is not accepted by Supabase Storage: {reason}"
    key: str
    reason: str


class InvalidDocumentError(BridgeError):
    """A JSON document is malformed, too large, or breaks its schema."""

    template = "{document} is not valid: {reason}"
    document: str
    reason: str


class LocalFileError(BridgeError):
    """A local file or directory could not be read or written (permissions, a full disk)."""

    template = "{path}: {reason}"
    retryable = True
    path: Path
    reason: str


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Raise the operating system's errors of the block as `LocalFileError` about this path.

    Raises:
        LocalFileError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise LocalFileError(path, (error.strerror or str(error)).lower()) from error
