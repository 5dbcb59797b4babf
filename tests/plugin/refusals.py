"""Refusals of the plugins, as MLflow reports them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from mlflow.exceptions import MlflowException


@contextmanager
def refused(code: str) -> Iterator[pytest.ExceptionInfo[MlflowException]]:
    """Expect an MlflowException with this code."""
    with pytest.raises(MlflowException) as caught:
        yield caught
    assert caught.value.error_code == code
