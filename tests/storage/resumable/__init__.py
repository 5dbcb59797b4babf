"""Tests of resumable."""
