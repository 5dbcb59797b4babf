"""Where everything lies in the bucket: object keys, run_ids and the names they are made of.

Source: the release specification, section 1; docs/format.md shows every key.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timezone

from supabase_bridge.errors import InvalidChannelError, InvalidModelKeyError, InvalidObjectKeyError, InvalidRunIdError

META_NAME = "model_meta.json"
METRICS_NAME = "metrics.json"
SUMMARY_NAME = "summary.md"
MLMODEL_NAME = "MLmodel"
SIGNATURE_NAME = "model.sig"
"""The OpenSSF model signature of a release's other files; a release made while signing was off has none."""
ENVIRONMENT_NAMES = ("conda.yaml", "python_env.yaml", "requirements.txt")
"""What MLflow recreates a model's Python environment from; MLmodel refers to the first two, the second to the third."""
MANIFEST_NAME = "manifest.json"
HISTORY_NAME = "history"
TEMPORARY_PREFIX = "_tmp/"
"""Uploads in flight lie under this prefix until they are moved into place; no model key begins with '_'."""

SEQUENCE_LIMIT = 99_999_999
"""The highest sequence of a log entry: what eight digits hold."""

_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_SUFFIX_LIMIT = 64
_RUN_ID = re.compile(rf"(?P<time>[0-9]{{8}}T[0-9]{{6}}Z)(?:-(?P<suffix>[A-Za-z0-9._-]{{1,{_SUFFIX_LIMIT}}}))?")
_MODEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_!.*'()&$=;,+ -]*")
_CHANNEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_KEY = re.compile(r"[A-Za-z0-9_/!.*'()&$@=;:+,? -]+")
_MODEL_KEY_LIMIT_BYTES = 120
_SEGMENT_LIMIT_BYTES = 255


@dataclass(frozen=True, kw_only=True)
class RunId:
    """The identity of a release: a UTC time in whole seconds, and what makes it unique where the time alone is not."""

    time: datetime
    suffix: str | None = None

    @classmethod
    def parse(cls, text: str) -> RunId:
        """Read `YYYYMMDDTHHMMSSZ[-suffix]`.

        Raises:
            InvalidRunIdError: the text has another form, or names a day that does not exist.
        """
        match = _RUN_ID.fullmatch(text)
        if match is None:
            raise InvalidRunIdError(text)
        try:
            time = datetime.strptime(match["time"], _TIME_FORMAT).replace(tzinfo=timezone.utc)
        except ValueError as error:
            raise InvalidRunIdError(text) from error
        return cls(time=time, suffix=match["suffix"])

    @classmethod
    def at(cls, time: datetime) -> RunId:
        """The run_id of a training that ended at `time` (aware; its fraction of a second is dropped)."""
        return cls(time=time.astimezone(timezone.utc).replace(microsecond=0))

    def unique(self, taken: Collection[RunId], *, version: int) -> RunId:
        """This run_id, or, where it is taken, the same with `-v<version>` appended; then `-v<version>.2`, and so on.

        A suffix that would become too long to be read back loses its end.
        """
        chosen, count = self, 0
        while chosen in taken:
            count += 1
            own = f"v{version}" if count == 1 else f"v{version}.{count}"
            own = own if self.suffix is None else f"-{own}"
            chosen = RunId(time=self.time, suffix=(self.suffix or "")[: _SUFFIX_LIMIT - len(own)] + own)
        return chosen

    def __str__(self) -> str:
        # glibc writes the year 999 with three digits.
        time = self.time.strftime(_TIME_FORMAT).rjust(16, "0")
        return time if self.suffix is None else f"{time}-{self.suffix}"


@dataclass(frozen=True, kw_only=True)
class ReleaseKeys:
    """The object keys of one release, relative to the bucket."""

    model_key: str
    run_id: RunId

    @property
    def prefix(self) -> str:
        return f"{self.model_key}/{self.run_id}/"

    def file(self, name: str) -> str:
        return self.prefix + name

    @property
    def onnx_name(self) -> str:
        return f"{self.model_key}_{self.run_id}.onnx"

    @property
    def state_dict_name(self) -> str:
        return f"{self.model_key}_{self.run_id}.pt"

    @property
    def names(self) -> frozenset[str]:
        """Of every file that a mirror may write there."""
        documents = (META_NAME, METRICS_NAME, SUMMARY_NAME, MLMODEL_NAME, SIGNATURE_NAME, *ENVIRONMENT_NAMES)
        return frozenset({self.onnx_name, self.state_dict_name, *documents})

    @property
    def onnx(self) -> str:
        return self.file(self.onnx_name)

    @property
    def meta(self) -> str:
        return self.file(META_NAME)

    @property
    def metrics(self) -> str:
        return self.file(METRICS_NAME)

    @property
    def signature(self) -> str:
        return self.file(SIGNATURE_NAME)


@dataclass(frozen=True, kw_only=True)
class ChannelKeys:
    """The object keys of one channel of a model, relative to the bucket."""

    model_key: str
    channel: str

    @property
    def manifest(self) -> str:
        return f"{self.model_key}/{self.channel}/{MANIFEST_NAME}"

    @property
    def history_prefix(self) -> str:
        return f"{self.model_key}/{self.channel}/{HISTORY_NAME}/"

    def history(self, sequence: int) -> str:
        """The key of log entry `sequence` (from 1); eight digits, so that listing them gives their order."""
        return f"{self.history_prefix}{sequence:08d}.json"

    def sequence_of(self, key: str) -> int | None:
        """The sequence of a key below `history_prefix`, or None for a key that is no log entry."""
        match = re.fullmatch(r"([0-9]{8})\.json", key.removeprefix(self.history_prefix))
        sequence = int(match[1]) if match else 0
        return sequence if sequence > 0 and key == self.history(sequence) else None


def check_model_key(name: str) -> str:
    """Return `name` if it can be a model's folder.

    Stricter than Supabase's own rule: one segment, no '@', ':' or '?', which have a meaning in `supabase://` URIs,
    and nothing that could be taken for a temporary key.

    Raises:
        InvalidModelKeyError: it cannot; the message says why and what to set instead.
    """
    if not name:
        raise InvalidModelKeyError(name, "it is empty")
    if len(name.encode(errors="replace")) > _MODEL_KEY_LIMIT_BYTES:
        raise InvalidModelKeyError(name[:40] + "…", f"it is longer than {_MODEL_KEY_LIMIT_BYTES} bytes")
    if not _MODEL_KEY.fullmatch(name):
        bad = sorted({c for c in name if not _MODEL_KEY.fullmatch("a" + c)})
        reason = f"it has {', '.join(map(ascii, bad[:5]))} in it" if bad else "it does not begin with a letter or digit"
        raise InvalidModelKeyError(name, reason)
    if name[-1] in " .":
        raise InvalidModelKeyError(name, "it ends in a space or a dot")
    return name


def check_channel(name: str) -> str:
    """Return `name` if it can be a channel (lower-case letters, digits, '_', '-'; so that no run_id looks like one).

    Raises:
        InvalidChannelError: it cannot.
    """
    if not _CHANNEL.fullmatch(name):
        raise InvalidChannelError(name)
    return name


def check_object_key(key: str) -> str:
    """Return `key` if Supabase Storage accepts it.

    Source: wire measurements of the server: ASCII letters, digits and `_/!.*'() &$=@;:+,?-`, no '.' or '..' segment,
    at most 255 bytes a segment.

    Raises:
        InvalidObjectKeyError: it does not.
    """
    if not _KEY.fullmatch(key):
        raise InvalidObjectKeyError(key, "it has characters that are not allowed, or none")
    for segment in key.split("/"):
        if segment in {"", ".", ".."}:
            raise InvalidObjectKeyError(key, f"segment {segment!r}")
        if len(segment) > _SEGMENT_LIMIT_BYTES:
            raise InvalidObjectKeyError(key, f"a segment is longer than {_SEGMENT_LIMIT_BYTES} bytes")
    return key
