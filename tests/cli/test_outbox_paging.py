"""`supabase-bridge outbox list`, page by page, and a worker that does several changes at once."""

from __future__ import annotations

import json

from tests.support.commands import invoke
from tests.support.scene import Scene


def test_events_are_listed_page_by_page_from_either_end(directory_scene: Scene) -> None:
    for _ in range(5):
        directory_scene.train()
    home = directory_scene.settings.home

    def page(*options: object) -> list[int]:
        said = invoke("outbox", "list", "--all", "--json", "--home", home, *options)
        return [json.loads(line)["id"] for line in said.out.splitlines()]

    assert page("--limit", 2) == [1, 2]
    assert page("--limit", 2, "--after", 2) == [3, 4]
    assert page("--after", 4) == [5]
    assert page("--newest", "--limit", 2) == [5, 4]
    assert page("--newest", "--limit", 2, "--after", 4) == [3, 2]
    assert page("--after", 5) == []


def test_a_worker_told_to_do_several_changes_at_once_does_them_all(directory_scene: Scene) -> None:
    for model in ("a", "b", "c"):
        directory_scene.train(model=model)
    said = invoke("worker", "--once", "--concurrency", "3", "--home", directory_scene.settings.home)
    assert (said.code, said.out.count(": done: mirrored as")) == (0, 3)
