"""A release's `model.sig` in the store: held against the record of the files, or put there.

Source: docs/adr/0008.
"""

from __future__ import annotations

from collections.abc import Mapping

from supabase_bridge.documents import LIMIT_BYTES, FileRecord
from supabase_bridge.errors import ObjectNotFoundError, ObjectTooLargeError, ReleaseSignatureError
from supabase_bridge.layout import ReleaseKeys
from supabase_bridge.object_store import JSON_TYPE, ObjectStore, PutOptions
from supabase_bridge.signing import Seal


def check_signature(store: ObjectStore, keys: ReleaseKeys, files: Mapping[str, FileRecord], seal: Seal) -> FileRecord:
    """The record of a release's `model.sig`, which a trusted key made of exactly these files.

    Args:
        files: The record of every other file, model_meta.json among them.

    Raises:
        ReleaseSignatureError: it is missing, another key's, or of other files.
    """
    try:
        found = store.read(keys.signature, limit_bytes=LIMIT_BYTES)
    except ObjectNotFoundError:
        problem = "the release has no model signature; it may be from before signing was switched on"
        raise ReleaseSignatureError(keys.signature, problem, keys.model_key, str(keys.run_id)) from None
    except ObjectTooLargeError:
        problem = "it is too large to be a model signature"
        raise ReleaseSignatureError(keys.signature, problem, keys.model_key, str(keys.run_id)) from None
    seal.check_release(found, files, keys)
    return FileRecord.of(found)


def place_signature(store: ObjectStore, keys: ReleaseKeys, files: Mapping[str, FileRecord], seal: Seal) -> None:
    """Put a signature of these files into a release, unless one that a trusted key made of them is there already.

    Another one is replaced: an unfinished attempt, or a key that is trusted no longer, made it. Where signing is off
    nothing is done.

    Raises:
        SigningExtraMissingError: the library that makes it is not installed.
    """
    made = seal.release_signature(files, keys)
    if made is None:
        return
    try:
        check_signature(store, keys, files, seal)
    except ReleaseSignatureError:
        options = PutOptions(content_type=JSON_TYPE, sha256=FileRecord.of(made).sha256)
        store.overwrite(keys.signature, made, options)
