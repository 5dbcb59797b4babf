"""Tests that kill a process in the middle of its work."""
