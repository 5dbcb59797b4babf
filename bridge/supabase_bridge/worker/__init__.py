"""The worker: it claims events from the outbox and brings Supabase Storage to the state of MLflow's registry.

Entry points: `worker.Worker` (the loop), `processor.Processor` (one event), `decide.decide` (the pure decision).
`context` reads what the decision needs; `periodic` runs background tasks.
May import mirror, registry, releases, outbox, storage, settings, trust and core; not reconcile or follower.
"""
