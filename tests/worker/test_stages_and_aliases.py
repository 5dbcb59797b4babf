"""Stages and aliases move channels alike, without any setting: the last assignment that still holds counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from supabase_bridge.core.events import EventState
from supabase_bridge.settings.model import Settings
from tests.support.commands import invoke
from tests.support.scene import MODEL, MakeScene, Scene

Step: TypeAlias = tuple[str, int]
"""A stage, or an alias that is set (`@champion`) or deleted (`-champion`), and the version that it is about."""

STORY: list[tuple[str, Step, int]] = [
    ("the alias alone moves the channel", ("@champion", 1), 1),
    ("the alias moves on", ("@champion", 2), 2),
    ("the stage is later than the alias", ("Production", 1), 1),
    ("the alias is set again, which is later", ("@champion", 2), 2),
    ("the alias of the current version is deleted: the stage still holds", ("-champion", 2), 1),
    ("the alias on the version in the stage", ("@champion", 1), 1),
    ("of both, one is lost", ("Archived", 1), 1),
    ("the other version comes to the stage", ("Production", 2), 2),
    ("the alias of a version that is not current is deleted", ("-champion", 1), 2),
    ("nothing holds any more: the channel stays", ("Archived", 2), 2),
    ("a new alias moves it again", ("@champion", 1), 1),
    ("the stage of the other version", ("Production", 2), 2),
    ("the current version leaves its stage: the alias still holds", ("None", 2), 1),
    ("the alias on the version that goes", ("@champion", 3), 3),
    ("the stage before it", ("Production", 1), 1),
    ("the alias after it", ("@champion", 3), 3),
    ("the version is deleted with its alias", ("deleted", 3), 1),
]


def carry_out(scene: Scene, step: Step) -> None:
    what, version = step
    if what == "deleted":
        scene.client.delete_model_version(MODEL, str(version))
    elif what.startswith("@"):
        scene.client.set_registered_model_alias(MODEL, what[1:], str(version))
    elif what.startswith("-"):
        scene.client.delete_registered_model_alias(MODEL, what[1:])
    else:
        scene.promote(version, what)


def test_the_last_assignment_that_still_holds_is_current_whichever_kind(directory_scene: Scene) -> None:
    for _ in range(3):
        directory_scene.train()
    found = []
    for name, step, _ in STORY:
        carry_out(directory_scene, step)
        directory_scene.work()
        found.append((name, step, directory_scene.current()))
    assert found == STORY


def test_the_alias_challenger_moves_staging_as_the_stage_does(directory_scene: Scene) -> None:
    first, second = directory_scene.train(), directory_scene.train()
    directory_scene.promote(first, "Staging")
    directory_scene.client.set_registered_model_alias(MODEL, "challenger", str(second))
    directory_scene.work()
    assert (directory_scene.current("staging"), directory_scene.current("latest")) == (second, None)


UNMAPPED: dict[str, tuple[Callable[[Scene, int], None], Callable[[Scene, int], None], str]] = {
    "an alias": (
        lambda scene, version: carry_out(scene, ("@prod", version)),
        lambda scene, version: carry_out(scene, ("-prod", version)),
        "alias `prod` moves no channel; see docs/settings.md, Stages and aliases",
    ),
    "a stage": (
        lambda scene, version: scene.promote(version, "Staging"),
        lambda scene, version: scene.promote(version, "Archived"),
        "stage Staging moves no channel; see docs/settings.md, Stages and aliases",
    ),
}


@pytest.mark.parametrize("kind", UNMAPPED)
def test_a_version_says_so_while_its_alias_or_stage_moves_no_channel(
    make_scene: MakeScene, directory_settings: Settings, kind: str
) -> None:
    assign, take_away, note = UNMAPPED[kind]
    scene = make_scene(directory_settings, stages={"Production": "latest"})
    version = scene.train()
    scene.work()
    assign(scene, version)
    (handled,) = scene.work()
    # Only what a worker has carried out excuses a version from its gate later.
    assert handled.state is EventState.SUPERSEDED
    assert scene.tags(version)["note.unmapped"] == note
    assert scene.current() is None
    take_away(scene, version)
    scene.work()
    assert "note.unmapped" not in scene.tags(version)


@pytest.mark.parametrize("worker_sees_each", [True, False])
def test_the_note_goes_with_the_alias_to_another_version(directory_scene: Scene, worker_sees_each: bool) -> None:
    first, second = directory_scene.train(), directory_scene.train()
    for version in (first, second):
        carry_out(directory_scene, ("@prod", version))
        if worker_sees_each:
            directory_scene.work()
    directory_scene.work()
    assert "note.unmapped" not in directory_scene.tags(first)
    assert "alias `prod`" in directory_scene.tags(second)["note.unmapped"]


def test_an_archived_version_gets_no_note(directory_scene: Scene) -> None:
    version = directory_scene.train()
    directory_scene.promote(version, "Archived")
    directory_scene.work()
    assert "note.unmapped" not in directory_scene.tags(version)


@pytest.mark.parametrize(("first_step", "second_step"), [("@champion", "@champion"), ("@champion", "Production")])
def test_rollback_moves_what_moved_the_channel_last(directory_scene: Scene, first_step: str, second_step: str) -> None:
    for version, step in ((directory_scene.train(), first_step), (directory_scene.train(), second_step)):
        carry_out(directory_scene, (step, version))
        directory_scene.work()
    assert directory_scene.current() == 2
    assert invoke("rollback", MODEL, "--home", directory_scene.settings.home).code == 0
    assert directory_scene.current() == 1
    champion = int(directory_scene.client.get_model_version_by_alias(MODEL, "champion").version)
    stages = [directory_scene.client.get_model_version(MODEL, str(number)).current_stage for number in (1, 2)]
    expected = ["None", "None"] if second_step == "@champion" else ["Production", "Archived"]
    assert (champion, stages) == (1, expected)
