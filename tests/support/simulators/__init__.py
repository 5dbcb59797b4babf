"""Servers that simulate the real ones, on real sockets."""
