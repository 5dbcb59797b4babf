"""The revisions of the outbox's tables, as alembic reads them: each knows the one before it."""
