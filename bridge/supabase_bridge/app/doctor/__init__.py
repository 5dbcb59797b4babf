"""The checks of `supabase-bridge doctor`: find what is wrong with an installation, and say how to mend it.

Entry point: `examine.examine`. Every check only reads, and returns a `check.Check`. The package imports neither mlflow
nor sqlalchemy until a check needs it, because one of the problems that it finds is that they are missing.
"""
