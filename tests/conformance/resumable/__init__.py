"""Uploads in chunks, which go on where they stopped."""
