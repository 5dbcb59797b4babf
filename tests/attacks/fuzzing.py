"""Inputs and time limits of the fuzzed parsers.

A run tries a handful of each; `--hypothesis-profile=exhaustive` tries a few dozen, `--hypothesis-profile=long` tries
20,000 new ones at every run.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_FEW, _LONG = 10, 10_000


def fuzzed(examples: int = 50, *, deadline: timedelta = timedelta(seconds=2)) -> settings:
    """Settings of a fuzzing test: the same examples at every run, or new ones in a long run.

    Args:
        examples: The number of examples of an exhaustive run.
    """
    wanted = settings.default.max_examples if settings.default is not None else _FEW
    return settings(
        max_examples=wanted if wanted >= _LONG else min(wanted, examples),
        derandomize=wanted < _LONG,
        database=None,
        deadline=deadline,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


text = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "",
            ".",
            "..",
            "../x",
            "%2e%2e",
            "/etc/passwd",
            "a\0b",
            "\x1b[2J",
            "\u202e",
            "\ud800",
            "20251031T093831Z",
            "x" * 5_000,
        ]
    ),
)
json_value: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | st.floats() | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
JUNK = (b"[" * 20_000, b'{"a":' * 5_000, b"9" * 20_000, b"\xff\xfe", b"<html>", b"null", b"{}", b"[]")
junk = st.one_of(st.binary(max_size=200), st.sampled_from(JUNK))


def mixed(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with these fields, each right, wrong or missing, and others beside them."""
    fields = {name: st.one_of(values, json_value) for name, values in known.items()}
    return st.builds(
        lambda right, other: {**other, **right},
        st.fixed_dictionaries({}, optional=fields),
        st.dictionaries(text, json_value, max_size=2),
    )
