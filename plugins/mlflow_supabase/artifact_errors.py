"""The bridge's errors as MLflow's callers see them: its exception, with the code that fits the cause."""

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

from supabase_bridge import errors

_CODES: dict[type[errors.BridgeError], int] = {
    errors.SettingsError: INVALID_STATE,
    errors.InvalidObjectKeyError: INVALID_PARAMETER_VALUE,
    errors.InvalidModelKeyError: INVALID_PARAMETER_VALUE,
    errors.InvalidChannelError: INVALID_PARAMETER_VALUE,
    errors.ObjectNotFoundError: RESOURCE_DOES_NOT_EXIST,
    errors.BucketNotFoundError: RESOURCE_DOES_NOT_EXIST,
    errors.ChannelNotFoundError: RESOURCE_DOES_NOT_EXIST,
    errors.ReleaseNotFoundError: RESOURCE_DOES_NOT_EXIST,
    errors.ObjectTooLargeError: INVALID_PARAMETER_VALUE,
    errors.AccessDeniedError: PERMISSION_DENIED,
    errors.StoreUnavailableError: TEMPORARILY_UNAVAILABLE,
    errors.CorruptObjectError: DATA_LOSS,
    errors.InvalidDocumentError: DATA_LOSS,
    errors.InvalidRunIdError: DATA_LOSS,
}
"""What MLflow says, and which HTTP status its server answers, for each cause; INTERNAL_ERROR for the others."""


@contextmanager
def as_mlflow_exceptions() -> Iterator[None]:
    """Raise MlflowException for every error of the bridge in the block."""
    try:
        yield
    except errors.BridgeError as error:
        raise MlflowException(str(error), error_code=_CODES.get(type(error), INTERNAL_ERROR)) from error


def invalid(message: str) -> MlflowException:
    """What somebody asked for makes no sense."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def denied(message: str) -> MlflowException:
    """The settings do not allow it."""
    return MlflowException(message, error_code=PERMISSION_DENIED)
