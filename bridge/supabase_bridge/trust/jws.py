"""Make and verify detached JSON Web Signatures (JWS), without I/O.

Source: RFC 7515 (appendix F: detached content), RFC 7518 section 3.4 (ES256).
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import parse_object
from supabase_bridge.trust.errors import ManifestRefusedError, Refusal
from supabase_bridge.trust.keys import PrivateKey, TrustedKeys

ALGORITHM = "ES256"
_COMPACT = re.compile(r"(?P<header>[A-Za-z0-9_-]{1,400})\.\.[A-Za-z0-9_-]{1,200}")


def sign(payload: bytes, key: PrivateKey) -> str:
    """Sign a payload; return the detached signature in its compact form `<header>..<signature>`."""
    from joserfc import jws

    header = {"alg": ALGORITHM, "kid": key.public.key_id}
    return jws.detach_content(jws.serialize_compact(header, payload, key.jwk, algorithms=[ALGORITHM]))


def verify(signature: str, payload: bytes, keys: TrustedKeys, *, document: str) -> str:
    """Return the id of the trusted key that signed a payload.

    This is stricter than RFC 7515: the header has `alg` and `kid` and nothing else. So a signature cannot bring its own
    key or rules (`jwk`, `jku`, `x5c`, `b64`).

    Args:
        document: The path of the signed manifest, for the errors.

    Raises:
        ManifestRefusedError: with the reason MALFORMED_SIGNATURE, ALGORITHM, UNKNOWN_KEY or WRONG_SIGNATURE.
    """
    from joserfc import jws
    from joserfc.errors import JoseError

    header = _header(signature, document)
    if header.get("alg") != ALGORITHM:
        detail = f"its signature names the algorithm {str(header.get('alg'))[:40]!r}; only ES256 is accepted"
        raise ManifestRefusedError(document, Refusal.ALGORITHM, detail)
    key_id = header.get("kid")
    if set(header) != {"alg", "kid"} or not isinstance(key_id, str):
        raise _malformed(document, "its signature's header has other members than alg and kid")
    key = keys.by_id.get(key_id)
    if key is None:
        detail = (
            f"key {key_id[:60]!r} is not trusted. If it is yours, add its public key to trusted_keys in the settings"
        )
        raise ManifestRefusedError(document, Refusal.UNKNOWN_KEY, detail)
    try:
        jws.deserialize_compact(signature, key.jwk, algorithms=[ALGORITHM], payload=payload)
    except (JoseError, ValueError):
        detail = f"the signature of key {key_id!r} does not fit this content: it was changed after signing"
        raise ManifestRefusedError(document, Refusal.WRONG_SIGNATURE, detail) from None
    return key_id


def _header(signature: str, document: str) -> dict[str, Any]:
    match = _COMPACT.fullmatch(signature)
    if match is None:
        raise _malformed(document, "its signature is not a detached JWS (<header>..<signature>)")
    text = match["header"]
    try:
        return parse_object(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "header")
    except (binascii.Error, InvalidDocumentError):
        raise _malformed(document, "its signature's header is not a JSON object in base64url") from None


def _malformed(document: str, detail: str) -> ManifestRefusedError:
    return ManifestRefusedError(document, Refusal.MALFORMED_SIGNATURE, detail)
