"""Where an object is read over HTTP, and with which key: the project's own routes, or URLs somebody signs. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl, quote, urlsplit

from supabase_bridge.config import names_a_host
from supabase_bridge.errors import SettingsError
from supabase_bridge.layout import check_object_key
from supabase_bridge.secret import Secret

_KEY = re.compile(r"[!-~]+")
_NOTHING = "\0"
"""What to blot out where there is no secret; no answer has it in it."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """A URL to read, what to send with it, and what must not be shown of either."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    secret: str = field(repr=False)


class Addresses(Protocol):
    """Finds the address of each object of one bucket.

    Attributes:
        name: What a person calls the bucket; without any secret, and equal for equal buckets.
        bucket: The bucket's name.
        public: Whether nothing is sent that says who asks.
    """

    name: str
    bucket: str
    public: bool

    def of(self, key: str, *, nonce: str | None) -> Address:
        """The address of one object; with a nonce, one that no cache on the way knows."""
        ...


class ProjectAddresses:
    """The routes of a Supabase project.

    Args:
        url: The project's URL.
        bucket: The bucket's name.
        key: The key to read with; None: the bucket is public.

    Raises:
        SettingsError: the URL or the key cannot be one; neither is in the message.
    """

    def __init__(self, *, url: str, bucket: str, key: Secret | None) -> None:
        if not names_a_host(url):
            raise SettingsError("SUPABASE_URL", "expected https://<project>.supabase.co (http:// for a local one)")
        secret = None if key is None else key.reveal()
        if secret is not None and not _KEY.fullmatch(secret):
            # The HTTP library would refuse it too, and print it while doing so.
            raise SettingsError("SUPABASE_ANON_KEY", "the key has characters that no key has")
        self.name = f"Supabase {urlsplit(url).netloc} bucket {bucket}"
        self.bucket = bucket
        self.public = key is None
        self._headers = {} if secret is None else {"apikey": secret, "authorization": f"Bearer {secret}"}
        self._secret = secret or _NOTHING
        route = "object/public" if key is None else "object"
        self._base = f"{url.rstrip('/')}/storage/v1/{route}/{quote(bucket, safe='')}/"

    def of(self, key: str, *, nonce: str | None) -> Address:
        """As the protocol says; `cacheNonce` is storage-js's way past a CDN that may be a minute behind."""
        query = "" if nonce is None else f"?cacheNonce={nonce}"
        return Address(
            url=f"{self._base}{quote(check_object_key(key), safe='/')}{query}",
            headers=self._headers,
            secret=self._secret,
        )


class SignedAddresses:
    """URLs that somebody signs, one for each object; no key is sent with them.

    Args:
        sign: From an object's key, relative to the bucket, to a URL that reads it. What it raises comes out.
        bucket: The bucket's name.
        place: What tells this bucket from others of its name (the project's URL); what was seen is remembered by it.
    """

    def __init__(self, *, sign: Callable[[str], str], bucket: str, place: str) -> None:
        self.name = f"signed URLs of {place or 'a project'} bucket {bucket}"
        self.bucket = bucket
        self.public = False
        self._sign = sign

    def of(self, key: str, *, nonce: str | None) -> Address:  # noqa: ARG002 - what is signed bears no further parameter
        """As the protocol says; a URL that was signed just now is known to no cache.

        Raises:
            SettingsError: what was signed is no URL.
        """
        url = self._sign(check_object_key(key))
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or not _KEY.fullmatch(url):
            raise SettingsError("signed_urls", f"what it gives for {key!r} is no http(s) URL")
        # A server may quote the token without the rest of the query.
        token = max((value for _, value in parse_qsl(parts.query)), key=len, default=parts.query)
        return Address(url=url, headers={}, secret=token or _NOTHING)
