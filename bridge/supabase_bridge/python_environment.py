"""The Python environment that MLflow recreates to serve a release: what may be kept of the training's own. Pure.

Whoever serves a release installs what these files name, and installing runs code: so nothing in them is the trainer's
choice but the versions of the packages that an ONNX model is run with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from supabase_bridge.layout import ENVIRONMENT_NAMES

_, PYTHON_ENV, REQUIREMENTS = ENVIRONMENT_NAMES
_RUNTIMES = frozenset({"onnxruntime", "onnxruntime-gpu"})
_KNOWN = _RUNTIMES | {
    *("mlflow", "mlflow-skinny", "onnx"),
    *("cloudpickle", "ml-dtypes", "numpy", "packaging", "pandas", "protobuf", "pyyaml", "scipy"),
}
"""What MLflow itself writes down for an ONNX model, with its dependencies; its ONNX loader imports nothing else."""
_SPECIFIER = r"(?:==|~=|!=|<=|>=|<|>) *[0-9][0-9A-Za-z.*!]*"
_REQUIREMENT = re.compile(rf"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*) *(?:{_SPECIFIER}(?: *, *{_SPECIFIER})*)?")
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}(?:\.[0-9]{1,3})?")
_PYTHON_LINE = re.compile(r"""python: (?P<quote>['"]?)(?P<version>[0-9.]+)(?P=quote)""")


def requirements(own: bytes | None, default: Sequence[str]) -> list[str]:
    """The lines of requirements.txt: the training's own versions of known packages, and `default` for the rest.

    A line is kept where it is a known package's name with version specifiers (PEP 508) and nothing else: no URL, path,
    option, extra, marker or other package.

    Args:
        default: What runs ONNX here; all of it where the training's own lines name no ONNX runtime.
    """
    lines = [line.strip() for line in (own or b"").decode(errors="replace").splitlines()]
    kept = [line for line in lines if (found := _REQUIREMENT.fullmatch(line)) and _name(found["name"]) in _KNOWN]
    named = {_name_of(line) for line in kept}
    return kept if named & _RUNTIMES else [*kept, *(line for line in default if _name_of(line) not in named)]


def python_version(environment: Mapping[str, bytes], flavor: Mapping[str, Any], default: str) -> str:
    """The training's Python version: by python_env.yaml, else by MLmodel's `python_function` flavor."""
    lines = environment.get(PYTHON_ENV, b"").decode(errors="replace").splitlines()
    found = next((match["version"] for line in lines if (match := _PYTHON_LINE.fullmatch(line))), None)
    wanted = found or flavor.get("python_version")
    return wanted if isinstance(wanted, str) and _VERSION.fullmatch(wanted) else default


def conda_env(lines: Sequence[str], python: str) -> dict[str, Any]:
    """conda.yaml for these requirements."""
    dependencies = [f"python={python}", "pip", {"pip": list(lines)}]
    return {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": dependencies}


def python_env(python: str) -> dict[str, Any]:
    """python_env.yaml, which refers to requirements.txt."""
    build = ["pip", "setuptools", "wheel"]
    return {"python": python, "build_dependencies": build, "dependencies": [f"-r {REQUIREMENTS}"]}


def _name_of(line: str) -> str:
    found = _REQUIREMENT.fullmatch(line)
    return _name(found["name"]) if found else ""


def _name(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
