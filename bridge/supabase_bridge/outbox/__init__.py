"""The outbox: a queue of registry changes in MLflow's own database, written in the transaction of each change.

Entry points: `queue.Outbox` and `queue.open_outbox` (claim and finish events), `record.append` (write an event),
`schema.ensure_schema` (create the tables), `periodic` (tasks of the whole cluster), `database.database_errors`.
It may import core and settings, and SQLAlchemy; not MLflow.
"""
