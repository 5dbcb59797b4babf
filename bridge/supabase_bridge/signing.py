"""What a writer signs with and whom it believes: the seal of logs and releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from supabase_bridge import jws
from supabase_bridge.documents import FileRecord, Manifest
from supabase_bridge.errors import (
    InvalidDocumentError,
    ManifestRefusedError,
    ReleaseSignatureError,
    SigningKeyMissingError,
)
from supabase_bridge.layout import ChannelKeys, ReleaseKeys
from supabase_bridge.signing_keys import PrivateKey, PublicKey, TrustedKeys
from supabase_bridge.trust import TrustPolicy, accept, check_signature


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Signs manifests; nothing of the key is in its repr."""

    key: PrivateKey

    @classmethod
    def from_pem(cls, pem: bytes, *, setting: str) -> Signer:
        """A signer with a private key in PEM.

        Raises:
            SettingsError: see `PrivateKey.parse`.
        """
        return cls(key=PrivateKey.parse(pem, setting=setting))

    @property
    def public(self) -> PublicKey:
        """The key that its signatures are verified with."""
        return self.key.public

    def sign(self, manifest: Manifest) -> Manifest:
        """The manifest with this key's signature, in place of any other: a detached JWS over its canonical JSON.

        Raises:
            InvalidDocumentError: it has no canonical form; see `jws.canonical`.
        """
        content = manifest.to_object()
        content.pop("signature", None)
        signature = jws.sign(jws.canonical(content, Manifest.document_name), self.key)
        return manifest.model_copy(update={"signature": signature})


@dataclass(frozen=True, kw_only=True)
class Seal:
    """A writer's side of signatures. Without a signer and keys it does nothing: signatures are off.

    Attributes:
        signer: What entries and releases are signed with; None: this process signs nothing.
        keys: Whose entries and releases are built upon; none: everybody's.
    """

    signer: Signer | None = None
    keys: TrustedKeys = field(default_factory=TrustedKeys)

    def entry(self, entry: Manifest, *, head: Manifest | None, channel: ChannelKeys) -> Manifest:
        """The entry as it is written: signed where there is a signer, and never one that a reader would refuse.

        Args:
            head: The entry it is built upon.

        Raises:
            SigningKeyMissingError: there is no signer, while keys are trusted or the log is signed already.
            ManifestRefusedError: what it took over from `head` is nothing to be signed.
        """
        if self.signer is None:
            key = channel.history(entry.sequence)
            self.require_signer(key)
            if head is not None and head.signature is not None:
                raise SigningKeyMissingError(key)
            return entry
        signed = self.signer.sign(entry)
        policy = TrustPolicy(keys=self.keys, require_signature=True)
        accept(signed.to_bytes(), policy=policy, channel=channel, seen=None, now=entry.current.published_at)
        return signed

    def require_signer(self, key: str) -> None:
        """Refuse to write what no reader with the trusted keys would believe.

        Args:
            key: What is to be written, for the error.

        Raises:
            SigningKeyMissingError: keys are trusted, and there is none to sign with.
        """
        if self.keys and self.signer is None:
            raise SigningKeyMissingError(key)

    def problem(self, entry: Manifest, key: str) -> ManifestRefusedError | InvalidDocumentError | None:
        """Why an entry is not one of a trusted key; None where it is, or where no key is trusted.

        What is judged are the bytes that `manifest.json` would be given, not those found in the log.
        """
        if not self.keys:
            return None
        try:
            check_signature(entry.to_bytes(), policy=TrustPolicy(keys=self.keys, require_signature=True), document=key)
        except (ManifestRefusedError, InvalidDocumentError) as error:
            return error
        return None

    def release_signature(self, files: Mapping[str, FileRecord], keys: ReleaseKeys) -> bytes | None:
        """The content of `model.sig` for a release with these files, model_meta.json among them; None: signing is off.

        Raises:
            SigningExtraMissingError: the library that makes it is not installed.
        """
        if self.signer is None:
            return None
        from supabase_bridge import model_signature

        return model_signature.sign(files, name=str(keys.run_id), key=self.signer.key)

    def check_release(self, signature: bytes, files: Mapping[str, FileRecord], keys: ReleaseKeys) -> None:
        """Hold a release's `model.sig` against the record of its files.

        Raises:
            ReleaseSignatureError: no trusted key signed exactly these files.
            SigningExtraMissingError: see `release_signature`.
        """
        from supabase_bridge import model_signature

        problem = model_signature.problem(signature, files, self.keys)
        if problem is not None:
            raise ReleaseSignatureError(keys.signature, problem, keys.model_key, str(keys.run_id))


UNSEALED = Seal()
"""Signatures are off."""
