"""Activate a release of a bucket as a worker does: verify it, read the head, commit."""

from __future__ import annotations

from datetime import datetime

from supabase_bridge.core.documents import Cause
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.releases.channel import Activation, Channel
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy


def activate(
    store: ObjectStore,
    paths: ChannelPaths,
    run_id: RunId,
    *,
    cause: Cause,
    published_at: datetime,
    signing: SigningPolicy = NO_SIGNING,
) -> Activation:
    release = verify_release(store, ReleasePaths(model_key=paths.model_key, run_id=run_id), signing=signing)
    channel = Channel(store, paths, signing)
    return channel.activate(release, head=channel.read_head().head, cause=cause, published_at=published_at)
