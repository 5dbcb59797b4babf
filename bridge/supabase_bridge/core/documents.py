"""The JSON documents of a release, as typed values that keep unknown fields and have canonical bytes.

Source: the release specification, section 2; docs/format.md has an example of each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from typing_extensions import Self

from supabase_bridge.core.errors import InvalidDocumentError, InvalidObjectKeyError
from supabase_bridge.core.json_objects import LIMIT_BYTES, parse_object
from supabase_bridge.core.layout import SEQUENCE_LIMIT, ReleasePaths, check_object_key
from supabase_bridge.core.text import format_time
from supabase_bridge.core.verdict import Finding, Verdict

RELEASE_NOTES_LIMIT = 1_000
"""Characters of a manifest's release notes; details belong in summary.md."""
NOTE_LIMIT = 500
"""Characters of one note of the mirror."""
NOTES_LIMIT = 50
_NUMBER_LIMIT_BITS = 1_000


def _plain(value: Any) -> Any:
    """Return `value` as JSON values; unordered members are sorted by name."""
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
    """A JSON object of the format: frozen; unknown fields stay, and absent fields stay absent.

    Attributes:
        nullable: The specified fields that are null, not absent, where they have no value.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    document_name: ClassVar[str] = "document"
    nullable: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a document.

        Raises:
            InvalidDocumentError: it is larger than LIMIT_BYTES, no JSON object, or breaks the schema.
        """
        return cls.from_object(parse_object(data, cls.document_name))

    @classmethod
    def from_object(cls, value: dict[str, Any]) -> Self:
        """Validate a parsed JSON object as this document.

        Raises:
            InvalidDocumentError: it breaks the schema.
        """
        with _invalid_document(cls.document_name):
            return cls.model_validate(value)

    @classmethod
    def parse_again(cls, data: bytes) -> Self:
        """Parse a document that `parse` has accepted before; in less time, because it relies on that.

        Raises:
            InvalidDocumentError: it breaks the schema.
        """
        with _invalid_document(cls.document_name):
            return cls.model_validate_json(data)

    def to_object(self) -> dict[str, Any]:
        """Return the JSON object: the specified fields in their order, then unknown ones by name.

        A specified field without a value is absent, or null where `nullable` names it.
        """
        declared = {name: getattr(self, name) for name in type(self).model_fields}
        present = {
            name: _plain(value) for name, value in declared.items() if value is not None or name in self.nullable
        }
        return {**present, **_plain(self.model_extra or {})}

    def to_bytes(self) -> bytes:
        """Return the canonical bytes: UTF-8, two spaces of indentation, a final line break; equal for equal values.

        Raises:
            InvalidDocumentError: they are more than LIMIT_BYTES, or a text has half a surrogate pair.
        """
        try:
            data = (json.dumps(self.to_object(), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
        except UnicodeEncodeError as error:
            raise InvalidDocumentError(self.document_name, f"a text in it is no Unicode: {error.reason}") from error
        if len(data) > LIMIT_BYTES:
            raise InvalidDocumentError(self.document_name, f"larger than {LIMIT_BYTES} bytes")
        return data


@contextmanager
def _invalid_document(name: str) -> Iterator[None]:
    """Raise InvalidDocumentError in place of pydantic's error; it names the first field that is wrong."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidDocumentError(name, f"{where}: {first['msg']}"[:300]) from None


class FileRecord(Document):
    """The record of one file of a release."""

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256

    @classmethod
    def of(cls, data: bytes) -> FileRecord:
        """Return the record of a file with this content."""
        return cls(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


class Origin(Document):
    """The registered model, version and run in MLflow from which a release was made; of a copy, also its original.

    Attributes:
        user: The user of the run, as the trainer's client of MLflow wrote it.
        params: The params of the run; long texts are cut, and surplus params are left out.
    """

    registered_model: str
    version: int
    run_id: str | None = None
    workspace: str | None = None
    copied_from: Origin | None = None
    user: str | None = None
    params: dict[str, str] | None = None


class DataSnapshot(Document):
    """The data that a training read, recorded for reproducibility."""

    prep_run_id: str | None = None
    source_csv: str | None = None


class TensorRecord(Document):
    """An input or output of an ONNX graph; a dimension that is not fixed has a name, or "?"."""

    name: str
    type: str | None = None
    shape: list[int | str] = Field(default_factory=list)


class OnnxGraph(Document):
    """The ends and operators of a release's ONNX file, as the sandbox process read them.

    Attributes:
        operators: How often each operator occurs, by its domain and name.
        opsets: The version of each operator set, by its domain.
    """

    inputs: list[TensorRecord] = Field(default_factory=list)
    outputs: list[TensorRecord] = Field(default_factory=list)
    operators: dict[str, int] = Field(default_factory=dict)
    opsets: dict[str, int] = Field(default_factory=dict)


class ModelMeta(Document):
    """model_meta.json: facts about the model, and the record of its files. Written last, it completes a release."""

    document_name = "model_meta.json"
    nullable = frozenset({"git_commit"})

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
    onnx_graph: OnnxGraph | None = None
    mirror_notes: list[str] | None = None
    computed_from: Document | None = None

    def with_notes(self, notes: Sequence[str]) -> ModelMeta:
        """Return this document with the mirror's notes for people, each cut to NOTE_LIMIT characters."""
        cut = [note if len(note) <= NOTE_LIMIT else note[:NOTE_LIMIT] + "…" for note in notes[:NOTES_LIMIT]]
        return self.model_copy(update={"mirror_notes": cut or None})

    def check_identity(self, paths: ReleasePaths) -> None:
        """Check that this is the document of the release with these paths.

        Raises:
            InvalidDocumentError: it names another model or run_id.
        """
        if (self.model_name, self.run_id) != (paths.model_key, str(paths.run_id)):
            raise InvalidDocumentError(paths.meta, "it names another model or run_id than its path")

    def check_file_names(self, paths: ReleasePaths) -> None:
        """Check that each file is inside the release's directory; see the function `check_file_names`."""
        check_file_names(self.files, paths, document=paths.meta)


def check_file_names(names: Iterable[str], paths: ReleasePaths, *, document: str) -> None:
    """Check that each name is the valid path of an object inside the release's directory.

    Args:
        document: The path of the document that has the names, for the error.

    Raises:
        InvalidDocumentError: a name leads elsewhere, or no object can have it.
    """
    for name in names:
        try:
            check_object_key(paths.file(name))
        except InvalidObjectKeyError as error:
            raise InvalidDocumentError(document, f"files: {error}"[:300]) from error


class CriterionRecord(Document):
    """One criterion of the gate, and its result when the release was made.

    Attributes:
        value: The metric. None: it is missing or not finite.
        finding: The result as text: `recall@20 0.610 < 0.65`.
    """

    criterion: str
    value: Number | None = None
    passed: bool
    finding: str


class EvaluationProtocol(Document):
    """The conditions of an evaluation; only metrics of equal conditions can be compared.

    Attributes:
        split: The rule that separates training and validation, without dates: "the last 10 % of time".
        candidates: The items that are ranked: "all", or for example "100 sampled".
        seen_items: "masked" or "kept": the items that a user had in the training.
        k: The lengths of the lists.
    """

    split: str | None = None
    candidates: str | int | None = None
    seen_items: str | None = None
    k: int | str | list[int] | None = None


class Metrics(Document):
    """metrics.json: the results of the evaluation.

    Attributes:
        baseline_note: Why the metrics are not compared with those of the release `baseline_run_id`.
        reference_metrics: The metrics of other methods on the same data, by the method: popularity, for example.
    """

    document_name = "metrics.json"

    run_id: str
    evaluated_at: Time | None = None
    metrics: dict[str, Number] = Field(default_factory=dict)
    validation_set: str | None = None
    notes: str | None = None
    baseline_run_id: str | None = None
    baseline_diff: dict[str, Number] | None = None
    baseline_note: str | None = None
    threshold_passed: bool | None = None
    threshold_criteria: list[CriterionRecord] | None = None
    evaluation_protocol: EvaluationProtocol | None = None
    reference_metrics: dict[str, dict[str, Number]] | None = None

    def verdict(self) -> Verdict | None:
        """Return the gate's verdict that the mirror recorded when it made the release; None if there is none."""
        if self.threshold_criteria is None:
            return None
        return Verdict(
            findings=tuple(
                Finding(criterion=item.criterion, value=item.value, passed=item.passed, text=item.finding)
                for item in self.threshold_criteria
            )
        )


class ReleasePointer(Document):
    """A manifest's reference to one release; paths are relative to the bucket.

    Attributes:
        user_onnx_path, item_onnx_path: The towers that the release carries as files of their own.
    """

    run_id: str
    published_at: Time | None = None
    onnx_path: str
    meta_path: str | None = None
    metrics_path: str | None = None
    model_version: int | None = None
    user_onnx_path: str | None = None
    item_onnx_path: str | None = None


class CurrentRelease(ReleasePointer):
    """A manifest's current release, with the record of each file."""

    published_at: Time
    meta_path: str
    metrics_path: str
    files: dict[str, FileRecord] = Field(default_factory=dict)


class Cause(Document):
    """The reason of a manifest: an event of a registry, or a manual activation.

    Attributes:
        registry_id: The id of the outbox that has the event.
        event_id: The event; with `registry_id` it identifies an activation that is retried.
        during_freeze: The freeze of the channel that was in force when a version came back.
        by_hand: True for a manual activation, which stays until a version is promoted again.
        by: Who made the change, if it is known: the user of MLflow, or the operating-system user of a command.
        adopted: True for an entry by which an operator gave the log to `registry_id`; another registry wrote it before.
        steps_skipped: The steps before an activation that an operator skipped.
    """

    registry_id: str | None = None
    event_id: int | None = None
    by: str | None = None
    during_freeze: str | None = None
    by_hand: bool | None = None
    adopted: bool | None = None
    steps_skipped: list[str] | None = None


class Manifest(Document):
    """manifest.json, and an entry of a channel's release log: the current release and the previous ones.

    Attributes:
        previous_entry_sha256: The digest of the entry before this one; see `release_log.digest`.
        confirmed_at: The time at which the entry was reissued; its age counts from then.
        confirmed_by: The operating-system user who reissued it.
        signature: A detached JWS over the manifest without this member; see `trust.jws`.
    """

    document_name = "manifest.json"

    model_name: str
    current: CurrentRelease
    previous: list[ReleasePointer] = Field(default_factory=list)
    release_notes: str | None = None
    channel: str
    sequence: Annotated[int, Field(ge=1, le=SEQUENCE_LIMIT)]
    previous_entry_sha256: Sha256 | None = None
    cause: Cause | None = None
    confirmed_at: Time | None = None
    confirmed_by: str | None = None
    signature: str | None = None

    def to_object(self) -> dict[str, Any]:
        """Return the JSON object as `Document.to_object` does, with the signature at the end."""
        value = super().to_object()
        if self.signature is not None:
            value["signature"] = value.pop("signature")
        return value
