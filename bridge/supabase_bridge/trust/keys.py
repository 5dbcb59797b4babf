"""Parse and generate the keys of signatures: ECDSA on P-256, identified by their RFC 7638 thumbprint.

cryptography and joserfc are imported only when a key is parsed. Importing them takes longer than importing the rest of
the client, and a client that trusts no key does not need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from supabase_bridge.core.errors import SettingsError

if TYPE_CHECKING:
    from joserfc.jwk import ECKey

_EXPECTED = "expected an ECDSA key on the curve P-256, as `supabase-bridge keys generate` makes them"


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """A key that verifies signatures.

    Attributes:
        key_id: The RFC 7638 SHA-256 thumbprint: equal keys have equal ids.
        pem: The key as SubjectPublicKeyInfo in PEM.
    """

    key_id: str
    pem: bytes = field(repr=False)

    @property
    def jwk(self) -> ECKey:
        """The key in joserfc's type."""
        return _jwk(self.pem)

    @classmethod
    def parse(cls, pem: bytes, *, setting: str) -> PublicKey:
        """Read a public key from PEM.

        Args:
            setting: The setting that the text comes from, for the error.

        Raises:
            SettingsError: it is no public key, or one of another kind. The message does not contain the text.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization

        if pem.count(b"-----BEGIN ") > 1:
            raise SettingsError(setting, "more than one key; give each a file of its own")
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            private = b"PRIVATE KEY" in pem
            problem = "this is a private key; trust its public half" if private else "no public key in PEM"
            raise SettingsError(setting, f"{problem}; {_EXPECTED}") from None
        return cls.of(key, setting=setting)

    @classmethod
    def of(cls, key: object, *, setting: str) -> PublicKey:
        """Return the public key of a key object of cryptography.

        Raises:
            SettingsError: it is of another kind.
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise SettingsError(setting, f"this key is of another kind; {_EXPECTED}")
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(key_id=_jwk(pem).thumbprint(), pem=pem)


@dataclass(frozen=True, kw_only=True)
class PrivateKey:
    """A key that makes signatures; its repr does not contain it."""

    public: PublicKey
    pem: bytes = field(repr=False)

    @property
    def jwk(self) -> ECKey:
        """The key in joserfc's type."""
        return _jwk(self.pem)

    @classmethod
    def parse(cls, pem: bytes, *, setting: str) -> PrivateKey:
        """Read a private key from PEM (PKCS #8 or SEC 1, not encrypted).

        Raises:
            SettingsError: it is no private key, of another kind, or encrypted. The message does not contain the text.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization

        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            public = b"PUBLIC KEY" in pem
            problem = "this is a public key; signing needs its private half" if public else "no private key in PEM"
            if b"ENCRYPTED" in pem:
                problem = "this key is encrypted; keep it in a file that only its user can read, not encrypted"
            raise SettingsError(setting, f"{problem}; {_EXPECTED}") from None
        public_key = PublicKey.of(key.public_key(), setting=setting)
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls(public=public_key, pem=plain)

    @classmethod
    def generate(cls) -> PrivateKey:
        """Generate a key with the operating system's random numbers."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls.parse(plain, setting="the new key")


@dataclass(frozen=True, kw_only=True)
class TrustedKeys:
    """The public keys that a reader or writer trusts, by key id; there are several while a key is replaced."""

    by_id: Mapping[str, PublicKey] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, keys: Iterable[PublicKey]) -> TrustedKeys:
        """Collect keys; a key that is given twice counts once."""
        return cls(by_id=MappingProxyType({key.key_id: key for key in keys}))

    @classmethod
    def from_pem(cls, pems: Iterable[bytes], *, setting: str = "trusted_keys") -> TrustedKeys:
        """Parse and collect public keys in PEM.

        Raises:
            SettingsError: see `PublicKey.parse`.
        """
        return cls.of(PublicKey.parse(pem, setting=setting) for pem in pems)

    def __bool__(self) -> bool:
        return bool(self.by_id)


def _jwk(pem: bytes) -> ECKey:
    from joserfc.jwk import ECKey

    return ECKey.import_key(pem)
