"""A mark on a recorded SHA-256 that only who holds the project's key can make."""

from __future__ import annotations

import hashlib
import hmac

from supabase_bridge.object_store import Digests
from supabase_bridge.secret import Secret

SEAL_NAME = "seal"
"""Its name in an object's user metadata."""

_PURPOSE = "supabase-bridge: these digests are of the same bytes"


class Sealer:
    """Says that a size, an MD5 and a SHA-256 were computed of the same bytes; HMAC-SHA-256 (RFC 2104) under the key.

    Whoever may write to a bucket may write any metadata; but the ETag is the server's, so a seal that holds for an
    object's size and ETag says that its content has this SHA-256. It tells nothing of the key.
    """

    def __init__(self, key: Secret) -> None:
        self._key = key

    def seal(self, digests: Digests) -> str:
        """The mark, in lower-case hex."""
        message = f"{_PURPOSE}\n{digests.size_bytes}\n{digests.md5}\n{digests.sha256}"
        return hmac.new(self._key.reveal().encode(), message.encode(), hashlib.sha256).hexdigest()

    def holds(self, seal: object, digests: Digests) -> bool:
        """Whether this is the mark for these digests."""
        return isinstance(seal, str) and seal.isascii() and hmac.compare_digest(seal, self.seal(digests))
