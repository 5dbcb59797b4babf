"""Make and verify OpenSSF model signatures from recorded digests, without reading the files again.

Source: https://github.com/sigstore/model-transparency; docs/adr/0008. That project's own command
`model_signing verify key` accepts these signatures.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import parse_object
from supabase_bridge.core.layout import SIGNATURE_NAME
from supabase_bridge.trust.errors import SigningError
from supabase_bridge.trust.keys import PrivateKey, TrustedKeys

if TYPE_CHECKING:
    from model_signing.hashing import Config as HashingConfig

_EXTRA_MISSING = (
    "keys are configured, and model signatures need the library model-signing: "
    "pip install 'mlflow-supabase-bridge[signing]'"
)


def check_extra() -> None:
    """Check that the library for model signatures is installed.

    Raises:
        SigningError: it is not installed.
    """
    try:
        import model_signing.signing  # noqa: F401 - half a second, and an extra
    except ImportError as error:
        raise SigningError(_EXTRA_MISSING) from error


def sign(files: Mapping[str, FileRecord], *, name: str, key: PrivateKey) -> bytes:
    """Sign these files; return the content of the file SIGNATURE_NAME.

    Args:
        name: The model's name in the signature. No check compares it.

    Raises:
        SigningError: the library is not installed.
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
    """Return why this is not the signature of exactly these files by a trusted key; None if it is.

    Raises:
        SigningError: the library is not installed.
    """
    check_extra()
    from cryptography.exceptions import InvalidSignature
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
            # The library raises these for a signature that lacks a part.
            return "it is no model signature made with a key"
    return None


def _recorded(files: Mapping[str, FileRecord]) -> HashingConfig:
    """Return a hashing configuration of the library that uses the recorded digests instead of reading a directory."""
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
    """Return the key's id in a model signature: the SHA-256 of the public key's PEM text."""
    return hashlib.sha256(pem).hexdigest()


def _through_pipe(data: bytes) -> int:
    """Return a descriptor from which `data` can be read once.

    The library needs a path, and a private key must not be written to the disk.
    """
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(data)
    return reading
