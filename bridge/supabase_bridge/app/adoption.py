"""Give the channels of another registry to this one, each model by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from supabase_bridge.app.runtime import Runtime
from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.layout import ChannelPaths, check_model_key
from supabase_bridge.core.tags import MODEL_KEY_TAG
from supabase_bridge.releases.errors import ChannelNotFoundError
from supabase_bridge.releases.manual import adopt
from supabase_bridge.settings.sources import process_user


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """The result for one channel, or for a model that is not adopted; `problem` is the reason.

    Attributes:
        entry: The entry by which the channel was adopted; None: it belongs to this registry already.
    """

    subject: str
    entry: Manifest | None = None
    problem: str | None = None

    @property
    def text(self) -> str:
        """The result as a line."""
        if self.problem is not None:
            return f"{self.subject} is not adopted: {self.problem}"
        said = "belongs to this registry already"
        return f"{self.subject} {said if self.entry is None else f'is adopted (entry {self.entry.sequence})'}"


def adopt_model(runtime: Runtime, key: str, channel: str | None = None) -> Iterator[Adoption]:
    """Adopt the channels of a model's folder, or one of them; a channel without a log is left out if none is named.

    Raises:
        InvalidNameError, ChannelNotFoundError, UntrustedLogError, SigningError, ObjectStoreError: see `adopt`.
    """
    channels = [item.channel for item in runtime.settings.triggers] if channel is None else [channel]
    for name in channels:
        paths = ChannelPaths(model_key=check_model_key(key), channel=name)
        try:
            store = runtime.stores(runtime.settings.bucket)
            entry = adopt(store, paths, runtime.outbox.registry_id(), signing=runtime.signing, by=process_user())
        except ChannelNotFoundError:
            if channel is not None:
                raise
            continue
        yield Adoption(subject=f"{key} {name}", entry=entry)


def adopt_all(runtime: Runtime) -> Iterator[Adoption]:
    """Adopt the channels of every mirrored model. A model with a problem, such as a malformed key, stops no other."""
    for model in runtime.registry.models():
        try:
            key = runtime.registry.model(model).tags.get(MODEL_KEY_TAG)
            if key is not None:
                yield from adopt_model(runtime, key)
        except BridgeError as error:
            yield Adoption(subject=model, problem=str(error))
