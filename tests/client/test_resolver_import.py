"""What importing the consumer loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

import supabase_bridge
from tests.support.simulators.storage import StorageSimulator

HEAVY = ("mlflow", "sqlalchemy", "onnx", "onnxruntime", "numpy", "pandas", "supabase", "storage3", "model_signing")


def test_the_consumer_loads_neither_mlflow_nor_sqlalchemy_nor_onnx() -> None:
    heavy = (*HEAVY, "httpx")
    code = f"import sys; from supabase_bridge import Resolver; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_itself_loads_nothing() -> None:
    code = (
        "import sys, supabase_bridge; print(sorted(name for name in sys.modules if name.startswith('supabase_bridge')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "['supabase_bridge']"


def test_every_name_of_the_public_api_can_be_imported_from_the_package() -> None:
    for name in supabase_bridge.__all__:
        assert getattr(supabase_bridge, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = supabase_bridge.Nothing


def test_reading_a_release_of_a_project_loads_no_storage_client(simulator: StorageSimulator) -> None:
    """The refusal of a wrong key is translated without storage3, too."""
    code = """
import sys
from supabase_bridge import AccessDeniedError, ChannelNotFoundError, Resolver
try:
    Resolver(url=sys.argv[1], key="wrong").resolve("two_tower")
except (AccessDeniedError, ChannelNotFoundError):
    print([name for name in sys.argv[2:] if name in sys.modules])
"""
    command = [sys.executable, "-c", code, simulator.url, *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
