"""Object paths, run_ids and valid names. Source: the release specification, section 1; docs/format.md."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property

from supabase_bridge.core.errors import InvalidNameError, InvalidObjectKeyError, NameKind

META_NAME = "model_meta.json"
METRICS_NAME = "metrics.json"
SUMMARY_NAME = "summary.md"
MLMODEL_NAME = "MLmodel"
SIGNATURE_NAME = "model.sig"
"""The OpenSSF model signature of a release's other files."""
FEATURES_PREFIX = "features/"
"""The folder of a release with the files that an inference needs beside the model: vocabularies, the feature schema."""
FEATURES_LIMIT = 100
"""The number of files in that folder."""
FEATURES_LIMIT_BYTES = 500_000_000
"""Their size together."""
_RUNNABLE = (".pkl", ".pickle", ".joblib", ".dill", ".pt", ".pth", ".pt2", ".ckpt", ".py", ".pyc", ".so")
"""The suffixes of files that can run code when a consumer loads them."""
TOWERS = ("user", "item")
"""The towers of a two-tower model; a release may carry each of them as an ONNX file of its own."""
ENVIRONMENT_NAMES = ("conda.yaml", "python_env.yaml", "requirements.txt")
"""The files from which MLflow recreates a model's Python environment."""
_DOCUMENT_NAMES = {META_NAME, METRICS_NAME, SUMMARY_NAME, MLMODEL_NAME, SIGNATURE_NAME, *ENVIRONMENT_NAMES}
MANIFEST_NAME = "manifest.json"
HISTORY_NAME = "history"
TEMPORARY_PREFIX = "_tmp/"
"""The prefix of running uploads; no model key begins with '_'."""
CLAIMS_PREFIX = TEMPORARY_PREFIX + "claims/"
"""The prefix of the claims of releases; `<model>/<run_id>/` follows."""

ARCHIVED_META_NAME = "model_meta.archived.json"
"""The commit record of a release whose model files retention has removed: the bytes of its model_meta.json."""
_REMOVAL_PREFIX = "removal-"
_HOLD_PREFIX = "hold-"

HINT_EVENT = "switched"
"""The event of a hint over Supabase Realtime; see `ChannelPaths.topic`."""

SEQUENCE_LIMIT = 99_999_999
"""The highest sequence of a log entry: it has eight digits."""

_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_SUFFIX_LIMIT = 64
_TIME_FIELDS = range(1, 7)
_RUN_ID = re.compile(
    r"([0-9]{4})([0-9]{2})([0-9]{2})T([0-9]{2})([0-9]{2})([0-9]{2})Z"
    rf"(?:-(?P<suffix>[A-Za-z0-9._-]{{1,{_SUFFIX_LIMIT}}}))?"
)
_MODEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_!.*'()&$=;,+ -]*")
_VERSION = re.compile(r"models:/(?!m-[0-9a-f]{32}/)(.+)/([1-9][0-9]{0,9})")
_CHANNEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_KEY = re.compile(r"[A-Za-z0-9_/!.*'()&$@=;:+,? -]+")
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_/!.*'()&$@=;:+,? -]+")
_ESCAPED = re.compile(r"\$([A-Za-z0-9_-]+)\$")
_MODEL_KEY_LIMIT_BYTES = 120
_SEGMENT_LIMIT_BYTES = 255


@dataclass(frozen=True, kw_only=True)
class RunId:
    """The identity of a release: a UTC time in whole seconds, and a suffix if the time alone is not unique."""

    time: datetime
    suffix: str | None = None

    @classmethod
    def parse(cls, text: str) -> RunId:
        """Parse `YYYYMMDDTHHMMSSZ[-suffix]`.

        Raises:
            InvalidNameError: the text has another form, or names a day that does not exist.
        """
        match = _RUN_ID.fullmatch(text)
        if match is None:
            raise InvalidNameError(NameKind.RUN_ID, text)
        try:
            # Not `strptime`, which takes ten times as long: a pass parses tens of thousands.
            year, month, day, hour, minute, second = map(int, match.group(*_TIME_FIELDS))
            time = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
        except ValueError as error:
            raise InvalidNameError(NameKind.RUN_ID, text) from error
        return cls(time=time, suffix=match["suffix"])

    @classmethod
    def at(cls, time: datetime) -> RunId:
        """Return the run_id of a training that ended at `time` (aware), without the fraction of a second."""
        return cls(time=time.astimezone(timezone.utc).replace(microsecond=0))

    def unique(self, taken: Collection[RunId], *, version: int) -> RunId:
        """Return this run_id, or, if it is taken, one with `-v<version>`, `-v<version>.2`, ... appended.

        A suffix that becomes too long loses its end.
        """
        chosen, count = self, 0
        while chosen in taken:
            count += 1
            own = f"v{version}" if count == 1 else f"v{version}.{count}"
            own = own if self.suffix is None else f"-{own}"
            chosen = RunId(time=self.time, suffix=(self.suffix or "")[: _SUFFIX_LIMIT - len(own)] + own)
        return chosen

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        # Cached: a pass over a listing needs it a dozen times for each file. glibc writes the year 999 with 3 digits.
        time = self.time.strftime(_TIME_FORMAT).rjust(16, "0")
        return time if self.suffix is None else f"{time}-{self.suffix}"


@dataclass(frozen=True, kw_only=True)
class ReleasePaths:
    """The paths of one release, relative to the bucket. Names are cached: a listing asks for each file of a folder."""

    model_key: str
    run_id: RunId

    @cached_property
    def prefix(self) -> str:
        return f"{self.model_key}/{self.run_id}/"

    def file(self, name: str) -> str:
        return self.prefix + name

    @cached_property
    def onnx_name(self) -> str:
        return f"{self.model_key}_{self.run_id}.onnx"

    @cached_property
    def state_dict_name(self) -> str:
        return f"{self.model_key}_{self.run_id}.pt"

    def tower_name(self, tower: str) -> str:
        """Return the name of the ONNX file that computes one tower alone."""
        return f"{self.model_key}_{self.run_id}.{tower}.onnx"

    @cached_property
    def tower_names(self) -> dict[str, str]:
        """The file names of the towers, by the field of a manifest that has the path."""
        return {f"{tower}_onnx_path": self.tower_name(tower) for tower in TOWERS}

    def has(self, name: str) -> bool:
        """Return whether a mirror may write a file of this name there."""
        return name in _DOCUMENT_NAMES or self.is_model_file(name)

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
    def claims_prefix(self) -> str:
        return CLAIMS_PREFIX + self.prefix

    @property
    def claim(self) -> str:
        """The object that gives the exclusive right to fill the folder."""
        return f"{self.claims_prefix}claim.json"

    @property
    def verdict(self) -> str:
        """The commit record of a release whose files passed the checks, until it is moved; or the rejection."""
        return f"{self.claims_prefix}verdict.json"

    @property
    def signature(self) -> str:
        return self.file(SIGNATURE_NAME)

    @property
    def archived_meta(self) -> str:
        return self.file(ARCHIVED_META_NAME)

    def removal(self, attempt: str) -> str:
        """Return the mark of an attempt to remove the release's model files."""
        return self.file(f"{_REMOVAL_PREFIX}{attempt}.json")

    def hold(self, attempt: str) -> str:
        """Return the object with which an operator's command keeps retention from removing the release."""
        return self.file(f"{_HOLD_PREFIX}{attempt}.json")

    def is_model_file(self, name: str) -> bool:
        """Return whether a file of this name is none of the documents: retention may remove it."""
        models = (self.onnx_name, self.state_dict_name)
        return name in models or self.is_tower(name) or name.startswith(FEATURES_PREFIX)

    def is_tower(self, name: str) -> bool:
        """Return whether a file of this name computes one tower alone; the mirror has cut it from the ONNX file."""
        return name in self.tower_names.values()


def is_removal(name: str) -> bool:
    """Return whether a file of a release's folder is the mark of a removal."""
    return name.startswith(_REMOVAL_PREFIX)


def is_hold(name: str) -> bool:
    """Return whether a file of a release's folder is an operator's hold."""
    return name.startswith(_HOLD_PREFIX)


@dataclass(frozen=True, kw_only=True)
class ChannelPaths:
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
        """Return the path of log entry `sequence` (from 1); with eight digits a listing is in order."""
        return f"{self.history_prefix}{sequence:08d}.json"

    def topic(self, bucket: str) -> str:
        """Return the topic of Supabase Realtime on which the channel's switches are hinted."""
        return f"releases:{bucket}:{self.model_key}:{self.channel}"

    def sequence_of(self, key: str) -> int | None:
        """Return the sequence of a path below `history_prefix`; None if it is no log entry."""
        match = re.fullmatch(r"([0-9]{8})\.json", key.removeprefix(self.history_prefix))
        sequence = int(match[1]) if match else 0
        return sequence if sequence > 0 and key == self.history(sequence) else None


def check_model_key(name: str) -> str:
    """Return `name` if it can be a model's folder.

    This is stricter than Supabase's rule: one segment, no '@', ':' or '?', which have a meaning in `supabase://` URIs,
    and not below TEMPORARY_PREFIX.

    Raises:
        InvalidNameError: it cannot; the message says why, and what to set instead.
    """
    if not name:
        raise InvalidNameError(NameKind.MODEL_KEY, name, "it is empty")
    if len(name.encode(errors="replace")) > _MODEL_KEY_LIMIT_BYTES:
        raise InvalidNameError(NameKind.MODEL_KEY, name[:40] + "…", f"it is longer than {_MODEL_KEY_LIMIT_BYTES} bytes")
    if not _MODEL_KEY.fullmatch(name):
        bad = sorted({c for c in name if not _MODEL_KEY.fullmatch("a" + c)})
        reason = f"it has {', '.join(map(repr, bad[:5]))} in it" if bad else "it does not begin with a letter or digit"
        raise InvalidNameError(NameKind.MODEL_KEY, name, reason)
    if name[-1] in " .":
        raise InvalidNameError(NameKind.MODEL_KEY, name, "it ends in a space or a dot")
    return name


def is_model_key(name: str) -> bool:
    """Return whether a name can be a model's folder."""
    try:
        check_model_key(name)
    except InvalidNameError:
        return False
    return True


def check_channel(name: str) -> str:
    """Return `name` if it can be a channel: lower-case letters, digits, '_' and '-'. No run_id is a valid channel.

    Raises:
        InvalidNameError: it cannot.
    """
    if not _CHANNEL.fullmatch(name):
        raise InvalidNameError(NameKind.CHANNEL, name)
    return name


def check_object_key(key: str) -> str:
    """Return `key` if Supabase Storage accepts it.

    Source: measurements of the server. It accepts ASCII letters, digits and `_/!.*'() &$=@;:+,?-`, no '.' or '..'
    segment, at most 255 bytes a segment.

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


def features_problem(sizes: Mapping[str, int]) -> str | None:
    """Return why files cannot be the features of a release; None if they can.

    Args:
        sizes: Their sizes in bytes, by their paths, which begin with FEATURES_PREFIX.
    """
    if len(sizes) > FEATURES_LIMIT:
        return f"{len(sizes)} files, more than {FEATURES_LIMIT}"
    if (total := sum(sizes.values())) > FEATURES_LIMIT_BYTES:
        return f"{total} bytes, more than {FEATURES_LIMIT_BYTES}"
    for path in sizes:
        if path.lower().endswith(_RUNNABLE):
            return f"{path[:200]!r} can run code when it is loaded; write JSON, CSV, npz or Parquet"
        try:
            check_object_key(path)
        except InvalidObjectKeyError as error:
            return str(error)
    return None


def escape_path(path: str) -> str:
    """Return the object key of an artifact's path, in which all characters are such that Supabase accepts.

    A run of other characters becomes `$...$`: its UTF-16 (big-endian) as base64url without padding. A path that
    Supabase accepts is its own key, unless it looks escaped: then its dollar signs are escaped too.

    Raises:
        InvalidObjectKeyError: the path has control characters or half a surrogate pair.
    """
    if any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in path):
        raise InvalidObjectKeyError(path, "it has control characters")
    try:
        escaped = _NOT_IN_KEYS.sub(_escaped, path)
        if unescape_path(escaped) == path:
            return escaped
        return re.sub(r"[^A-Za-z0-9_/!.*'()&@=;:+,? -]+", _escaped, path)
    except UnicodeEncodeError as error:
        raise InvalidObjectKeyError(path, "it is no Unicode text") from error


def unescape_path(key: str) -> str:
    """Return the artifact's path of an object key; every `$...$` that `escape_path` cannot have written stays."""
    return _ESCAPED.sub(_unescaped, key)


def _escaped(run: re.Match[str]) -> str:
    return f"${urlsafe_b64encode(run[0].encode('utf-16-be')).decode().rstrip('=')}$"


def _unescaped(found: re.Match[str]) -> str:
    text = found[1]
    try:
        run = urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("utf-16-be")
    except ValueError:
        return found[0]
    written = re.fullmatch(r"[^A-Za-z0-9_/!.*'()&@=;:+,? -]+", run)
    return run if written is not None and _escaped(written) == found[0] else found[0]


def referenced_version(source: str) -> tuple[str, int] | None:
    """Return the registered model and the version that the source of a copied version names; None for other sources."""
    found = _VERSION.fullmatch(source)
    return None if found is None else (found[1], int(found[2]))
