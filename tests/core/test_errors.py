"""The base of the errors: fields, messages, redaction, and the operating system's errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from supabase_bridge.core.errors import BridgeError, LocalFileError, os_errors


class Refused(BridgeError):
    """An error with two fields, of which the second has a default."""

    template = "{name!r:.8} was refused by {place}"
    name: str
    store: str = "models"

    @property
    def place(self) -> str:
        return self.store.upper()


class RefusedForGood(Refused):
    """An error that inherits fields and message and changes the policy."""

    rejects = True


class NotPossible(BridgeError):
    """An error without fields."""


def test_an_error_without_fields_takes_its_message_and_redacts_it_too() -> None:
    assert str(NotPossible("no answer from https://user:hidden@host/")) == "no answer from https://***@host/"


def test_the_constructor_takes_the_fields_and_the_template_makes_the_message() -> None:
    error = Refused("a", store="other")
    assert (error.name, error.store) == ("a", "other")
    assert str(error) == "'a' was refused by OTHER"
    assert repr(error) == "Refused(\"'a' was refused by OTHER\")"


def test_a_subclass_inherits_fields_and_template_and_keeps_its_own_policy() -> None:
    error = RefusedForGood("a")
    assert str(error) == "'a' was refused by MODELS"
    assert error.rejects
    assert not Refused.rejects
    assert not error.retryable


def test_a_template_quotes_a_value_and_limits_its_length() -> None:
    assert str(Refused("x" * 100)) == "'xxxxxxx was refused by MODELS"


def test_braces_in_a_value_stay_as_they_are() -> None:
    assert str(Refused("{store}")) == "'{store} was refused by MODELS"


def test_a_missing_field_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="name"):
        Refused()  # type: ignore[call-arg]  # what the test is about


def test_two_errors_with_the_same_fields_are_not_equal() -> None:
    assert Refused("a") != Refused("a")


def test_a_message_does_not_repeat_the_password_of_a_url() -> None:
    error = LocalFileError(Path("mlflow.db"), "postgresql://user:hidden@host/db?password=hidden cannot be reached")
    assert "hidden" not in str(error) + repr(error)


def test_an_error_of_the_operating_system_becomes_a_local_file_error_about_the_path(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    with pytest.raises(LocalFileError) as caught, os_errors(path):
        path.read_bytes()
    assert caught.value.path == path
    assert str(caught.value) == f"{path}: no such file or directory"
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_another_error_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), os_errors(tmp_path):
        raise ValueError("mine")
