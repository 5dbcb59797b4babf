"""What importing the consumer loads."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("mlflow", "sqlalchemy", "onnx", "onnxruntime", "numpy", "pandas", "supabase", "storage3", "model_signing")


def test_the_consumer_loads_neither_mlflow_nor_sqlalchemy_nor_onnx() -> None:
    code = f"import sys; from supabase_bridge import Resolver; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_itself_loads_nothing() -> None:
    code = (
        "import sys, supabase_bridge; print(sorted(name for name in sys.modules if name.startswith('supabase_bridge')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "['supabase_bridge']"
