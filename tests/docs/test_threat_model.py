"""The threat model names every attack that is tested, and no test that is not there."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests/attacks").glob("test_*.py"))
ELSEWHERE = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if path not in FILES)
"""Where a refusal may be shown as well, next to other tests of what refuses."""
NAMED = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/threat-model.md").read_text()))


def attacks_in(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def test_every_test_that_the_threat_model_names_exists() -> None:
    attacks = {name for path in FILES for name in attacks_in(path)}
    elsewhere = Counter(name for path in ELSEWHERE for name in attacks_in(path))
    assert {name: elsewhere[name] for name in NAMED - attacks if elsewhere[name] != 1} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_attack_that_is_tested_has_its_place_in_the_threat_model(path: Path) -> None:
    assert set(attacks_in(path)) - NAMED == set()


def test_no_two_attacks_have_one_name_and_there_are_enough() -> None:
    counts = Counter(name for path in FILES for name in attacks_in(path))
    assert max(counts.values()) == 1
    assert len(counts) >= 40
