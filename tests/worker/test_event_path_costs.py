"""How many calls one event costs: reads of MLflow's registry, writes of tags, calls of the object store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import pytest

from supabase_bridge.registry.client import RegisteredVersion, Registry
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.worker.context import Services
from supabase_bridge.worker.processor import Processor
from supabase_bridge.worker.worker import Worker
from tests.support.scene import MODEL, MakeScene, Scene

READS_LIMIT = 4
STORE_CALLS_LIMIT = 12


class Recorded:
    """An object that keeps the name and the first argument of each call of its methods, and carries it out."""

    def __init__(self, target: object) -> None:
        self._target = target
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            self.calls.append((name, arguments[0] if arguments else None))
            return found(*arguments, **more)

        return call


class RecordedRegistry(Registry):
    """A registry that counts how often each version's tags are written."""

    def __init__(self, target: Registry) -> None:
        self.client = self.recorded = cast("Any", Recorded(target.client))
        self.tagged: Counter[int] = Counter()

    def set_tags(self, version: RegisteredVersion, tags: Mapping[str, str | None]) -> None:
        self.tagged[version.version] += 1
        super().set_tags(version, tags)

    def reads(self) -> list[str]:
        return [name for name, _ in self.recorded.calls if name.startswith(("get_", "search_"))]


class Costs:
    """A worker of a scene, and the calls it makes."""

    def __init__(self, scene: Scene) -> None:
        self.registry = RecordedRegistry(scene.runtime.registry)
        self.store = Recorded(scene.store)
        settings, outbox, store = scene.settings, scene.runtime.outbox, cast("ObjectStore", self.store)
        services = Services(settings=settings, registry=self.registry, outbox=outbox, open_store=lambda _: store)
        self._worker = Worker(name="w", settings=settings, outbox=outbox, processor=Processor(services))

    def drain(self) -> None:
        """Process what is due, counting from zero."""
        self.registry.recorded.calls.clear()
        self.registry.tagged.clear()
        self.store.calls.clear()
        self._worker.drain()


@pytest.fixture
def costs(directory_scene: Scene) -> Costs:
    return Costs(directory_scene)


def test_a_promotion_of_a_mirrored_version_reads_the_registry_four_times_and_tags_each_version_once(
    directory_scene: Scene, costs: Costs
) -> None:
    first, second = directory_scene.train(metrics={"auc": 0.9}), directory_scene.train(metrics={"auc": 0.9})
    directory_scene.promote(first)
    costs.drain()
    directory_scene.promote(second)
    costs.drain()
    assert directory_scene.current() == second
    assert len(costs.registry.reads()) <= READS_LIMIT, costs.registry.reads()
    assert costs.registry.tagged == {first: 1, second: 1}


@pytest.mark.parametrize("archive", [True, False])
def test_a_promotion_of_a_mirrored_version_of_a_renamed_model_reads_the_registry_four_times(
    directory_scene: Scene, costs: Costs, archive: bool
) -> None:
    first, second = directory_scene.train(metrics={"auc": 0.9}), directory_scene.train(metrics={"auc": 0.9})
    directory_scene.promote(first)
    costs.drain()
    directory_scene.client.rename_registered_model(MODEL, "retrieval")
    directory_scene.promote(second, model="retrieval", archive=archive)
    costs.drain()
    assert directory_scene.current(key=MODEL) == second
    assert len(costs.registry.reads()) <= READS_LIMIT, costs.registry.reads()
    assert directory_scene.tags(first, "retrieval")["status"] == "superseded"


def test_a_promotion_by_alias_of_a_renamed_model_reads_the_registry_four_times(
    make_scene: MakeScene, directory_settings: Settings
) -> None:
    scene = make_scene(directory_settings, aliases={"champion": "latest"})
    costs = Costs(scene)
    first, second = scene.train(metrics={"auc": 0.9}), scene.train(metrics={"auc": 0.9})
    scene.client.set_registered_model_alias(MODEL, "champion", str(first))
    costs.drain()
    scene.client.rename_registered_model(MODEL, "retrieval")
    scene.client.set_registered_model_alias("retrieval", "champion", str(second))
    costs.drain()
    assert scene.current(key=MODEL) == second
    assert len(costs.registry.reads()) <= READS_LIMIT, costs.registry.reads()


def test_a_promotion_of_a_mirrored_version_calls_the_embedded_store_twelve_times(
    directory_scene: Scene, costs: Costs
) -> None:
    first, second = directory_scene.train(metrics={"auc": 0.9}), directory_scene.train(metrics={"auc": 0.9})
    directory_scene.promote(first)
    costs.drain()
    directory_scene.promote(second)
    costs.drain()
    assert directory_scene.current() == second
    assert len(costs.store.calls) <= STORE_CALLS_LIMIT, costs.store.calls


def test_mirroring_a_version_reads_its_registered_model_once(directory_scene: Scene, costs: Costs) -> None:
    directory_scene.train(metrics={"auc": 0.9})
    costs.drain()
    directory_scene.train(metrics={"auc": 0.9})
    costs.drain()
    assert directory_scene.tags(2)["status"] == "mirrored"
    assert Counter(costs.registry.reads())["get_registered_model"] == 1, costs.registry.reads()
    assert [name for name, model in costs.registry.recorded.calls if name == "get_registered_model" and model == MODEL]
