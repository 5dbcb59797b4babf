"""Errors of signatures: a refused manifest with its reason, a process that cannot sign, an untrusted release."""

from __future__ import annotations

from enum import Enum

from supabase_bridge.core.errors import BridgeError


class Refusal(Enum):
    """Why a manifest was refused."""

    UNSIGNED = "unsigned"
    MALFORMED_SIGNATURE = "malformed signature"
    ALGORITHM = "algorithm"
    UNKNOWN_KEY = "unknown key"
    WRONG_SIGNATURE = "wrong signature"
    WRONG_MANIFEST = "wrong manifest"
    ROLLBACK = "rollback"
    FORK = "fork"
    EXPIRED = "expired"
    FROM_FUTURE = "from the future"
    PATH = "path"
    UNRECORDED_FILE = "unrecorded file"


class ManifestRefusedError(BridgeError):
    """A manifest failed verification; `path` is its place in the bucket, `detail` the reason as a sentence."""

    template = "{path} is refused: {detail}"
    path: str
    reason: Refusal
    detail: str


class SigningError(BridgeError):
    """This process cannot make or verify a signature: it has no signing key, or the library is not installed."""


class ReleaseSignatureError(BridgeError):
    """A release has no model signature of a trusted key that fits its files; `path` is the signature's place."""

    template = (
        "{path}: {problem}. No pointer was moved. Where the release is what it should be, sign it: "
        "supabase-bridge keys sign-release {model_key} {run_id}"
    )
    path: str
    problem: str
    model_key: str
    run_id: str
