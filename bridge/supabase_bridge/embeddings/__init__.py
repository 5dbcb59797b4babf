"""Embeddings of releases in PostgreSQL with pgvector: one set of items and users for each release.

Entry point: `sets.EmbeddingSets`: init, load, list, drop, search. Needs the extra `pgvector`.
A set is visible to readers after it was loaded and indexed as a whole; every query names the release's run_id.
It imports core, settings, storage, releases and client.
"""

import pgvector  # noqa: F401 - where the extra is missing, the first import that fails names it
