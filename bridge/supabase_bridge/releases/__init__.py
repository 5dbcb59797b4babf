"""Releases and channels in a bucket: verify a release, activate it, read and repair a channel's log.

Entry points: `channel.Channel`, `verify.verify_release`, and `manual` for operator actions without MLflow.
A channel's log decides what is current; `manifest.json` is a copy of its newest entry.
May import storage, settings, trust and core; neither registry nor outbox.
"""
