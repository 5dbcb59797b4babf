"""The files of a release, found by channel or by run_id, each with the record that its content must match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from supabase_bridge.documents import LIMIT_BYTES, FileRecord, Manifest, ModelMeta
from supabase_bridge.errors import (
    ChannelNotFoundError,
    InvalidDocumentError,
    InvalidObjectKeyError,
    InvalidRunIdError,
    ObjectNotFoundError,
    ReleaseNotFoundError,
)
from supabase_bridge.layout import (
    META_NAME,
    SIGNATURE_NAME,
    ChannelKeys,
    ReleaseKeys,
    RunId,
    check_channel,
    check_model_key,
    check_object_key,
)
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.release_signing import check_signature
from supabase_bridge.signing import Seal
from supabase_bridge.trust import TrustPolicy, accept

CHANNEL_MARK = "@"
"""Between a model and a channel, as in MLflow's `models:/name@alias`; no model key has one in it."""


@dataclass(frozen=True, kw_only=True)
class ReleaseFiles:
    """One release: its keys, and the record of every file by its name, model_meta.json among them."""

    keys: ReleaseKeys
    files: Mapping[str, FileRecord]


@dataclass(frozen=True, kw_only=True)
class ReleasePath:
    """A path that leads into a release: what names the release, and the path of a file in it ('' for all of them)."""

    release: ReleaseKeys | ChannelKeys
    inside: str


def parse_path(path: str) -> ReleasePath | None:
    """Read `<model>@<channel>/...` or `<model>/<run_id>/...`; None for any other path in a bucket of releases.

    Raises:
        InvalidModelKeyError, InvalidChannelError: the path has the '@' of the first form, but not what belongs there.
    """
    first, _, rest = path.partition("/")
    if CHANNEL_MARK in first:
        model_key, _, channel = first.partition(CHANNEL_MARK)
        keys = ChannelKeys(model_key=check_model_key(model_key), channel=check_channel(channel))
        return ReleasePath(release=keys, inside=rest)
    second, _, inside = rest.partition("/")
    try:
        run_id = RunId.parse(second)
    except InvalidRunIdError:
        return None
    return ReleasePath(release=ReleaseKeys(model_key=first, run_id=run_id), inside=inside)


def files_of(
    store: ObjectStore, release: ReleaseKeys | ChannelKeys, *, policy: TrustPolicy, now: datetime
) -> ReleaseFiles:
    """The files of a release, or of the one that is current in a channel, as its document records them now.

    A channel's manifest says everything itself; of a release only its model_meta.json is read, and its model signature
    where the policy requires one.

    Raises:
        ChannelNotFoundError: nothing was ever promoted to the channel.
        ReleaseNotFoundError: there is no such release, or it is incomplete.
        InvalidDocumentError: the document is damaged, or another model's, channel's or release's.
        ManifestRefusedError, ReleaseSignatureError, SigningExtraMissingError: see `accept` and `check_signature`.
    """
    if isinstance(release, ReleaseKeys):
        return _recorded(store, release, policy)
    try:
        data = store.read(release.manifest, limit_bytes=LIMIT_BYTES)
    except ObjectNotFoundError:
        raise ChannelNotFoundError(release.model_key, release.channel) from None
    if policy.keys or policy.signature_required or policy.max_age is not None:
        manifest = accept(data, policy=policy, channel=release, seen=None, now=now)
    else:
        manifest = Manifest.parse(data)
    if (manifest.model_name, manifest.channel) != (release.model_key, release.channel):
        raise InvalidDocumentError(release.manifest, "it names another model or channel than its key")
    keys = ReleaseKeys(model_key=release.model_key, run_id=RunId.parse(manifest.current.run_id))
    if META_NAME not in manifest.current.files:
        # Written by hand from the specification, which records no files here.
        return _recorded(store, keys, policy)
    return _checked(keys, manifest.current.files, release.manifest)


def _recorded(store: ObjectStore, keys: ReleaseKeys, policy: TrustPolicy) -> ReleaseFiles:
    """What a release's own model_meta.json records; without it the release is incomplete."""
    try:
        raw = store.read(keys.meta, limit_bytes=LIMIT_BYTES)
    except ObjectNotFoundError:
        raise ReleaseNotFoundError(keys.model_key, str(keys.run_id)) from None
    meta = ModelMeta.parse(raw)
    if (meta.model_name, meta.run_id) != (keys.model_key, str(keys.run_id)):
        raise InvalidDocumentError(keys.meta, "it names another model or run_id than its key")
    own = FileRecord.of(raw)
    files = {**meta.files, META_NAME: own}
    if policy.signature_required:
        files[SIGNATURE_NAME] = check_signature(store, keys, files, Seal(keys=policy.keys))
    return _checked(keys, files, keys.meta)


def _checked(keys: ReleaseKeys, files: Mapping[str, FileRecord], document: str) -> ReleaseFiles:
    """Refuse names that lead out of the release's directory."""
    for name in files:
        try:
            check_object_key(keys.file(name))
        except InvalidObjectKeyError as error:
            raise InvalidDocumentError(document, f"files: {error}"[:300]) from error
    return ReleaseFiles(keys=keys, files=files)
