"""Mirror a model version: from its files and its training run in MLflow to a complete release in the bucket.

Entry points: `job.Mirror` (the upload job, the only module that knows the order), `sources.Sources`, `checks`.
It may import releases, registry, storage, outbox, settings, trust and core.
"""
