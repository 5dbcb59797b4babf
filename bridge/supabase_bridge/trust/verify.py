"""Verify a manifest: signature, rollback, freeze and path checks, without I/O.

Source: docs/adr/0008; RFC 7515, RFC 8785; The Update Framework's specification on rollback and freeze attacks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from supabase_bridge.core.documents import Manifest, ReleasePointer, check_file_names
from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError
from supabase_bridge.core.json_objects import canonical, parse_object
from supabase_bridge.core.layout import META_NAME, METRICS_NAME, ChannelPaths, ReleasePaths, RunId
from supabase_bridge.trust import jws
from supabase_bridge.trust.errors import ManifestRefusedError, Refusal
from supabase_bridge.trust.keys import PublicKey, TrustedKeys

__all__ = [
    "PublicKey",
    "SeenManifest",
    "TrustPolicy",
    "TrustedKeys",
    "check_paths",
    "check_signature",
    "verify_manifest",
]

CLOCK_SKEW = timedelta(minutes=5)
"""The largest difference by which the time in a manifest may be ahead of this machine's clock."""

_UNSIGNED = (
    "it is not signed. Sign the existing manifests with `supabase-bridge keys sign-manifest`, or set "
    "require_signature = false until all of them are signed"
)


@dataclass(frozen=True, kw_only=True)
class TrustPolicy:
    """The rules by which a reader accepts a manifest.

    Attributes:
        keys: The trusted keys. Without any, signatures are not verified.
        require_signature: Whether an unsigned manifest is refused. None: it is refused if there are trusted keys.
        max_age: The largest age of a manifest since it was published or reissued. None: there is no limit.
    """

    keys: TrustedKeys = field(default_factory=TrustedKeys)
    require_signature: bool | None = None
    max_age: timedelta | None = None

    @property
    def signature_required(self) -> bool:
        """Whether an unsigned manifest is refused."""
        return bool(self.keys) if self.require_signature is None else self.require_signature


@dataclass(frozen=True, kw_only=True)
class SeenManifest:
    """The newest manifest of a channel that a reader accepted, stored to detect an older or a forged one.

    Attributes:
        digest: The SHA-256 of the manifest's canonical JSON without its signature. A manifest that was signed again has
            the same digest.
    """

    sequence: int
    digest: str

    @classmethod
    def of(cls, manifest: Manifest) -> SeenManifest:
        """Return the record to store of an accepted manifest.

        Raises:
            InvalidDocumentError: see `json_objects.canonical`.
        """
        content = manifest.to_object()
        content.pop("signature", None)
        digest = hashlib.sha256(canonical(content, Manifest.document_name)).hexdigest()
        return cls(sequence=manifest.sequence, digest=digest)


def verify_manifest(
    manifest_bytes: bytes, *, policy: TrustPolicy, channel: ChannelPaths, seen: SeenManifest | None, now: datetime
) -> Manifest:
    """Verify a manifest and return it.

    The signature is verified before any other member of the manifest is used.

    Args:
        channel: The model and channel that the caller asked for.
        seen: The stored record of the channel. None: the channel is new to this reader, and any sequence is accepted.
        now: The time (aware).

    Raises:
        InvalidDocumentError: it is not a valid manifest, or it has no canonical form; see `SeenManifest.of`.
        ManifestRefusedError: the signature that the policy requires is missing or wrong (see `check_signature`), a file
            of the release has no signed digest (UNRECORDED_FILE), it belongs to another model or channel
            (WRONG_MANIFEST), a path is not where the layout has it (PATH), its sequence is lower than the stored one
            (ROLLBACK) or the same with other content (FORK), it is older than the policy allows (EXPIRED), or its time
            is in the future (FROM_FUTURE).
    """
    signed = check_signature(manifest_bytes, policy=policy, document=channel.manifest)
    manifest = Manifest.parse(manifest_bytes)
    if (manifest.model_name, manifest.channel) != (channel.model_key, channel.channel):
        detail = f"it is the manifest of model {manifest.model_name[:120]!r}, channel {manifest.channel[:80]!r}"
        raise ManifestRefusedError(channel.manifest, Refusal.WRONG_MANIFEST, detail)
    check_paths(manifest, channel)
    if signed:
        _check_recorded(manifest, channel)
    # The first manifest of a channel needs a record too: the next one is compared with it.
    _check_order(SeenManifest.of(manifest), channel, seen)
    _check_age(manifest, channel, policy.max_age, now)
    return manifest


def check_signature(manifest_bytes: bytes, *, policy: TrustPolicy, document: str) -> bool:
    """Return whether a trusted key signed the manifest; False if the policy requires no signature and there is none.

    Args:
        document: The manifest's path, for the errors.

    Raises:
        InvalidDocumentError: it is not a JSON object, or it is too large.
        ManifestRefusedError: with the reason UNSIGNED, or one of those of `jws.verify`.
    """
    content = parse_object(manifest_bytes, Manifest.document_name)
    signature = content.pop("signature", None)
    if signature is None:
        if policy.signature_required:
            raise ManifestRefusedError(document, Refusal.UNSIGNED, _UNSIGNED)
        return False
    if not policy.keys and not policy.signature_required:
        return False
    jws.verify(str(signature), canonical(content, Manifest.document_name), policy.keys, document=document)
    return True


def check_paths(manifest: Manifest, channel: ChannelPaths) -> None:
    """Refuse every path that is not exactly the one that the layout gives: `../`, or an object of another model.

    Raises:
        ManifestRefusedError: a path, run_id or file name is not; the reason is PATH.
    """
    pointers: dict[str, ReleasePointer] = {"current": manifest.current}
    pointers.update({f"previous.{place}": pointer for place, pointer in enumerate(manifest.previous)})
    for place, pointer in pointers.items():
        paths = _release(pointer, channel, place)
        expected = {"onnx_path": paths.onnx, "meta_path": paths.meta, "metrics_path": paths.metrics}
        expected |= {field: paths.file(file) for field, file in paths.tower_names.items()}
        for name, path in expected.items():
            found = getattr(pointer, name)
            if found is not None and found != path:
                raise _misplaced(channel, f"{place}.{name}", found)
    current = _release(manifest.current, channel, "current")
    try:
        check_file_names(manifest.current.files, current, document=channel.manifest)
    except InvalidDocumentError as error:
        raise ManifestRefusedError(channel.manifest, Refusal.PATH, f"current.{error.reason}") from None


def _release(pointer: ReleasePointer, channel: ChannelPaths, place: str) -> ReleasePaths:
    try:
        return ReleasePaths(model_key=channel.model_key, run_id=RunId.parse(pointer.run_id))
    except InvalidNameError:
        raise _misplaced(channel, f"{place}.run_id", pointer.run_id) from None


def _misplaced(channel: ChannelPaths, field: str, path: str) -> ManifestRefusedError:
    detail = f"{field} is {path[:200]!r}, which is not where that release has it"
    return ManifestRefusedError(channel.manifest, Refusal.PATH, detail)


def _check_recorded(manifest: Manifest, channel: ChannelPaths) -> None:
    paths = _release(manifest.current, channel, "current")
    towers = [name for field, name in paths.tower_names.items() if getattr(manifest.current, field) is not None]
    for name in (paths.onnx_name, META_NAME, METRICS_NAME, *towers):
        if name not in manifest.current.files:
            detail = f"current.files has no record of {name}, so the signature does not cover that file"
            raise ManifestRefusedError(channel.manifest, Refusal.UNRECORDED_FILE, detail)


def _check_order(found: SeenManifest, channel: ChannelPaths, seen: SeenManifest | None) -> None:
    if seen is None or found.sequence > seen.sequence:
        return
    if found.sequence < seen.sequence:
        detail = (
            f"its sequence is {found.sequence}, and {seen.sequence} was seen before: a cache or an attacker serves an "
            "old one"
        )
        raise ManifestRefusedError(channel.manifest, Refusal.ROLLBACK, detail)
    if found.digest != seen.digest:
        detail = f"sequence {found.sequence} was seen before with other content: one of the two is forged"
        raise ManifestRefusedError(channel.manifest, Refusal.FORK, detail)


def _check_age(manifest: Manifest, channel: ChannelPaths, max_age: timedelta | None, now: datetime) -> None:
    if max_age is None:
        return
    published_at = manifest.confirmed_at or manifest.current.published_at
    if published_at > now + CLOCK_SKEW:
        detail = f"it was published at {published_at.isoformat()}, and this machine's clock says {now.isoformat()}"
        raise ManifestRefusedError(channel.manifest, Refusal.FROM_FUTURE, detail)
    if now - published_at > max_age:
        detail = (
            f"it was published at {published_at.isoformat()}, longer ago than max_age ({max_age}). Promote a version, "
            "or reissue the current manifest with `supabase-bridge keys sign-manifest`"
        )
        raise ManifestRefusedError(channel.manifest, Refusal.EXPIRED, detail)
