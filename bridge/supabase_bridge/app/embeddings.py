"""Embedding sets beside the bucket: load the set of a release, and drop sets that no manifest names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from supabase_bridge.client.release import Release
from supabase_bridge.client.resolver import Resolver
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.errors import InvalidNameError
from supabase_bridge.core.layout import (
    HISTORY_NAME,
    MANIFEST_NAME,
    ChannelPaths,
    ReleasePaths,
    RunId,
    check_channel,
    check_model_key,
)
from supabase_bridge.embeddings.errors import EmbeddingSetInUseError, EmbeddingsRefusedError
from supabase_bridge.embeddings.rows import Embeddings
from supabase_bridge.embeddings.sets import EmbeddingSet, EmbeddingSets
from supabase_bridge.releases.channel import Channel
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore, exists
from supabase_bridge.trust.signer import SigningPolicy


@dataclass(frozen=True, kw_only=True)
class SetProblem:
    """A set that a manifest needs and that is not ready, or a set whose release is gone."""

    model: str
    run_id: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class LoadedRelease:
    """The release of a set, with what its set needs of it.

    Attributes:
        bucket: The name of its bucket.
        dimension: The width of its embeddings; None: it does not declare one.
    """

    release: Release
    bucket: str
    dimension: int | None

    @classmethod
    def of(cls, reference: str, settings: Settings, environ: Mapping[str, str]) -> LoadedRelease:
        """Describe the release that a reference names: by a step's variables, which need no key, or by the bucket.

        Raises:
            BridgeError: see `Resolver.resolve`.
        """
        given = (environ.get("SUPABASE_BRIDGE_RELEASE"), environ.get("SUPABASE_BRIDGE_ONNX_SHA256"))
        if given[0] == reference and given[1]:
            model, _, run_id = reference.partition("/")
            paths = ReleasePaths(model_key=check_model_key(model), run_id=RunId.parse(run_id))
            files = MappingProxyType({paths.onnx_name: FileRecord(size_bytes=0, sha256=given[1])})
            release = Release(model=model, run_id=run_id, files=files, signed=False)
            return cls(release=release, bucket=environ.get("SUPABASE_BRIDGE_RELEASE_BUCKET", ""), dimension=None)
        with Resolver.from_settings(settings, report=False) as resolver:
            release = resolver.resolve(reference)
            return cls(release=release, bucket=resolver.name, dimension=resolver.meta(release).embedding_dim)


def load_files(sets: EmbeddingSets, loaded: LoadedRelease, *, items: Path, users: Path | None) -> EmbeddingSet:
    """Load the set of a release; see `EmbeddingSets.load`.

    Raises:
        EmbeddingsRefusedError: a file is malformed, or the embeddings have another width than the release declares.
    """
    rows, declared = Embeddings.read(items), loaded.dimension
    if declared is not None and rows.matrix.ndim == 2 and rows.matrix.shape[1] != declared:
        reason = f"rows of {rows.matrix.shape[1]} numbers, and the release's embedding_dim is {declared}"
        raise EmbeddingsRefusedError(rows.source, reason)
    others = None if users is None else Embeddings.read(users)
    return sets.load(loaded.release, items=rows, users=others, bucket=loaded.bucket)


def check_set(sets: EmbeddingSets, release: Release) -> list[SetProblem]:
    """Check that the set of one release is ready, and was made of the release's ONNX file."""
    found = sets.find(release.model, release.run_id)
    if found is not None and found.ready and found.onnx_sha256 == release.files[release.onnx_name].sha256:
        return []
    problem = "it has no set" if found is None else f"its set is {found.state}"
    if found is not None and found.ready:
        problem = f"its set is of another ONNX file ({found.onnx_sha256[:12]})"
    return [SetProblem(model=release.model, run_id=release.run_id, problem=problem)]


def check_sets(sets: EmbeddingSets, store: ObjectStore, model: str, *, signing: SigningPolicy) -> list[SetProblem]:
    """Compare the sets of a model with its manifests and releases.

    Raises:
        UntrustedLogError, InvalidDocumentError: see `Channel.read_head`.
    """
    found = {item.run_id: item for item in sets.list(model)}
    problems = [
        SetProblem(model=model, run_id=run_id, problem=f"{place} needs its set, which is not ready")
        for run_id, place in _named(store, model, signing).items()
        if run_id not in found or not found[run_id].ready
    ]
    for run_id, item in found.items():
        if not item.ready:
            problem = f"is {item.state} since {item.changed_at:%Y-%m-%dT%H:%M:%SZ} by {item.loaded_by}"
            problems.append(SetProblem(model=model, run_id=run_id, problem=problem))
        if not _is_release(store, model, run_id):
            problems.append(SetProblem(model=model, run_id=run_id, problem="its release is gone"))
    return problems


def drop_set(sets: EmbeddingSets, store: ObjectStore, model: str, run_id: RunId, *, signing: SigningPolicy) -> bool:
    """Drop the set of a release that no manifest names; returns False if there was none.

    Raises:
        EmbeddingSetInUseError: a manifest names it as its current or a previous release.
        UntrustedLogError, InvalidDocumentError: see `Channel.read_head`; nothing was dropped.
    """
    if (place := _named(store, model, signing).get(str(run_id))) is not None:
        raise EmbeddingSetInUseError(model, str(run_id), place)
    return sets.drop(model, str(run_id))


def drop_gone(
    sets: EmbeddingSets, stores: Iterable[ObjectStore], *, signing: SigningPolicy, model: str | None = None
) -> list[EmbeddingSet]:
    """Drop the sets whose release was deleted from the bucket that it was loaded from, and return them.

    Sets of other buckets stay: several projects may share one database.

    Raises:
        UntrustedLogError, InvalidDocumentError: see `Channel.read_head`.
    """
    by_name: Mapping[str, ObjectStore] = {store.name: store for store in stores}
    dropped = []
    for found in sets.list(model):
        store = by_name.get(found.bucket or "")
        if store is None or _is_release(store, found.model, found.run_id):
            continue
        if found.run_id not in _named(store, found.model, signing) and sets.drop(found.model, found.run_id):
            dropped.append(found)
    return dropped


def _is_release(store: ObjectStore, model: str, run_id: str) -> bool:
    return exists(store, ReleasePaths(model_key=model, run_id=RunId.parse(run_id)).meta)


def _named(store: ObjectStore, model: str, signing: SigningPolicy) -> dict[str, str]:
    """The releases that any channel of a model names, and where: in the log's newest entry, and in the manifest."""
    named: dict[str, str] = {}
    for channel in _channels(store, model):
        head = Channel(store, ChannelPaths(model_key=model, channel=channel), signing).read_head().head
        if head is not None:
            named.setdefault(head.current.run_id, f"the manifest of {channel} (current)")
            for pointer in head.previous:
                named.setdefault(pointer.run_id, f"the manifest of {channel} (previous)")
    return named


def _channels(store: ObjectStore, model: str) -> set[str]:
    """The channels of a model that have a manifest or a log."""
    found = set()
    for item in store.list(f"{model}/"):
        channel, _, name = item.key.removeprefix(f"{model}/").partition("/")
        if name == MANIFEST_NAME or name.startswith(f"{HISTORY_NAME}/"):
            try:
                found.add(check_channel(channel))
            except InvalidNameError:
                continue
    return found
