"""Load keys from the places that the settings name, and create a new key pair."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from supabase_bridge.core.errors import SettingsError, os_errors
from supabase_bridge.trust.keys import PrivateKey, PublicKey, TrustedKeys
from supabase_bridge.trust.signer import Signer, SigningPolicy
from supabase_bridge.trust.verify import TrustPolicy

_LIMIT_BYTES = 10_000
"""No PEM file of a P-256 key is larger."""


class KeySettings(Protocol):
    """The settings about keys and trust; `Settings` has them."""

    @property
    def signing_key(self) -> SecretStr | None:
        """The private key itself, in PEM."""

    @property
    def signing_key_file(self) -> Path | None:
        """The file of the private key."""

    @property
    def trusted_keys(self) -> tuple[Path, ...]:
        """Files of public keys, and directories of such files."""

    @property
    def require_signature(self) -> bool | None:
        """Whether unsigned manifests are refused; None: they are refused if there are keys."""

    @property
    def max_age(self) -> timedelta | None:
        """The largest age of a manifest."""


def trust_policy(settings: KeySettings) -> TrustPolicy:
    """Load the rules by which a reader accepts manifests; a reader needs no signing key.

    Raises:
        SettingsError: a file of a trusted key cannot be read or holds no key.
    """
    keys = _trusted(settings) if settings.trusted_keys else _own(signer(settings))
    return TrustPolicy(keys=keys, require_signature=settings.require_signature, max_age=settings.max_age)


def load_signing_policy(settings: KeySettings) -> SigningPolicy:
    """Load the key that a writer signs with, and the keys whose entries it trusts; both are empty without keys.

    Raises:
        SettingsError: a key cannot be read or is no key, or the signing key is not among the trusted ones.
        SigningError: there are keys, and the library for model signatures is not installed.
    """
    own = signer(settings)
    keys = _trusted(settings) if settings.trusted_keys else _own(own)
    if own is not None and own.public.key_id not in keys.by_id:
        raise SettingsError(
            "trusted_keys",
            f"the signing key {own.public.key_id} is not among them, so no reader would trust its signatures; first "
            "add its public key here and at every consumer",
        )
    if keys:
        from supabase_bridge.trust.model_signature import check_extra

        check_extra()
    return SigningPolicy(signer=own, keys=keys)


def signer(settings: KeySettings) -> Signer | None:
    """Load the signing key; None if the settings name none.

    Raises:
        SettingsError: it cannot be read, is no private key on P-256, or every user of this machine may read its file.
    """
    if settings.signing_key is not None:
        return Signer.from_pem(settings.signing_key.get_secret_value().encode(), setting="SUPABASE_BRIDGE_SIGNING_KEY")
    path = settings.signing_key_file
    if path is None:
        return None
    setting = f"signing_key_file {path}"
    pem = _read(path, setting)
    # Kubernetes gives a secret to a process that is not root through the file's group.
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXO:
        raise SettingsError(setting, f"every user of this machine may use this key; chmod 600 {path}")
    return Signer.from_pem(pem, setting=setting)


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """The files of a new key pair."""

    key_id: str
    private: Path
    public: Path


def write_new_key(directory: Path, private_name: str) -> NewKey:
    """Create a key pair; only the current user can read the file of the private key.

    Each file is written completely or not at all. No existing file is replaced.

    Raises:
        SettingsError: a file of this name exists.
        LocalFileError: the directory cannot be written to.
    """
    directory = directory.expanduser().absolute()
    key = PrivateKey.generate()
    private, public = directory / private_name, directory / f"{key.public.key_id[:12]}.pem"
    with os_errors(directory):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _write_new(private, key.pem, mode=0o600)
            _write_new(public, key.public.pem, mode=0o644)
        except FileExistsError:
            raise SettingsError("--out", f"{private} exists already; a key in use must not be overwritten") from None
    return NewKey(key_id=key.public.key_id, private=private, public=public)


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file that must not exist: `os.link` fails if it does, unlike `os.replace`."""
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


def _trusted(settings: KeySettings) -> TrustedKeys:
    return TrustedKeys.of(
        PublicKey.parse(_read(path, setting), setting=setting)
        for given in settings.trusted_keys
        for path, setting in _files(given)
    )


def _files(given: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file, or each key file of the directory, with its name for error messages."""
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
