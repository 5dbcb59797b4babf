"""Fixtures of the crash tests: a registry to copy for each run."""

from __future__ import annotations

from tests.registry_fixtures import directory_scene, directory_settings, empty_database, make_scene, simulator

__all__ = ["directory_scene", "directory_settings", "empty_database", "make_scene", "simulator"]
