"""Announces switches to webhooks, Slack and Apprise: each at least once, and those of a channel in their order.

Entry points: `announcer.Announcer` for a worker, `deliveries.Deliveries` for the commands.
What is announced comes from the release logs and the outbox, never from what a worker has just done.
May import core, settings, trust, storage, outbox, releases and registry; no worker, reconcile, follower or embeddings.
"""
