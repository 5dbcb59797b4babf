"""Steps that must succeed before the pointer of a channel moves to a release.

Entry points: `preparation.Preparation` runs a release's steps; `records.StepRecords` remembers them; a Python function
gets a `call.Step`.
It imports core, settings, outbox, storage and releases.
"""
