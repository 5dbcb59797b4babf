"""Keys and signed manifests for tests."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any

from supabase_bridge import jws
from supabase_bridge.documents import Manifest
from supabase_bridge.signing import Seal, Signer
from supabase_bridge.signing_keys import PrivateKey, TrustedKeys


@cache
def key(_name: str) -> PrivateKey:
    """A private key; the same one for the same name, as long as the process lives."""
    return PrivateKey.generate()


def signer(name: str) -> Signer:
    """Who signs with the key of this name."""
    return Signer(key=key(name))


def trusting(*names: str) -> TrustedKeys:
    """The public keys of these names."""
    return TrustedKeys.of(key(name).public for name in names)


def sealed(name: str | None, *trusted: str) -> Seal:
    """A writer that signs with one key and believes others (its own alone, where none is named)."""
    keys = trusting(*(trusted or ([] if name is None else [name])))
    return Seal(signer=None if name is None else signer(name), keys=keys)


def encoded(data: bytes) -> str:
    """base64url without padding, as in a JWS."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_header(manifest: Manifest, header: object, *, name: str = "first") -> bytes:
    """The manifest with a signature by the key of this name that has another header, and is right for it."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    content = manifest.to_object()
    content.pop("signature", None)
    first = encoded(json.dumps(header).encode())
    signed = f"{first}.{encoded(jws.canonical(content, 'manifest'))}".encode()
    private = serialization.load_pem_private_key(key(name).pem, password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(private.sign(signed, ec.ECDSA(hashes.SHA256())))
    return with_signature(manifest, f"{first}..{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}")


def with_signature(manifest: Manifest, signature: Any) -> bytes:
    """The manifest's bytes with this text in place of its signature."""
    return json.dumps({**manifest.to_object(), "signature": signature}).encode()
