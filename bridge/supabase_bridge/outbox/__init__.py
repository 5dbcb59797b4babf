"""The outbox: what changed in the registry and has not reached Supabase yet, in a table of MLflow's own database."""
