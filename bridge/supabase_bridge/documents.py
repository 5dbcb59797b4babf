"""The JSON documents of a release: typed, with unknown fields kept, and one sequence of bytes for one value.

Source: the release specification, section 2. docs/format.md shows each with a full example.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from typing_extensions import Self

from supabase_bridge.errors import InvalidDocumentError
from supabase_bridge.layout import SEQUENCE_LIMIT

LIMIT_BYTES = 1_000_000
"""No document is larger; a larger one is refused unread."""
RELEASE_NOTES_LIMIT = 1_000
"""Characters of a manifest's release notes; details belong in summary.md."""
_NESTING_LIMIT = 64
_NUMBER_LIMIT_BITS = 1_000


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC with a 'Z'; the fraction of a second only where there is one, in as few digits as say it."""
    whole, point, fraction = time.astimezone(timezone.utc).replace(tzinfo=None).isoformat().partition(".")
    return f"{whole}{point}{fraction.rstrip('0')}Z"


def _plain(value: Any) -> Any:
    """`value` as JSON knows it; what has no order of its own is sorted by name."""
    if isinstance(value, Document):
        return value.to_object()
    if isinstance(value, dict):
        return {name: _plain(value[name]) for name in sorted(value)}
    if isinstance(value, datetime):
        return format_time(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _countable(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number, found a truth value")  # noqa: TRY004 - pydantic takes ValueError only
    if isinstance(value, int) and value.bit_length() > _NUMBER_LIMIT_BITS:
        raise ValueError("a number this large cannot be calculated with")
    return value


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError("a time that UTC does not reach") from None


Number = Annotated[int | float, BeforeValidator(_countable), Field(allow_inf_nan=False)]
Time = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Document(BaseModel):
    """A JSON object of the format: frozen, unknown fields kept, absent fields absent."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    document_name: ClassVar[str] = "document"

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a document.

        Raises:
            InvalidDocumentError: it is larger than LIMIT_BYTES, no JSON object, or breaks the schema.
        """
        return cls.from_object(parse_object(data, cls.document_name))

    @classmethod
    def from_object(cls, value: dict[str, Any]) -> Self:
        """Read a document from a parsed JSON object.

        Raises:
            InvalidDocumentError: it breaks the schema.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise InvalidDocumentError(cls.document_name, f"{where}: {first['msg']}"[:300]) from None

    def to_object(self) -> dict[str, Any]:
        """The JSON object: the specification's fields in its order, then unknown ones by name; None is left out."""
        declared = {name: getattr(self, name) for name in type(self).model_fields}
        present = {name: _plain(value) for name, value in declared.items() if value is not None}
        return {**present, **_plain(self.model_extra or {})}

    def to_bytes(self) -> bytes:
        """The document's bytes: equal values give equal bytes (UTF-8, two spaces of indentation, final line break).

        Raises:
            InvalidDocumentError: they are more than LIMIT_BYTES, or half a surrogate pair is in them, and nobody could
                read them back.
        """
        try:
            data = (json.dumps(self.to_object(), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
        except UnicodeEncodeError as error:
            raise InvalidDocumentError(self.document_name, f"a text in it is no Unicode: {error.reason}") from error
        if len(data) > LIMIT_BYTES:
            raise InvalidDocumentError(self.document_name, f"larger than {LIMIT_BYTES} bytes")
        return data


def parse_object(data: bytes, document_name: str) -> dict[str, Any]:
    """Read a JSON object of at most LIMIT_BYTES.

    Raises:
        InvalidDocumentError: it is larger, no JSON, no object, nested too deeply, or has NaN, infinity, a repeated key
            or half a surrogate pair in it.
    """
    if len(data) > LIMIT_BYTES:
        raise InvalidDocumentError(document_name, f"larger than {LIMIT_BYTES} bytes")
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
        _refuse_deep_nesting(value)
        # Python reads 1e999 as infinity and "\\ud800" as it stands, and could write neither.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidDocumentError(document_name, str(error)[:200] or "no JSON") from None
    if not isinstance(value, dict):
        raise InvalidDocumentError(document_name, "expected a JSON object")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is there twice")
    return value


def _refuse_deep_nesting(value: object) -> None:
    level = [value]
    for _ in range(_NESTING_LIMIT):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]
        if not level:
            return
    raise ValueError(f"nested more than {_NESTING_LIMIT} deep")


class FileRecord(Document):
    """What a release records of one of its files."""

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256

    @classmethod
    def of(cls, data: bytes) -> FileRecord:
        """The record of a file with this content."""
        return cls(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


class Origin(Document):
    """Where in MLflow a release comes from."""

    registered_model: str
    version: int
    run_id: str | None = None
    workspace: str | None = None


class DataSnapshot(Document):
    """What a training read; kept for reproducibility."""

    prep_run_id: str | None = None
    source_csv: str | None = None


class ModelMeta(Document):
    """model_meta.json: what the model is, and the record of its files. Written last, it makes a release complete."""

    document_name = "model_meta.json"

    model_name: str
    format: str | None = None
    run_id: str
    trained_at: Time | None = None
    git_commit: str | None = None
    input_schema_version: int | None = None
    embedding_dim: int | None = None
    hidden_dim: int | None = None
    user_feature_dim: int | None = None
    item_feature_dim: int | None = None
    tag_vocab_size: int | None = None
    performer_vocab_size: int | None = None
    preferred_tag_vocab_size: int | None = None
    use_price_feature: bool | None = None
    data_snapshot: DataSnapshot | None = None
    files: dict[str, FileRecord] = Field(default_factory=dict)
    mlflow: Origin | None = None


class CriterionRecord(Document):
    """One criterion of the gate, and what it came to when the release was made.

    Attributes:
        value: The metric; None where it is missing or not finite.
        finding: The same in words: `recall@20 0.610 < 0.65`.
    """

    criterion: str
    value: Number | None = None
    passed: bool
    finding: str


class Metrics(Document):
    """metrics.json: what the evaluation found."""

    document_name = "metrics.json"

    run_id: str
    evaluated_at: Time | None = None
    metrics: dict[str, Number] = Field(default_factory=dict)
    validation_set: str | None = None
    notes: str | None = None
    baseline_run_id: str | None = None
    baseline_diff: dict[str, Number] | None = None
    threshold_passed: bool | None = None
    threshold_criteria: list[CriterionRecord] | None = None


class ReleasePointer(Document):
    """A manifest's reference to one release; paths are relative to the bucket."""

    run_id: str
    published_at: Time | None = None
    onnx_path: str
    meta_path: str | None = None
    metrics_path: str | None = None
    model_version: int | None = None


class CurrentRelease(ReleasePointer):
    """A manifest's current release, with the record of every file."""

    published_at: Time
    meta_path: str
    metrics_path: str
    files: dict[str, FileRecord] = Field(default_factory=dict)


class Cause(Document):
    """Why a manifest was written: by which event of which registry, or by hand.

    Attributes:
        registry_id: The identity of the outbox the event is from.
        event_id: The event; with `registry_id` it makes a retried switch recognisable.
        by_hand: True where a person moved the pointer without the registry: no later pass of ours undoes that until
            somebody promotes again.
    """

    registry_id: str | None = None
    event_id: int | None = None
    by_hand: bool | None = None


class Manifest(Document):
    """manifest.json, and an entry of a channel's release log: which release is current, and which were before.

    Attributes:
        confirmed_at: When the entry was written again to say that it still holds; its age counts from then.
        signature: A detached JWS over the manifest without this member; see `jws`.
    """

    document_name = "manifest.json"

    model_name: str
    current: CurrentRelease
    previous: list[ReleasePointer] = Field(default_factory=list)
    release_notes: str | None = None
    channel: str
    sequence: Annotated[int, Field(ge=1, le=SEQUENCE_LIMIT)]
    cause: Cause | None = None
    confirmed_at: Time | None = None
    signature: str | None = None

    def to_object(self) -> dict[str, Any]:
        """See `Document.to_object`; the signature comes last, after what it signs."""
        value = super().to_object()
        if self.signature is not None:
            value["signature"] = value.pop("signature")
        return value
