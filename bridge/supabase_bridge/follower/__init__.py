"""Polls the registry of an MLflow server that cannot load the plugin, and records its changes as events.

Entry points: `poller.RegistryPoller`, and `snapshot.open_snapshot` for the database that stores the last poll.
A killed process neither loses nor repeats an event.
May import registry, outbox, settings and core; neither worker nor reconcile nor mirror.
"""
