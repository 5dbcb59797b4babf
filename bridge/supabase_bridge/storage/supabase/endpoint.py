"""Where the objects of a bucket are read: URLs and headers for a key, for no key, and for signed URLs.

It imports no HTTP library, so that a program can import the client library without waiting for one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl, quote, urlsplit

from pydantic import SecretStr

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.layout import check_object_key
from supabase_bridge.settings.addresses import names_a_host
from supabase_bridge.settings.api_keys import PUBLISHABLE_KEY, kind_of_key
from supabase_bridge.storage.errors import Role

_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True, kw_only=True)
class Content:
    """A small object as it was read, and its ETag if it has a valid one."""

    data: bytes
    etag: str | None


@dataclass(frozen=True, kw_only=True)
class Target:
    """The URL and headers that read one object, and the secret in them, which is never shown."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    secret: str | None = field(repr=False)


class Endpoint(Protocol):
    """A bucket and the way to read it: with a secret key, a publishable key, no key, or signed URLs."""

    @property
    def name(self) -> str:
        """The bucket's name for people, without any secret; equal for equal buckets."""
        ...

    @property
    def bucket(self) -> str: ...

    @property
    def role(self) -> Role: ...

    @property
    def sees_part(self) -> bool:
        """Whether policies of the project decide what the key may see."""
        ...

    def target(self, key: str, *, nonce: str | None) -> Target:
        """Return the target of one object; with a nonce, one that no cache has an answer for."""
        ...


def key_headers(secret: str) -> dict[str, str]:
    """The headers of a key. The gateway takes a key that is no JWT from `apikey`.

    It accepts such a key in `Authorization` only if both are equal; a server without that gateway reads a legacy key
    there.
    """
    return {"apikey": secret, "authorization": f"Bearer {secret}"}


def key_target(url: str, secret: str | None, *, nonce: str | None) -> Target:
    """The target of a URL that is read with a key; `cacheNonce` is storage-js's way around a CDN's copy."""
    headers = {} if secret is None else key_headers(secret)
    query = "" if nonce is None else f"?cacheNonce={nonce}"
    return Target(url=f"{url}{query}", headers=headers, secret=secret)


class ProjectEndpoint:
    """The read routes of a Supabase project.

    Args:
        url: The project's URL.
        bucket: The bucket's name.
        key: The key to read with; None if the bucket is public.

    Raises:
        SettingsError: the URL or the key is malformed; neither is in the message.
    """

    def __init__(self, *, url: str, bucket: str, key: SecretStr | None) -> None:
        if not names_a_host(url):
            raise SettingsError("SUPABASE_URL", "expected https://<project>.supabase.co (http:// for a local one)")
        secret = None if key is None else key.get_secret_value()
        if secret is not None and not _KEY.fullmatch(secret):
            # The HTTP library would refuse it too, with the key in its message.
            raise SettingsError(PUBLISHABLE_KEY, "the key has characters that no key has")
        self.name = f"Supabase {urlsplit(url).netloc} bucket {bucket}"
        self.bucket = bucket
        self.role = Role.PUBLIC_READER if key is None else Role.READER
        self.sees_part = secret is not None and kind_of_key(secret).writes is not True
        self._secret = secret
        route = "object/public" if key is None else "object"
        self._base = f"{url.rstrip('/')}/storage/v1/{route}/{quote(bucket, safe='')}/"

    def target(self, key: str, *, nonce: str | None) -> Target:
        return key_target(f"{self._base}{quote(check_object_key(key), safe='/')}", self._secret, nonce=nonce)


class SignedEndpoint:
    """Signed URLs from a caller's function, one for each object; no key is sent with them.

    Args:
        sign: Returns, for an object's key in the bucket, a URL that reads it. Its exceptions are not caught.
        bucket: The bucket's name.
        place: The project's URL; it distinguishes buckets of the same name in the client's stored state.
    """

    role = Role.READER
    sees_part = False

    def __init__(self, *, sign: Callable[[str], str], bucket: str, place: str) -> None:
        self.name = f"signed URLs of {place or 'a project'} bucket {bucket}"
        self.bucket = bucket
        self._sign = sign

    def target(self, key: str, *, nonce: str | None) -> Target:  # noqa: ARG002 - no cache knows a new signed URL
        """Return the signed URL of one object.

        Raises:
            SettingsError: the function returned no URL.
        """
        url = self._sign(check_object_key(key))
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or not _KEY.fullmatch(url):
            raise SettingsError("signed_urls", f"the result for {key!r} is no http(s) URL")
        # A server may quote the token without the rest of the query.
        token = max((value for _, value in parse_qsl(parts.query)), key=len, default=parts.query)
        return Target(url=url, headers={}, secret=token or None)
