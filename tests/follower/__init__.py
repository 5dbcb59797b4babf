"""Tests of follower."""
