"""Whether a manifest is believed. Pure: the manifest, the policy, what was seen before, and the time come in.

Source: docs/adr/0008; RFC 7515, RFC 8785; The Update Framework's specification on rollback and freeze attacks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from supabase_bridge import jws
from supabase_bridge.documents import Manifest, ReleasePointer, parse_object
from supabase_bridge.errors import (
    FilesUnrecordedError,
    InvalidObjectKeyError,
    InvalidRunIdError,
    ManifestExpiredError,
    ManifestForkedError,
    ManifestFromTheFutureError,
    ManifestPathError,
    ManifestReplayedError,
    ManifestUnsignedError,
    WrongManifestError,
)
from supabase_bridge.layout import META_NAME, METRICS_NAME, ChannelKeys, ReleaseKeys, RunId, check_object_key
from supabase_bridge.signing_keys import PublicKey, TrustedKeys

__all__ = ["PublicKey", "Seen", "TrustPolicy", "TrustedKeys", "accept", "check_paths", "check_signature"]

CLOCK_SKEW = timedelta(minutes=5)
"""How far a manifest's time may lie ahead of this machine's."""


@dataclass(frozen=True, kw_only=True)
class TrustPolicy:
    """What a reader asks of a manifest.

    Attributes:
        keys: The keys whose signatures are believed; none: signatures are not looked at.
        require_signature: Whether an unsigned manifest is refused; by default it is where there are trusted keys.
        max_age: How long ago a manifest may have been published, or confirmed; None: as long as it likes.
    """

    keys: TrustedKeys = field(default_factory=TrustedKeys)
    require_signature: bool | None = None
    max_age: timedelta | None = None

    @property
    def signature_required(self) -> bool:
        """Whether an unsigned manifest is refused."""
        return bool(self.keys) if self.require_signature is None else self.require_signature


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a reader remembers of the newest manifest of a channel that it accepted.

    Attributes:
        digest: The SHA-256 of the manifest's canonical JSON without its signature, so that a manifest that was signed
            again is the same one.
    """

    sequence: int
    digest: str

    @classmethod
    def of(cls, manifest: Manifest) -> Seen:
        """What to remember of a manifest that was accepted.

        Raises:
            InvalidDocumentError: see `jws.canonical`.
        """
        content = manifest.to_object()
        content.pop("signature", None)
        digest = hashlib.sha256(jws.canonical(content, Manifest.document_name)).hexdigest()
        return cls(sequence=manifest.sequence, digest=digest)


def accept(
    manifest_bytes: bytes, *, policy: TrustPolicy, channel: ChannelKeys, seen: Seen | None, now: datetime
) -> Manifest:
    """Return the manifest if it is to be believed.

    The signature is judged before anything else that the manifest says.

    Args:
        channel: The model and channel that were asked for.
        seen: What was remembered of the channel; None: this is the first look, and any sequence is accepted.
        now: The time (aware).

    Raises:
        InvalidDocumentError: it is no manifest, or none that could be remembered; see `Seen.of`.
        ManifestUnsignedError, MalformedSignatureError, SignatureAlgorithmError, UnknownKeyError, WrongSignatureError:
            the policy asks for a signature that it does not have.
        FilesUnrecordedError: it is signed, but has no digest of one of the release's files.
        WrongManifestError: it is another model's or channel's.
        ManifestPathError: it names objects elsewhere than where the layout has them.
        ManifestReplayedError: its sequence is lower than one seen.
        ManifestForkedError: its sequence was seen, with other content.
        ManifestExpiredError, ManifestFromTheFutureError: it is older than the policy allows, or its age is unknown.
    """
    signed = check_signature(manifest_bytes, policy=policy, document=channel.manifest)
    manifest = Manifest.parse(manifest_bytes)
    if (manifest.model_name, manifest.channel) != (channel.model_key, channel.channel):
        raise WrongManifestError(channel.manifest, manifest.model_name, manifest.channel)
    check_paths(manifest, channel)
    if signed:
        _check_recorded(manifest, channel)
    # Made on the first look too: what is accepted must be comparable with what comes next.
    _check_order(Seen.of(manifest), channel, seen)
    _check_age(manifest, channel, policy.max_age, now)
    return manifest


def check_signature(manifest_bytes: bytes, *, policy: TrustPolicy, document: str) -> bool:
    """Return whether a trusted key signed the manifest; False where the policy does without.

    Args:
        document: The manifest's key, for the errors.

    Raises:
        InvalidDocumentError: it is no JSON object, or too large.
        ManifestUnsignedError, MalformedSignatureError, SignatureAlgorithmError, UnknownKeyError, WrongSignatureError:
            see `accept`.
    """
    content = parse_object(manifest_bytes, Manifest.document_name)
    signature = content.pop("signature", None)
    if signature is None:
        if policy.signature_required:
            raise ManifestUnsignedError(document)
        return False
    if not policy.keys and not policy.signature_required:
        return False
    jws.verify(str(signature), jws.canonical(content, Manifest.document_name), policy.keys, document=document)
    return True


def check_paths(manifest: Manifest, channel: ChannelKeys) -> None:
    """Refuse whatever is not exactly where the layout has it: another model's object is as wrong as `../`.

    Raises:
        ManifestPathError: a path, run_id or file name is.
    """
    pointers: dict[str, ReleasePointer] = {"current": manifest.current}
    pointers.update({f"previous.{place}": pointer for place, pointer in enumerate(manifest.previous)})
    for place, pointer in pointers.items():
        keys = _release(pointer, channel, place)
        expected = {"onnx_path": keys.onnx, "meta_path": keys.meta, "metrics_path": keys.metrics}
        for name, path in expected.items():
            found = getattr(pointer, name)
            if found is not None and found != path:
                raise ManifestPathError(channel.manifest, f"{place}.{name}", found)
    current = _release(manifest.current, channel, "current")
    for name in manifest.current.files:
        try:
            check_object_key(current.file(name))
        except InvalidObjectKeyError:
            raise ManifestPathError(channel.manifest, "a name in current.files", name) from None


def _release(pointer: ReleasePointer, channel: ChannelKeys, place: str) -> ReleaseKeys:
    try:
        return ReleaseKeys(model_key=channel.model_key, run_id=RunId.parse(pointer.run_id))
    except InvalidRunIdError:
        raise ManifestPathError(channel.manifest, f"{place}.run_id", pointer.run_id) from None


def _check_recorded(manifest: Manifest, channel: ChannelKeys) -> None:
    keys = _release(manifest.current, channel, "current")
    for name in (keys.onnx_name, META_NAME, METRICS_NAME):
        if name not in manifest.current.files:
            raise FilesUnrecordedError(channel.manifest, name)


def _check_order(found: Seen, channel: ChannelKeys, seen: Seen | None) -> None:
    if seen is None or found.sequence > seen.sequence:
        return
    if found.sequence < seen.sequence:
        raise ManifestReplayedError(channel.manifest, found.sequence, seen.sequence)
    if found.digest != seen.digest:
        raise ManifestForkedError(channel.manifest, found.sequence)


def _check_age(manifest: Manifest, channel: ChannelKeys, max_age: timedelta | None, now: datetime) -> None:
    if max_age is None:
        return
    published_at = manifest.confirmed_at or manifest.current.published_at
    if published_at > now + CLOCK_SKEW:
        raise ManifestFromTheFutureError(channel.manifest, published_at, now)
    if now - published_at > max_age:
        raise ManifestExpiredError(channel.manifest, published_at, max_age)
