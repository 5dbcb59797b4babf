"""Wires every object from the settings, and does the work of the commands.

Entry points: `runtime.open_runtime`, `server.run_server`, `follower.follow_registry`, `backfill.drain_outbox`,
`rollback.roll_back`, `status.report`. May import every package except cli and demo; `server` imports neither mlflow nor
sqlalchemy, so that `supabase-bridge --help` starts fast.
"""
