"""The processes of the checks run only while they are needed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from supabase_bridge.mirror.checks import server
from supabase_bridge.mirror.checks.sandbox import Checks
from tests.support.scene import tiny_onnx
from tests.support.served import until

CHECKS = Checks(timeout=timedelta(seconds=60), memory_bytes=2 * 1024**3)


def children() -> set[str]:
    return {child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()}


@pytest.mark.exhaustive
def test_the_server_of_the_checks_and_its_tracker_end_after_a_rest_and_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server._end()  # Another test of this process may have started it.
    before = children()
    monkeypatch.setattr(server, "SERVER", server.CheckServer())
    monkeypatch.setattr("supabase_bridge.mirror.checks.sandbox.SERVER", server.SERVER)
    monkeypatch.setattr(server, "REST_SECONDS", 0.2)
    (tmp_path / "model.onnx").write_bytes(tiny_onnx())
    assert CHECKS.structure(tmp_path / "model.onnx").inputs
    assert children() > before
    until(lambda: children() <= before, "the processes to end", limit_seconds=30)
    assert CHECKS.structure(tmp_path / "model.onnx").inputs
