"""Benchmarks with limits: each prints its figures, and exits with 1 if one misses its limit."""
