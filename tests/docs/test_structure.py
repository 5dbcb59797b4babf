"""The structure that docs/architecture.md describes: layers of the tests, sizes, names and language."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
BRIDGE = ROOT / "bridge" / "supabase_bridge"
MODULES = sorted([*BRIDGE.rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])
LONGEST = 420

ARCHAIC = re.compile(
    r"\b(whoever|whomever|whatever|nobody|somebody|believed?|believes|is told|are told|in hand|says|had best|"
    r"taken up|take up|comes? to pass|let go of|made good|patience|chores?|crews?|bells?|shelf|shelves)\b",
    re.IGNORECASE,
)
"""Words of an older manner of writing; docs/architecture.md names the technical ones."""
OLD_NAMES = {
    "core": "Arrival arrivals winning_arrival arrives leaves ReleaseKeys ChannelKeys storable shown literal listed",
    "trust": "Seal UNSEALED writer_seal accept believed",
    "storage": "Sealer Line Lines lend watched Patience Deadline Trouble Answer Request diagnose UploadName "
    "RememberedUploads await_arrival supabase_arrival Meter RangedFile BorrowedFile",
    "outbox": "Bell arm ring hears Crew Chore doing_chores limit_pauses moment DatabaseTime",
    "registry": "Unrecorded hindrance record_again holders ownership models_claiming let_through",
    "releases": "look in_step heal confirm point_to Switch",
    "mirror": "place_file Leftovers draft_release Shelf TrainingFacts examine BorrowedFile",
    "client": "Seen Memory Remembered MemoryDamagedError Looking Shelf holds deliver look",
    "worker": "Crew Chore Handled Finished Waiting",
    "reconcile": "ClaimedRelease side_by_side Depth hindrance",
    "follower": "Unrecorded record_again",
    "app": "work_off take_up_failed",
    "cli": "say_store say_database",
}
"""Names of the glossary that have a standard term now, by the package where each stood."""


OLD_MODULES = {
    "arrival_gate",
    "bells",
    "borrowed_file",
    "by_hand",
    "capture_scope",
    "chores",
    "completion",
    "crew",
    "draft",
    "duties",
    "gates",
    "heal",
    "holders",
    "identity",
    "line",
    "looking",
    "opening",
    "ownership",
    "patience",
    "pauses",
    "placing",
    "shelf",
    "storable",
    "sweep",
    "switching",
    "watched",
}


def layers() -> dict[str, int]:
    """The layer of each package, the lowest 0, as the import contract has them."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["importlinter:contract:layers"]["layers"].split("\n")
    found = [re.split(r"\s*[:|]\s*", line.strip()) for line in lines if line.strip()]
    return {name: number for number, names in enumerate(reversed(found)) for name in names}


LAYERS = layers()
SIDE_BY_SIDE = [{"cli", "demo"}]
"""Packages of one layer that may import each other."""
FURTHER = {
    "core": {"settings"},
    "trust": {"settings"},
    "storage": {"client"},
    "releases": {"mirror"},
    "mirror": {"demo"},
    "training": {"app"},
    "worker": {"app"},
    "reconcile": {"app", "worker"},
    "retention": {"app", "reconcile", "embeddings"},
    "follower": {"app", "reconcile"},
}
"""Packages above a package that its tests use: settings as they are loaded, objects as the application wires them."""


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def may_import(package: str, other: str) -> bool:
    together = any({package, other} <= names for names in SIDE_BY_SIDE)
    return package == other or together or LAYERS[other] < LAYERS[package] or other in FURTHER.get(package, ())


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_the_tests_of_a_package_import_it_and_what_is_below_it(package: str) -> None:
    above = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "tests" / package).rglob("*.py")
        for name in imported(path)
        if (name.startswith("supabase_bridge.") and not may_import(package, name.split(".")[1]))
        or (name.startswith("tests.") and name.split(".")[1] not in {package, "support", *FURTHER.get(package, ())})
    }
    assert above == set()


def test_every_package_stands_in_the_contract() -> None:
    assert {path.name for path in BRIDGE.iterdir() if (path / "__init__.py").exists()} == LAYERS.keys()


def test_no_modules_import_each_other() -> None:
    graph = grimp.build_graph("supabase_bridge", "mlflow_supabase", exclude_type_checking_imports=False)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    tuple(TopologicalSorter(imports).static_order())  # raises CycleError, which names the modules


def test_no_module_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


def test_nothing_lies_flat_beside_the_packages() -> None:
    assert [path.name for path in BRIDGE.glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("package", sorted(OLD_NAMES))
def test_a_package_has_no_name_that_the_glossary_replaces(package: str) -> None:
    old = set(OLD_NAMES[package].split())
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in (BRIDGE / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in old
    }
    assert found == set()


def test_no_module_has_a_name_that_the_glossary_replaces() -> None:
    assert [str(path.relative_to(ROOT)) for path in MODULES if path.stem in OLD_MODULES] == []


def test_first_docstring_lines_are_plain_english() -> None:
    archaic = {
        f"{path.relative_to(ROOT)}: {line}" for path in MODULES for line in first_lines(path) if ARCHAIC.search(line)
    }
    assert archaic == set()


def first_lines(path: Path) -> Iterator[str]:
    """The first line of each docstring of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield (ast.get_docstring(node) or "").partition("\n")[0]
