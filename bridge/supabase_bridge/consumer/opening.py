"""From what a consumer says of a bucket to the reader of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from supabase_bridge.consumer.addresses import ProjectAddresses, SignedAddresses
from supabase_bridge.consumer.directory_reader import DirectoryReader
from supabase_bridge.consumer.reading import Reader
from supabase_bridge.errors import SettingsError
from supabase_bridge.secret import Secret


def open_reader(
    *,
    url: str | None,
    key: Secret | None,
    bucket: str,
    signed_urls: Callable[[str], str] | None,
    directory: Path | None,
) -> Reader:
    """The reader of a project's bucket, of signed URLs, or of a directory; see `Resolver` for the arguments.

    Raises:
        SettingsError: none is named, or several.
    """
    if directory is not None and url is None and signed_urls is None:
        return DirectoryReader(directory)
    # httpx takes 0.1 s to import, which a program that only imports the resolver does not wait for.
    from supabase_bridge.consumer.http_reader import HttpReader

    if directory is None and signed_urls is not None and key is None:
        return HttpReader(SignedAddresses(sign=signed_urls, bucket=bucket, place=url or ""))
    if directory is None and signed_urls is None and url is not None:
        return HttpReader(ProjectAddresses(url=url, bucket=bucket, key=key))
    raise SettingsError("Resolver", "name one place to read from: url (with or without key), signed_urls, or directory")
