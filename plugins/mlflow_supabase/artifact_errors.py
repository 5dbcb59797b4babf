"""Translate the bridge's errors into MlflowException, with MLflow's code for the cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    DATA_LOSS,
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)

from supabase_bridge.core.errors import (
    BridgeError,
    InvalidDocumentError,
    InvalidNameError,
    InvalidObjectKeyError,
    NameKind,
    SettingsError,
)
from supabase_bridge.releases.errors import ChannelNotFoundError, ReleaseNotFoundError
from supabase_bridge.storage import errors as storage_errors
from supabase_bridge.trust.errors import ManifestRefusedError

_CODES: dict[type[BridgeError], int] = {
    SettingsError: INVALID_STATE,
    InvalidObjectKeyError: INVALID_PARAMETER_VALUE,
    InvalidNameError: INVALID_PARAMETER_VALUE,
    storage_errors.ObjectNotFoundError: RESOURCE_DOES_NOT_EXIST,
    storage_errors.BucketNotFoundError: RESOURCE_DOES_NOT_EXIST,
    ChannelNotFoundError: RESOURCE_DOES_NOT_EXIST,
    ReleaseNotFoundError: RESOURCE_DOES_NOT_EXIST,
    storage_errors.ObjectTooLargeError: INVALID_PARAMETER_VALUE,
    storage_errors.AccessDeniedError: PERMISSION_DENIED,
    storage_errors.StoreUnavailableError: TEMPORARILY_UNAVAILABLE,
    storage_errors.DeadlineExceededError: TEMPORARILY_UNAVAILABLE,
    storage_errors.CorruptObjectError: DATA_LOSS,
    ManifestRefusedError: DATA_LOSS,
    InvalidDocumentError: DATA_LOSS,
}
"""MLflow's error code for each cause, which decides the HTTP status; other errors get INTERNAL_ERROR."""


@contextmanager
def as_mlflow_exceptions() -> Iterator[None]:
    """Raise each error of the bridge in the block as MlflowException."""
    try:
        yield
    except BridgeError as error:
        code = next((code for cause, code in _CODES.items() if isinstance(error, cause)), INTERNAL_ERROR)
        if isinstance(error, InvalidNameError) and error.kind is NameKind.RUN_ID:
            code = DATA_LOSS  # A path without a valid run_id is a plain path, so a document has this one.
        raise MlflowException(str(error), error_code=code) from error


def invalid(message: str) -> MlflowException:
    """Return the exception for an invalid argument."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def denied(message: str) -> MlflowException:
    """Return the exception for an operation that the settings do not allow."""
    return MlflowException(message, error_code=PERMISSION_DENIED)
