"""Tests of app: wiring, and what the commands do."""
