"""What attacks share: how a refused version looks, and how MLflow downloads."""

from __future__ import annotations

from pathlib import Path

from mlflow.store.artifact.artifact_repo import ArtifactRepository

from supabase_bridge.core.events import EventState
from tests.support.scene import MODEL, Scene


def refusal(scene: Scene, version: int, *, model: str = MODEL) -> str:
    """Let the worker try to mirror and release a version; it must give up at once and store nothing. Why, as tagged."""
    before = scene.objects()
    scene.promote(version, model=model)
    handled = [item for item in scene.work() if item.event.model == model]
    assert handled
    assert {item.state for item in handled} == {EventState.DEAD}
    assert scene.objects() == before
    tags = scene.tags(version, model)
    assert tags["status"] == "failed"
    return tags["error"]


def download(repository: ArtifactRepository, path: str, directory: str | Path) -> None:
    """Download as MLflow's clients do."""
    repository.download_artifacts(path, str(directory))
