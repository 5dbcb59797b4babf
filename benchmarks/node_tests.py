"""Count how many of ONNX's own node tests the checks of a model accept.

    python -m benchmarks.node_tests [--list]

The `onnx` package generates the tests. Each model is run on made input, as the mirror does, and its expected outputs
are not compared. Many inputs are sizes, axes or indices, so the checks refuse some models; an error of the checks
themselves is a fault.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from onnx.backend.test.case.node import collect_testcases

from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.mirror.checks.onnx import check_model
from supabase_bridge.mirror.errors import ModelRejectedError
from supabase_bridge.mirror.onnx_file import NO_GIVEN_INPUT


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.node_tests", description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print each refused model and the reason")
    options = parser.parse_args()
    meta = ModelMeta(model_name="m", run_id="r")
    reasons: Counter[str] = Counter()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as directory:
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            path = Path(directory, "m.onnx")
            path.write_bytes(case.model.SerializeToString())  # type: ignore[union-attr]  # a node test has a model
            try:
                check_model(path, meta, NO_GIVEN_INPUT)
                reasons["accepted"] += 1
            except ModelRejectedError as error:
                kind = "not opened" if "cannot open" in error.problem else "refused"
                reasons[kind] += 1
                if options.list:
                    print(f"{kind}: {case.name}: {error.problem}")
            except Exception as error:  # noqa: BLE001 - errors are counted
                reasons["error of the checks"] += 1
                print(f"error: {case.name}: {type(error).__name__}: {error}")
    print(", ".join(f"{number} {kind}" for kind, number in sorted(reasons.items())))


if __name__ == "__main__":
    main()
