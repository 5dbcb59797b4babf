"""From the settings to the object store they name."""

from __future__ import annotations

from supabase_bridge.config import Settings
from supabase_bridge.errors import SettingsError
from supabase_bridge.object_store import ObjectStore


def open_store(settings: Settings, bucket: str) -> ObjectStore:
    """The store of one bucket: the Supabase project where the settings name one, the embedded directory otherwise.

    Nothing is connected to or created yet.

    Raises:
        SettingsError: the bucket is not one of those that the settings allow.
    """
    if bucket not in settings.buckets:
        allowed = ", ".join(sorted(settings.buckets))
        raise SettingsError("artifact_buckets", f"bucket {bucket!r} is not allowed; the settings allow {allowed}")
    if settings.supabase_url is None:
        from supabase_bridge.object_store.directory import DirectoryStore

        return DirectoryStore(settings.home / "supabase" / bucket)
    if settings.service_key is None:
        raise SettingsError("SUPABASE_SERVICE_ROLE_KEY", "missing, while SUPABASE_URL names a project to write to")
    # storage3 takes 0.2 s to import; a command that never talks to Supabase does not wait for it.
    from supabase_bridge.object_store.supabase import SupabaseStore

    return SupabaseStore(
        url=settings.supabase_url,
        key=settings.service_key,
        bucket=bucket,
        timeout=settings.request_timeout,
        resumable_threshold_bytes=settings.resumable_threshold_bytes,
        uploads=settings.home / "uploads",
    )
