"""Fixtures of the end-to-end tests: a registry with a worker, on every object store."""

from __future__ import annotations

from tests.databases import postgresql
from tests.e2e.gated import scene_with
from tests.e2e.released import released
from tests.registry_fixtures import (
    directory_scene,
    directory_settings,
    empty_database,
    make_scene,
    scene,
    settings,
    simulator,
    supabase_scene,
    supabase_settings,
)

__all__ = [
    "directory_scene",
    "directory_settings",
    "empty_database",
    "make_scene",
    "postgresql",
    "released",
    "scene",
    "scene_with",
    "settings",
    "simulator",
    "supabase_scene",
    "supabase_settings",
]
