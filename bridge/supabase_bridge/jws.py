"""Detached JSON Web Signatures over canonical JSON. Pure: the key and the value come in.

Source: RFC 7515 (appendix F: detached content), RFC 7518 section 3.4 (ES256), RFC 8785 (canonical JSON).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

import rfc8785

from supabase_bridge.documents import parse_object
from supabase_bridge.errors import (
    InvalidDocumentError,
    MalformedSignatureError,
    SignatureAlgorithmError,
    UnknownKeyError,
    WrongSignatureError,
)
from supabase_bridge.signing_keys import PrivateKey, TrustedKeys

ALGORITHM = "ES256"
_COMPACT = re.compile(r"(?P<header>[A-Za-z0-9_-]{1,400})\.\.[A-Za-z0-9_-]{1,200}")


def canonical(value: Mapping[str, Any], document: str) -> bytes:
    """The one sequence of bytes of a JSON object that every implementation of RFC 8785 makes of it.

    Raises:
        InvalidDocumentError: a whole number in it is 2^53 or more away from 0, where implementations differ.
    """
    try:
        return rfc8785.dumps(dict(value))
    except rfc8785.CanonicalizationError as error:
        raise InvalidDocumentError(document, f"it has no canonical form: {error}"[:200]) from None


def sign(payload: bytes, key: PrivateKey) -> str:
    """A detached signature of a payload: the compact form `<header>..<signature>`."""
    from joserfc import jws

    header = {"alg": ALGORITHM, "kid": key.public.key_id}
    return jws.detach_content(jws.serialize_compact(header, payload, key.jwk, algorithms=[ALGORITHM]))


def verify(signature: str, payload: bytes, keys: TrustedKeys, *, document: str) -> str:
    """Return the id of the trusted key that signed a payload.

    Stricter than RFC 7515: the header has `alg` and `kid` and nothing else, so that nothing in a signature (`jwk`,
    `jku`, `x5c`, `b64`) can bring its own key or rules.

    Args:
        document: What was signed, for the errors.

    Raises:
        MalformedSignatureError: the signature is no detached JWS of this form.
        SignatureAlgorithmError: it names another algorithm than ES256.
        UnknownKeyError: its key is not among the trusted ones.
        WrongSignatureError: it is not that key's signature of this payload.
    """
    from joserfc import jws
    from joserfc.errors import JoseError

    header = _header(signature, document)
    if header.get("alg") != ALGORITHM:
        raise SignatureAlgorithmError(document, header.get("alg"))
    key_id = header.get("kid")
    if set(header) != {"alg", "kid"} or not isinstance(key_id, str):
        raise MalformedSignatureError(document, "its signature's header has other members than alg and kid")
    key = keys.by_id.get(key_id)
    if key is None:
        raise UnknownKeyError(document, key_id)
    try:
        jws.deserialize_compact(signature, key.jwk, algorithms=[ALGORITHM], payload=payload)
    except (JoseError, ValueError):
        raise WrongSignatureError(document, key_id) from None
    return key_id


def _header(signature: str, document: str) -> dict[str, Any]:
    match = _COMPACT.fullmatch(signature)
    if match is None:
        raise MalformedSignatureError(document, "its signature is no detached JWS (<header>..<signature>)")
    text = match["header"]
    try:
        return parse_object(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "header")
    except (binascii.Error, InvalidDocumentError):
        raise MalformedSignatureError(document, "its signature's header is no JSON object in base64url") from None
