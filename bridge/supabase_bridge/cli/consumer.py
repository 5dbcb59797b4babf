"""What the consumer's commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supabase_bridge.cli.terminal import shown
from supabase_bridge.config import Settings

if TYPE_CHECKING:
    from supabase_bridge.consumer.release import Release
    from supabase_bridge.consumer.resolver import Resolver


@contextmanager
def opened(home: Path | None) -> Iterator[Resolver]:
    """A resolver with the settings; says on stderr where it reads from."""
    # pydantic, httpx and cryptography take their time to import.
    from supabase_bridge.consumer.resolver import Resolver

    with Resolver.from_settings(Settings.load(home=home, reading=True)) as resolver:
        click.echo(shown(f"store:    {resolver.name}"), err=True)
        yield resolver


def facts(release: Release) -> dict[str, Any]:
    """A release as JSON has it."""
    from supabase_bridge.documents import format_time

    published = release.published_at
    return {
        "model": release.model,
        "channel": release.channel,
        "run_id": release.run_id,
        "sequence": release.sequence,
        "published_at": None if published is None else format_time(published),
        "model_version": release.model_version,
        "signed": release.signed,
        "onnx_path": release.onnx_path,
        "files": {name: {"size_bytes": one.size_bytes, "sha256": one.sha256} for name, one in release.files.items()},
    }


def line(release: Release) -> str:
    """A release for people."""
    channel = "" if release.channel is None else f"@{release.channel}"
    signed = "signed" if release.signed else "not signed"
    return shown(
        f"{release.model}{channel} {release.run_id} ({len(release.files)} files, {release.size_bytes} bytes, {signed})"
    )
