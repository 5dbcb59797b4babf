"""The result of one check of an installation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """`failed` means that something will not work, `warning` that an operator should look at it."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one check found.

    Attributes:
        name: The part of the installation, in a word or two.
        detail: What was found, in one line, without secrets.
        remedy: What the operator can do about it; empty if there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def ok(name: str, detail: str) -> Check:
    """Nothing to do."""
    return Check(name=name, status=Status.OK, detail=detail)


def warning(name: str, detail: str, remedy: str) -> Check:
    """It works, but the operator should know."""
    return Check(name=name, status=Status.WARNING, detail=detail, remedy=remedy)


def failed(name: str, detail: str, remedy: str) -> Check:
    """It will not work."""
    return Check(name=name, status=Status.FAILED, detail=detail, remedy=remedy)


def skipped(name: str, detail: str) -> Check:
    """It does not apply, or an earlier problem prevents the check."""
    return Check(name=name, status=Status.SKIPPED, detail=detail)
