"""URLs with which somebody who has no key reads one object of a Supabase project for a while."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from supabase_bridge.errors import UnexpectedAnswerError
from supabase_bridge.layout import check_object_key

if TYPE_CHECKING:
    from supabase_bridge.object_store.supabase_transport import Transport


@runtime_checkable
class SigningStore(Protocol):
    """A store that can sign; a directory cannot, since nobody serves it."""

    def signed_url(self, key: str, *, lifetime: timedelta) -> str:
        """A URL that reads the object as it then is, without a key, until `lifetime` (whole seconds) is over.

        It cannot be taken back but by deleting the object or changing the project's signing key. A browser saves what
        it gets under the key's last part.

        Raises:
            ObjectNotFoundError: there is none.
        """
        ...


def signed_url(transport: Transport, key: str, *, lifetime: timedelta) -> str:
    """What `SigningStore` promises, over the project's own route for it."""
    request = transport.request(f"signing {check_object_key(key)}", key)
    bucket = transport.storage().from_(transport.bucket)
    name = key.rpartition("/")[2]
    seconds = int(lifetime.total_seconds())
    answer = transport.run(request, lambda: bucket.create_signed_url(transport.path(key), seconds, {"download": name}))
    url = answer["signedURL"]
    if url is None:
        raise UnexpectedAnswerError(transport.name, request.operation, "no URL")
    return url
