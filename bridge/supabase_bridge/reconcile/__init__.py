"""Finds and repairs differences between the registry, the outbox and the buckets that no event announced.

Entry points: `reconciler.Reconciler.run` for one pass, `Reconciler.run_if_due` for the periodic pass of a worker.
A pass is idempotent and may run beside workers, servers and other passes.
May import registry, releases, outbox, storage, settings, trust and core; neither worker nor mirror nor client.
"""
