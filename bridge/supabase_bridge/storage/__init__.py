"""Object stores: read, write, list and copy objects of one bucket.

Entry points: `factory.open_store` (settings to a store), `base.ObjectStore` (the protocol), `directory` and `supabase`
(its implementations), `download` (verified local copies), `hashing`, `local_files` and `http`.
Imports `core`, `settings` and `trust`; neither MLflow nor SQLAlchemy, and storage3 only in `supabase`.
"""
