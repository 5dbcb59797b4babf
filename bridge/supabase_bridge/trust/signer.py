"""Signing policy of a writer: its private key and the public keys it trusts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from supabase_bridge.core.documents import FileRecord, Manifest
from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import canonical
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths
from supabase_bridge.trust import jws
from supabase_bridge.trust.errors import ManifestRefusedError, ReleaseSignatureError, SigningError
from supabase_bridge.trust.keys import PrivateKey, PublicKey, TrustedKeys
from supabase_bridge.trust.verify import TrustPolicy, check_signature, verify_manifest


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Signs manifests with a private key; its repr does not contain the key."""

    key: PrivateKey

    @classmethod
    def from_pem(cls, pem: bytes, *, setting: str) -> Signer:
        """Make a signer from a private key in PEM.

        Raises:
            SettingsError: see `PrivateKey.parse`.
        """
        return cls(key=PrivateKey.parse(pem, setting=setting))

    @property
    def public(self) -> PublicKey:
        """The public key that verifies its signatures."""
        return self.key.public

    def sign(self, manifest: Manifest) -> Manifest:
        """Return the manifest with this key's signature: a detached JWS over its canonical JSON.

        It replaces an earlier signature.

        Raises:
            InvalidDocumentError: the manifest has no canonical form; see `json_objects.canonical`.
        """
        content = manifest.to_object()
        content.pop("signature", None)
        signature = jws.sign(canonical(content, Manifest.document_name), self.key)
        return manifest.model_copy(update={"signature": signature})


@dataclass(frozen=True, kw_only=True)
class SigningPolicy:
    """How a writer signs, and whose entries it trusts. Without a signer and keys, signatures are off.

    Attributes:
        signer: Signs log entries and releases. None: this process signs nothing.
        keys: The writer continues only logs and releases that one of these keys signed. Without any it does not verify.
    """

    signer: Signer | None = None
    keys: TrustedKeys = field(default_factory=TrustedKeys)

    def entry(self, entry: Manifest, *, head: Manifest | None, channel: ChannelPaths) -> Manifest:
        """Return the entry as it is written: signed if there is a signer, and never one that readers would refuse.

        Args:
            head: The newest entry of the log, which this one follows.

        Raises:
            SigningError: there is no signer, while keys are trusted or the log is signed already.
            ManifestRefusedError: a member that it copied from `head` is wrong, so it is not signed.
        """
        if self.signer is None:
            key = channel.history(entry.sequence)
            self.require_signer(key)
            if head is not None and head.signature is not None:
                raise _key_missing(key)
            return entry
        signed = self.signer.sign(entry)
        policy = TrustPolicy(keys=self.keys, require_signature=True)
        verify_manifest(signed.to_bytes(), policy=policy, channel=channel, seen=None, now=entry.current.published_at)
        return signed

    def require_signer(self, key: str) -> None:
        """Refuse to write an unsigned document that readers with the trusted keys would refuse.

        Args:
            key: The path of the document, for the error.

        Raises:
            SigningError: keys are trusted, and there is no signing key.
        """
        if self.keys and self.signer is None:
            raise _key_missing(key)

    def problem(self, entry: Manifest, key: str) -> ManifestRefusedError | InvalidDocumentError | None:
        """Return why a log entry is not signed by a trusted key; None if it is, or if no key is trusted.

        The method verifies the bytes that `manifest.json` would get, not those in the log.
        """
        if not self.keys:
            return None
        try:
            check_signature(entry.to_bytes(), policy=TrustPolicy(keys=self.keys, require_signature=True), document=key)
        except (ManifestRefusedError, InvalidDocumentError) as error:
            return error
        return None

    def release_signature(self, files: Mapping[str, FileRecord], paths: ReleasePaths) -> bytes | None:
        """Return the content of `model.sig` for these files, which include model_meta.json; None if signing is off.

        Raises:
            SigningError: the library for model signatures is not installed.
        """
        if self.signer is None:
            return None
        from supabase_bridge.trust import model_signature

        return model_signature.sign(files, name=str(paths.run_id), key=self.signer.key)

    def check_release(self, signature: bytes, files: Mapping[str, FileRecord], paths: ReleasePaths) -> None:
        """Verify a release's `model.sig` against the records of its files.

        Raises:
            ReleaseSignatureError: no trusted key signed exactly these files.
            SigningError: see `release_signature`.
        """
        from supabase_bridge.trust import model_signature

        problem = model_signature.problem(signature, files, self.keys)
        if problem is not None:
            raise ReleaseSignatureError(paths.signature, problem, paths.model_key, str(paths.run_id))


def _key_missing(path: str) -> SigningError:
    return SigningError(
        f"{path} must be signed, and this process has no signing key: set SUPABASE_BRIDGE_SIGNING_KEY_FILE. "
        "Nothing was switched"
    )


NO_SIGNING = SigningPolicy()
"""The policy of a writer that neither signs nor verifies."""
