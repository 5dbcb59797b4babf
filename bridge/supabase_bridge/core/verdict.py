"""The verdict of a gate: the result of each of its criteria."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one criterion; `text` is the whole result: `recall@20 0.610 < 0.65`."""

    criterion: str
    value: float | None
    passed: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The results of all criteria of a gate."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Return whether every criterion is met."""
        return all(finding.passed for finding in self.findings)

    @property
    def reason(self) -> str:
        """Return the failed results; empty if there are none."""
        return "; ".join(finding.text for finding in self.findings if not finding.passed)

    def __str__(self) -> str:
        if not self.passed:
            return f"failed: {self.reason}"
        return f"passed: {'; '.join(finding.text for finding in self.findings)}"
