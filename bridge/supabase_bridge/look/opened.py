"""Read two releases for a look: which they are, their documents, and the titles of their items."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supabase_bridge.client.release import Release
from supabase_bridge.client.resolver import Resolver
from supabase_bridge.core.documents import Metrics, ModelMeta
from supabase_bridge.core.errors import InvalidNameError, NameKind
from supabase_bridge.core.layout import FEATURES_PREFIX, RunId, check_channel
from supabase_bridge.look.errors import LookFileError

TITLES_NAME = FEATURES_PREFIX + "titles.json"
"""The file of a release with the titles of its items: a JSON object of texts by id."""

_TITLES_LIMIT_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two releases.

    Attributes:
        reference: MODEL@CHANNEL or MODEL/RUN_ID.
        titles: The titles of items by id; empty: the release has none.
    """

    reference: str
    release: Release
    meta: ModelMeta
    metrics: Metrics
    titles: Mapping[str, str]

    @property
    def name(self) -> str:
        """The channel or the run_id by which it was named."""
        return self.reference[len(self.release.model) + 1 :]


def reference_of(model: str, text: str) -> str:
    """Return the reference for a channel or a run_id of a model.

    Raises:
        InvalidNameError: the text is neither.
    """
    try:
        return f"{model}/{RunId.parse(text)}"
    except InvalidNameError:
        pass
    try:
        return f"{model}@{check_channel(text)}"
    except InvalidNameError:
        problem = f"{text!r:.80} is neither a channel, such as latest, nor a run_id"
        raise InvalidNameError(NameKind.REFERENCE, f"{model}@{text}", problem) from None


def open_side(resolver: Resolver, reference: str) -> Side:
    """Read a release's documents and titles, verified as every consumer verifies them.

    Raises:
        LookFileError: `features/titles.json` has another form.
        BridgeError: see `Resolver.resolve` and `Resolver.meta`.
    """
    release = resolver.resolve(reference)
    meta, metrics = resolver.meta(release), resolver.metrics(release)
    return Side(reference=reference, release=release, meta=meta, metrics=metrics, titles=_titles(resolver, release))


def _titles(resolver: Resolver, release: Release) -> Mapping[str, str]:
    if (record := release.files.get(TITLES_NAME)) is None:
        return {}

    def refused(reason: str) -> LookFileError:
        return LookFileError(release.model, release.run_id, TITLES_NAME, reason)

    if record.size_bytes > _TITLES_LIMIT_BYTES:
        raise refused(f"{record.size_bytes} bytes; {_TITLES_LIMIT_BYTES} is the limit")
    with tempfile.TemporaryDirectory(prefix="supabase-bridge-") as directory:
        path = Path(directory) / "titles.json"
        resolver.copy(release, TITLES_NAME, path)
        data = path.read_bytes()
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise refused("it is no JSON") from None
    if not isinstance(found, dict) or not all(isinstance(title, str) for title in found.values()):
        raise refused("expected an object of texts by the items' ids")
    return found
