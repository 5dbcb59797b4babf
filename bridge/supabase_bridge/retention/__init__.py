"""Retention: remove the model files of old releases that nothing uses; an archive, or MLflow, can give them back.

Entry points: `plan.Planner` says what would go and why the rest stays, `remover.Remover` carries it out.
May import mirror, registry, releases, outbox, storage, settings, trust and core; neither worker nor reconcile.
"""
