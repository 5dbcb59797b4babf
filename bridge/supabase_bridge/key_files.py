"""Keys on disk: who signs and who is believed, as the settings say, and new ones."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supabase_bridge.config import Settings
from supabase_bridge.errors import LocalFileError, SettingsError
from supabase_bridge.signing import Seal, Signer
from supabase_bridge.signing_keys import PrivateKey, PublicKey, TrustedKeys
from supabase_bridge.trust import TrustPolicy

_LIMIT_BYTES = 10_000
"""No PEM of a P-256 key is larger."""


def trust_policy(settings: Settings) -> TrustPolicy:
    """What a reader asks of manifests; no signing key is needed for it.

    Raises:
        SettingsError: a trusted key cannot be read, or is none.
    """
    keys = _trusted(settings) if settings.trusted_keys else _own(signer(settings))
    return TrustPolicy(keys=keys, require_signature=settings.require_signature, max_age=settings.max_age)


def writer_seal(settings: Settings) -> Seal:
    """What a writer signs with and whose entries it builds upon; without keys in the settings it does neither.

    Raises:
        SettingsError: a key cannot be read, is none, or the signing key is not among the trusted ones.
        SigningExtraMissingError: there are keys, and the library for model signatures is not installed.
    """
    own = signer(settings)
    keys = _trusted(settings) if settings.trusted_keys else _own(own)
    if own is not None and own.public.key_id not in keys.by_id:
        raise SettingsError(
            "trusted_keys",
            f"the signing key {own.public.key_id} is not among them, so nobody would believe what it signs; add its "
            "public key there and with every consumer first",
        )
    if keys:
        from supabase_bridge.model_signature import check_extra

        check_extra()
    return Seal(signer=own, keys=keys)


def signer(settings: Settings) -> Signer | None:
    """The signing key of the settings; None where they have none.

    Raises:
        SettingsError: it cannot be read, is no private key on P-256, or everybody on this machine may read its file.
    """
    if settings.signing_key is not None:
        return Signer.from_pem(settings.signing_key.reveal().encode(), setting="SUPABASE_BRIDGE_SIGNING_KEY")
    path = settings.signing_key_file
    if path is None:
        return None
    setting = f"signing_key_file {path}"
    pem = _read(path, setting)
    # Group access is how Kubernetes hands a secret to a process that is not root.
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXO:
        raise SettingsError(setting, f"everybody on this machine may use this key; chmod 600 {path}")
    return Signer.from_pem(pem, setting=setting)


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """Where a new key's two halves are."""

    key_id: str
    private: Path
    public: Path


def write_new_key(directory: Path, private_name: str) -> NewKey:
    """Make a key and write its halves, the private one readable by its user alone.

    Each file appears whole or not at all, and never in place of another.

    Raises:
        SettingsError: there is a file of this name already.
        LocalFileError: the directory cannot be written to.
    """
    directory = directory.expanduser().absolute()
    key = PrivateKey.generate()
    private, public = directory / private_name, directory / f"{key.public.key_id[:12]}.pem"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write_new(private, key.pem, mode=0o600)
        _write_new(public, key.public.pem, mode=0o644)
    except FileExistsError:
        raise SettingsError("--out", f"{private} exists already; a key in use must not be written over") from None
    except OSError as error:
        raise LocalFileError(directory, error.strerror or str(error)) from error
    return NewKey(key_id=key.public.key_id, private=private, public=public)


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file that must not exist; `os.link` fails where it does, which `os.replace` would not."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".key-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        Path(path).hardlink_to(temporary)
    finally:
        Path(temporary).unlink()


def _own(signer: Signer | None) -> TrustedKeys:
    return TrustedKeys() if signer is None else TrustedKeys.of([signer.public])


def _trusted(settings: Settings) -> TrustedKeys:
    return TrustedKeys.of(
        PublicKey.parse(_read(path, setting), setting=setting)
        for given in settings.trusted_keys
        for path, setting in _files(given)
    )


def _files(given: Path) -> Iterator[tuple[Path, str]]:
    """The file, or the key files of the directory, and what an error calls each."""
    if not given.is_dir():
        yield given, f"trusted_keys {given}"
        return
    found = sorted(given.glob("*.pem"))
    if not found:
        raise SettingsError(f"trusted_keys {given}", "the directory has no file *.pem")
    yield from ((path, f"trusted_keys {path}") for path in found)


def _read(path: Path, setting: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT_BYTES)
    except OSError as error:
        raise SettingsError(setting, f"cannot be read: {error.strerror or error}") from None
