"""The library that reads releases: resolve a reference, pull its files, watch a channel.

Entry points: `resolver.Resolver`; `resolution` and `download` for MLflow's artifact repository.
May import releases, storage, settings, trust and core; neither MLflow, SQLAlchemy, storage3, registry nor outbox.
"""
