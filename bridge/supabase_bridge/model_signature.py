"""OpenSSF model signatures over files whose digests are known: made and judged without reading the files again.

Source: https://github.com/sigstore/model-transparency; docs/adr/0008. That project's own command verifies what is made
here: `model_signing verify key`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature

from supabase_bridge.documents import FileRecord, parse_object
from supabase_bridge.errors import InvalidDocumentError, SigningExtraMissingError
from supabase_bridge.layout import SIGNATURE_NAME
from supabase_bridge.signing_keys import PrivateKey, TrustedKeys

if TYPE_CHECKING:
    from model_signing.hashing import Config as HashingConfig


def check_extra() -> None:
    """See that the library is there, before anything is begun that needs it.

    Raises:
        SigningExtraMissingError: it is not.
    """
    try:
        import model_signing.signing  # noqa: F401 - half a second, and an extra
    except ImportError as error:
        raise SigningExtraMissingError from error


def sign(files: Mapping[str, FileRecord], *, name: str, key: PrivateKey) -> bytes:
    """A signature over these files, to be stored beside them as SIGNATURE_NAME.

    Args:
        name: What the signature calls the model; nothing compares it.

    Raises:
        SigningExtraMissingError: the library is not installed.
    """
    check_extra()
    from model_signing import signing

    with tempfile.TemporaryDirectory(prefix="supabase-bridge-") as directory:
        made = Path(directory) / SIGNATURE_NAME
        private = _through_pipe(key.pem)
        try:
            config = signing.Config().use_elliptic_key_signer(private_key=f"/dev/fd/{private}")
        finally:
            os.close(private)
        config.set_hashing_config(_recorded(files)).sign(Path(directory) / name, made)
        return made.read_bytes()


def problem(signature: bytes, files: Mapping[str, FileRecord], keys: TrustedKeys) -> str | None:
    """What speaks against a signature of exactly these files by a trusted key; None: nothing.

    Raises:
        SigningExtraMissingError: the library is not installed.
    """
    check_extra()
    from model_signing import verifying

    try:
        hint = parse_object(signature, SIGNATURE_NAME)["verificationMaterial"]["publicKey"]["hint"]
    except (InvalidDocumentError, KeyError, TypeError):
        return "it is no model signature made with a key"
    trusted = {_hint(key.pem): key for key in keys.by_id.values()}
    key = trusted.get(hint) if isinstance(hint, str) else None
    if key is None:
        return "it was made with a key that is not trusted"
    with tempfile.TemporaryDirectory(prefix="supabase-bridge-") as directory:
        (public := Path(directory) / "public.pem").write_bytes(key.pem)
        (found := Path(directory) / SIGNATURE_NAME).write_bytes(signature)
        config = verifying.Config().use_elliptic_key_verifier(public_key=public)
        try:
            config.set_hashing_config(_recorded(files)).verify(Path(directory), found)
        except InvalidSignature:
            return "it was changed after it was made"
        except ValueError:
            return "it is not of the files that the release records"
        except (KeyError, TypeError, IndexError, AttributeError):
            # What the library raises where a bundle lacks a part.
            return "it is no model signature made with a key"
    return None


def _recorded(files: Mapping[str, FileRecord]) -> HashingConfig:
    """What the library takes for the hashing of a directory; the digests are those recorded."""
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest

    kind = manifest.SerializationType.from_args(
        {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE_NAME]}
    )
    items = [
        manifest.FileManifestItem(path=PurePosixPath(name), digest=Digest("sha256", bytes.fromhex(record.sha256)))
        for name, record in files.items()
    ]

    class Recorded(hashing.Config):
        def hash(self, model_path: hashing.PathLike, *, files_to_hash: object = None) -> manifest.Manifest:  # noqa: ARG002
            return manifest.Manifest(Path(os.fsdecode(model_path)).name, items, kind)

    return Recorded()  # type: ignore[no-untyped-call] # model-signing leaves its constructors unannotated


def _hint(pem: bytes) -> str:
    """How a signature says which key made it: the SHA-256 of the public key's PEM text."""
    return hashlib.sha256(pem).hexdigest()


def _through_pipe(data: bytes) -> int:
    """A descriptor from which `data` can be read once: the library wants a path, and a key has no place on the disk."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(data)
    return reading
