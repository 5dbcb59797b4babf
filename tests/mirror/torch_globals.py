"""Generate the list of imports that a state_dict may have, from what the installed PyTorch accepts.

    python -m tests.mirror.torch_globals [--check]

It writes the list that the product ships, and a file of each kind as torch.save writes it, which the tests check. With
`--check` it compares the list with the installed PyTorch and exits with 1 where PyTorch accepts more. The tests need no
PyTorch: run this command for each new release of PyTorch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from supabase_bridge.mirror.checks.pickle import GLOBALS_FILE

FILES = Path(__file__).with_name("torch_files")


def of_torch() -> dict[str, list[str]]:
    """Return what `torch.load(weights_only=True)` of the installed PyTorch accepts, as names by module."""
    found: dict[str, list[str]] = {}
    for path in sorted(import_module("torch._weights_only_unpickler")._get_allowed_globals()):
        module, _, name = path.rpartition(".")
        found.setdefault(module, []).append(name)
    return found


def missing(listed: dict[str, list[str]], accepted: dict[str, list[str]]) -> list[str]:
    """Return what is accepted and not listed."""
    return [
        f"{module}.{name}" for module, names in accepted.items() for name in names if name not in listed.get(module, [])
    ]


def state_dicts(torch: Any) -> dict[str, Any]:
    """State_dicts of the kinds that models have, by file name."""
    ones = torch.ones(2, 3)
    layer = torch.nn.Linear(3, 2)
    return {
        "linear": layer.state_dict(),
        "parameter": {"weight": layer.weight, "buffer": torch.arange(4, dtype=torch.int64)},
        "per_tensor_affine": {"weight": torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)},
        "per_channel_affine": {
            "weight": torch.quantize_per_channel(ones, torch.ones(2), torch.zeros(2), 0, torch.qint8),
            "scheme": torch.per_channel_symmetric,
            "dtype": torch.qint8,
        },
        "float8": {"weight": ones.to(torch.float8_e4m3fn), "scale": ones.to(torch.float8_e5m2)},
        "bfloat16": {"weight": ones.to(torch.bfloat16), "half": ones.half(), "complex": ones.to(torch.complex64)},
        "meta": {"weight": torch.empty(2, 3, device="meta")},
        "sparse": {"weight": ones.to_sparse()},
        "subclass": {"buffer": torch.nn.Buffer(ones), "tensor": ones.as_subclass(torch.nn.Parameter)},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mirror.torch_globals", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="compare only; exit with 1 where PyTorch accepts more")
    options = parser.parse_args(arguments)
    if options.check:
        found = missing(json.loads(GLOBALS_FILE.read_text())["globals"], of_torch())
        sys.stdout.write("".join(f"{name}\n" for name in found) or "the list has all that PyTorch accepts\n")
        return int(bool(found))
    torch = import_module("torch")
    GLOBALS_FILE.write_text(json.dumps({"torch": torch.__version__, "globals": of_torch()}, indent=1) + "\n")
    FILES.mkdir(exist_ok=True)
    for name, value in state_dicts(torch).items():
        torch.save(value, FILES / f"{name}.pt")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
