"""Fixtures, helpers and simulators for tests."""
