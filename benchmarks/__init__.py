"""Measurements with limits: each prints what it found, and exits with 1 above its limit."""
