"""Errors of embedding sets: unsuitable database, refused embeddings, conflicting, missing and needed sets."""

from __future__ import annotations

from supabase_bridge.core.errors import BridgeError


class EmbeddingsDatabaseError(BridgeError):
    """The database of the embeddings refused a statement, or lacks what `embeddings init` makes."""

    template = "the database of the embeddings {problem}"
    problem: str


class EmbeddingsUnavailableError(BridgeError):
    """The database of the embeddings did not answer, or a lock was not free in time."""

    template = "the database of the embeddings did not answer: {reason}"
    retryable = True
    reason: str


class EmbeddingsRefusedError(BridgeError):
    """Embeddings are malformed: another width, not finite, not of length 1, or ids that are missing or repeated."""

    template = "{source}: {reason}"
    source: str
    reason: str


class EmbeddingSetConflictError(BridgeError):
    """A release has a complete set of another ONNX file, or with other numbers of rows."""

    template = (
        "{model}/{run_id} has a complete set already, and {difference}; drop it first "
        "(`supabase-bridge embeddings drop {model}/{run_id}`), or make a release with another run_id"
    )
    model: str
    run_id: str
    difference: str


class EmbeddingSetNotReadyError(BridgeError):
    """A release has no complete set: it was not loaded, is being loaded, or was dropped."""

    template = "{model}/{run_id} has no complete set of embeddings; load it with `supabase-bridge embeddings load`"
    model: str
    run_id: str


class EmbeddingSetInUseError(BridgeError):
    """A manifest names the release of a set as its current or a previous one, so the set must stay."""

    template = "{model}/{run_id} keeps its set, because {place} names it"
    model: str
    run_id: str
    place: str
