"""MLflow's model registry: read and tag versions, name releases, find missing events, decide about promotions.

Entry points: `client.Registry`, `naming.model_key` and `naming.release_run_id`, `tables.mlflow_tables`,
`diff.find_missing_events` and `diff.enqueue_missing_events`, `promotion_gate.decide`.
It may import core, settings, storage and outbox, and MLflow and SQLAlchemy.
"""
