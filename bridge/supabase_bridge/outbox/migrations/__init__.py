"""Alembic revisions of the outbox's tables.

`outbox.schema.ensure_schema` runs them under a lock; each file is one revision and names the one before it.
A revision must be able to run again, because MySQL commits each statement.
It may import outbox.tables, SQLAlchemy and alembic.
"""
