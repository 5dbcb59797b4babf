"""Open the object store that the settings name."""

from __future__ import annotations

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.api_keys import SECRET_KEY
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore


def open_store(settings: Settings, bucket: str, *, reading: bool = False) -> ObjectStore:
    """Return the store of one bucket: in the Supabase project of the settings, or else in the embedded directory.

    The store connects, and creates files, on first use.

    Args:
        reading: The caller only reads, so without a secret key the publishable key is used.

    Raises:
        SettingsError: the bucket is not one of those that the settings allow.
    """
    if bucket not in settings.buckets | settings.retention.archive_buckets:
        allowed = ", ".join(sorted(settings.buckets))
        raise SettingsError("artifact_buckets", f"bucket {bucket!r} is not allowed; the settings allow {allowed}")
    if settings.supabase_url is None:
        from supabase_bridge.storage.directory import DirectoryStore

        return DirectoryStore(settings.home / "supabase" / bucket)
    key = settings.service_key or (settings.anon_key if reading else None)
    if key is None:
        raise SettingsError(SECRET_KEY, "missing, but SUPABASE_URL names a project to write to")
    # The import of storage3 takes 0.2 s, which a command without Supabase need not wait for.
    from supabase_bridge.storage.supabase.store import SupabaseStore

    return SupabaseStore(
        url=settings.supabase_url,
        key=key,
        bucket=bucket,
        timeout=settings.request_timeout,
        resumable_threshold_bytes=settings.resumable_threshold_bytes,
        uploads=settings.home / "uploads",
        digest_key=settings.digest_key,
        writes=settings.service_key is not None,
    )
