"""Supabase Storage as an object store, and as a place that clients read over HTTP.

Entry points: `store.SupabaseStore` (the worker's store, over storage3 and httpx) and `read.HttpReader` (the reader of
the client library, over httpx alone). `client` authenticates and retries; `upload`, `resumable` and `copy` write.
Imports `core`, `settings` and the rest of `storage`; `read` and `responses` must not import storage3.
"""
