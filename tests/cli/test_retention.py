"""`retention plan`, `run` and `restore`: nothing is removed without --yes."""

from __future__ import annotations

import json

import pytest

from supabase_bridge.storage.base import PutOptions
from tests.support.commands import Said, invoke
from tests.support.retained import ARCHIVE, DELETE, MakeRetained, is_complete, paths_of
from tests.support.scene import MODEL, Scene


def run(scene: Scene, *arguments: object) -> Said:
    return invoke("retention", *arguments, "--home", scene.settings.home)


@pytest.mark.parametrize("table", [ARCHIVE, DELETE], ids=["archive", "delete"])
def test_a_run_removes_what_the_plan_shows_only_with_yes_and_a_restore_brings_it_back(
    table: dict[str, object], make_retained: MakeRetained
) -> None:
    scene = make_retained(table)
    first, second = paths_of(scene, 1), paths_of(scene, 2)
    before = scene.objects()
    commands: list[tuple[str, ...]] = [("plan",), ("plan", MODEL), ("run",), ("run", MODEL)]
    for arguments in commands:
        said = run(scene, *arguments)
        assert said.code == 0, said.err
        lines = said.out.splitlines()
        assert lines[0].startswith(f"{MODEL}/{first.run_id} (version 1): {table['then']}, ")
        assert lines[-1].endswith("(version 5): stays: the manifest of latest (current) names it")
        assert "2 releases would go, " in said.err
        assert ("--yes carries it out" in said.err) == (arguments[0] == "run")
    assert scene.objects() == before
    said = run(scene, "run", "--yes")
    assert (said.code, said.out.splitlines()[0]) == (0, f"{MODEL}/{first.run_id} (version 1): removed")
    assert [is_complete(scene, version) for version in range(1, 6)] == [False, False, True, True, True]
    assert "archived" in invoke("status", "--home", scene.settings.home).out
    assert f"{MODEL}/{second.run_id} (version 2): is removed" in run(scene, "plan").out
    assert json.loads(run(scene, "run", "--yes", "--json").out) == {"results": []}
    for paths in (first, second):
        said = run(scene, "restore", MODEL, paths.run_id)
        assert (said.code, said.out) == (0, f"{MODEL} {paths.run_id} is complete again\n"), said.err
    assert scene.objects() == before


def test_a_rollback_to_a_removed_release_restores_it(make_retained: MakeRetained) -> None:
    scene = make_retained(ARCHIVE)
    run(scene, "run", "--yes")
    said = invoke("rollback", MODEL, "--to", paths_of(scene, 1).run_id, "--home", scene.settings.home)
    assert said.code == 0, said.err
    assert scene.current() == 1
    assert is_complete(scene, 1)


def test_a_run_ends_with_1_if_a_release_that_should_go_stays(make_retained: MakeRetained) -> None:
    scene = make_retained(DELETE)
    scene.store.delete([paths_of(scene, 1).meta])
    scene.store.overwrite(paths_of(scene, 1).meta, b"{}", PutOptions())
    said = run(scene, "run", "--yes")
    assert said.code == 1
    assert "stays: release file" in said.out
    assert (is_complete(scene, 1), is_complete(scene, 2)) == (True, False)


def test_the_plan_as_json_has_every_release_with_its_reason(make_retained: MakeRetained) -> None:
    found = json.loads(run(make_retained(DELETE), "plan", "--json").out)
    assert [(item["version"], item["goes"]) for item in found["releases"]] == [
        *((version, True) for version in (1, 2)),
        *((version, False) for version in (3, 4, 5)),
    ]
    assert all(item["reason"] for item in found["releases"][2:])
    assert found["foreign_folders"] == []


def test_a_model_that_does_not_exist_is_an_error(make_retained: MakeRetained) -> None:
    said = run(make_retained(DELETE), "plan", "nothing")
    assert said.code == 1
    assert "nothing" in said.error
