"""Keys and signed manifests for tests."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.json_objects import canonical
from supabase_bridge.trust.errors import ManifestRefusedError, Refusal
from supabase_bridge.trust.keys import PrivateKey, TrustedKeys
from supabase_bridge.trust.signer import Signer, SigningPolicy


@contextmanager
def refused_because(
    *reasons: Refusal, match: str | None = None
) -> Iterator[pytest.ExceptionInfo[ManifestRefusedError]]:
    """Expect that the block refuses a manifest for one of these reasons."""
    with pytest.raises(ManifestRefusedError, match=match) as caught:
        yield caught
    assert caught.value.reason in reasons


@cache
def key(_name: str) -> PrivateKey:
    """Return a private key; within the process it is the same one for the same name."""
    return PrivateKey.generate()


def signer(name: str) -> Signer:
    """Return a signer with the key of this name."""
    return Signer(key=key(name))


def trusting(*names: str) -> TrustedKeys:
    """Return the public keys of these names."""
    return TrustedKeys.of(key(name).public for name in names)


def sealed(name: str | None, *trusted: str) -> SigningPolicy:
    """Return the policy of a writer that signs with one key and trusts others; by default its own key alone."""
    keys = trusting(*(trusted or ([] if name is None else [name])))
    return SigningPolicy(signer=None if name is None else signer(name), keys=keys)


def encoded(data: bytes) -> str:
    """base64url without padding, as in a JWS."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_header(manifest: Manifest, header: object, *, name: str = "first") -> bytes:
    """Return the manifest with another header and a valid signature of it by the key of this name."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    content = manifest.to_object()
    content.pop("signature", None)
    first = encoded(json.dumps(header).encode())
    signed = f"{first}.{encoded(canonical(content, 'manifest'))}".encode()
    private = serialization.load_pem_private_key(key(name).pem, password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(private.sign(signed, ec.ECDSA(hashes.SHA256())))
    return with_signature(manifest, f"{first}..{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}")


def with_signature(manifest: Manifest, signature: Any) -> bytes:
    """Return the manifest's bytes with this text in place of its signature."""
    return json.dumps({**manifest.to_object(), "signature": signature}).encode()
