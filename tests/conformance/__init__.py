"""Tests that hold two implementations of one contract to the same behaviour."""
