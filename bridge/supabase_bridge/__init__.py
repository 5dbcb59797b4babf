"""Model releases in Supabase Storage, kept in step with an MLflow registry.

Public API: `Resolver` reads releases; the other names are its arguments, its results and its errors. Each is imported
on first use, so that importing the package is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supabase_bridge.client.errors import ReleaseUnsignedError, StateCorruptedError
    from supabase_bridge.client.release import PulledRelease, Release
    from supabase_bridge.client.resolver import Resolver
    from supabase_bridge.core.errors import (
        BridgeError,
        InvalidDocumentError,
        InvalidNameError,
        LocalFileError,
        SettingsError,
    )
    from supabase_bridge.releases.errors import ChannelNotFoundError, ReleaseNotFoundError
    from supabase_bridge.storage.errors import (
        AccessDeniedError,
        CorruptObjectError,
        DeadlineExceededError,
        ObjectTooLargeError,
        StoreUnavailableError,
        UnexpectedResponseError,
    )
    from supabase_bridge.trust.errors import ManifestRefusedError
    from supabase_bridge.trust.keys import TrustedKeys
    from supabase_bridge.trust.verify import TrustPolicy

__all__ = [
    "AccessDeniedError",
    "BridgeError",
    "ChannelNotFoundError",
    "CorruptObjectError",
    "DeadlineExceededError",
    "InvalidDocumentError",
    "InvalidNameError",
    "LocalFileError",
    "ManifestRefusedError",
    "ObjectTooLargeError",
    "PulledRelease",
    "Release",
    "ReleaseNotFoundError",
    "ReleaseUnsignedError",
    "Resolver",
    "SettingsError",
    "StateCorruptedError",
    "StoreUnavailableError",
    "TrustPolicy",
    "TrustedKeys",
    "UnexpectedResponseError",
]

_MODULES = {
    "client.errors": "ReleaseUnsignedError StateCorruptedError",
    "client.release": "PulledRelease Release",
    "client.resolver": "Resolver",
    "core.errors": "BridgeError InvalidDocumentError InvalidNameError LocalFileError SettingsError",
    "releases.errors": "ChannelNotFoundError ReleaseNotFoundError",
    "storage.errors": "AccessDeniedError CorruptObjectError DeadlineExceededError ObjectTooLargeError "
    "StoreUnavailableError UnexpectedResponseError",
    "trust.errors": "ManifestRefusedError",
    "trust.keys": "TrustedKeys",
    "trust.verify": "TrustPolicy",
}


def __getattr__(name: str) -> object:
    """Import a name of the public API when it is used."""
    for module, names in _MODULES.items():
        if name in names.split():
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
