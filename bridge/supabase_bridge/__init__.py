"""Model releases in Supabase Storage, kept in step with an MLflow registry."""
