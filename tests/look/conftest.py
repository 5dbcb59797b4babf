"""A home with two releases to look at."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.storage.directory import DirectoryStore
from tests.look.releases import lay_out_pair
from tests.support.small_releases import LATEST, run_id

STAGING = ChannelPaths(model_key="two_tower", channel="staging")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryStore:
    """The embedded store of a home that the environment names; it is empty."""
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(tmp_path))
    monkeypatch.setenv("SUPABASE_BRIDGE_CACHE", str(tmp_path / "cache"))
    made = DirectoryStore(tmp_path / "supabase" / "models")
    made.ensure_bucket()
    return made


@pytest.fixture
def pair(store: DirectoryStore) -> DirectoryStore:
    """Release 1 in `latest`, release 2 in `staging`."""
    lay_out_pair(store)
    for channel, number in ((LATEST, 1), (STAGING, 2)):
        activate_manually(store, channel, run_id(number), now=datetime.now(timezone.utc))
    return store
