"""The server's representation of buckets, objects and times in JSON and in headers."""

from __future__ import annotations

from datetime import datetime, timezone
from email.utils import format_datetime
from typing import Any

from tests.support.simulators.storage_state import Bucket, StoredObject


def timestamp(moment: datetime) -> str:
    """Format a time as ISO 8601 in UTC with milliseconds."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def http_date(moment: datetime) -> str:
    """Format a date for headers (RFC 9110)."""
    return format_datetime(moment.astimezone(timezone.utc), usegmt=True)


def etag(stored: StoredObject) -> str:
    """Return the MD5 of the body in quotation marks."""
    return f'"{stored.blob.md5}"'


def bucket_row(bucket: Bucket, *, with_type: bool) -> dict[str, Any]:
    """A bucket; only the listing of all buckets tells the type."""
    kinds = {"type": "STANDARD"} if with_type else {}
    versioning = {} if bucket.versioning is None else {"versioning_status": bucket.versioning}
    types = bucket.allowed_mime_types
    return {
        "id": bucket.id,
        "name": bucket.name,
        "owner": "",
        "public": bucket.public,
        **kinds,
        **versioning,
        "file_size_limit": bucket.file_size_limit_bytes,
        "allowed_mime_types": None if types is None else list(types),
        "created_at": timestamp(bucket.created_at),
        "updated_at": timestamp(bucket.updated_at),
    }


def _times(stored: StoredObject) -> dict[str, str]:
    created = timestamp(stored.created_at)
    return {"updated_at": timestamp(stored.updated_at), "created_at": created, "last_accessed_at": created}


def _system_metadata(stored: StoredObject) -> dict[str, Any]:
    return {
        "eTag": etag(stored),
        "size": stored.blob.size_bytes,
        "mimetype": stored.mimetype,
        "cacheControl": stored.cache_control,
        "lastModified": timestamp(stored.updated_at),
        "contentLength": stored.blob.size_bytes,
        "httpStatusCode": 200,
    }


def object_row(stored: StoredObject, name: str) -> dict[str, Any]:
    """Return an object as a row of a listing, under the name that the listing uses."""
    return {"name": name, "id": stored.id, **_times(stored), "metadata": _system_metadata(stored)}


def folder_row(name: str) -> dict[str, Any]:
    """Return a folder as a row of a listing."""
    return {
        "name": name,
        "id": None,
        "updated_at": None,
        "created_at": None,
        "last_accessed_at": None,
        "metadata": None,
    }


def full_row(stored: StoredObject) -> dict[str, Any]:
    """An object as copy or remove report it."""
    return {
        "name": stored.key,
        "bucket_id": stored.bucket,
        "owner": "",
        "owner_id": "",
        "version": stored.version,
        "id": stored.id,
        **_times(stored),
        "metadata": _system_metadata(stored),
        "user_metadata": stored.user_metadata,
    }


def info(stored: StoredObject) -> dict[str, Any]:
    """An object as its info route reports it."""
    return {
        "id": stored.id,
        "name": stored.key,
        "version": stored.version,
        "bucket_id": stored.bucket,
        "size": stored.blob.size_bytes,
        "content_type": stored.mimetype,
        "cache_control": stored.cache_control,
        "etag": etag(stored),
        "metadata": stored.user_metadata,
        "last_modified": timestamp(stored.updated_at),
        "created_at": timestamp(stored.created_at),
    }
