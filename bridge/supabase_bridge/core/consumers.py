"""The declared consumers of a model, and what an ONNX file may have so that they can load it; pure.

Source: the table of https://onnxruntime.ai/docs/reference/compatibility.html up to ONNX Runtime 1.20. The page ends
there, so the later versions, and the ML opset of 1.19 and 1.20, were measured: each was given models of every version.
A newer ONNX Runtime loads what an older one loads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum

ONNX_DOMAIN = "ai.onnx"
ML_DOMAIN = "ai.onnx.ml"

_MEMORY_PER_BYTE = 3
"""Bytes of memory that a session takes for each byte of its file: measured with ONNX Runtime 1.20 (3.0 to 3.3)."""

_OWN_DOMAINS = frozenset({ONNX_DOMAIN, ML_DOMAIN, "com.microsoft", "com.ms.internal.nhwc"})
"""The operators that every build of ONNX Runtime for CPUs has; an extension has to be installed for any other."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The newest versions that a release of ONNX Runtime loads."""

    ir: int
    opset: int
    ml_opset: int


_RUNTIMES = {
    (1, 16): Limits(ir=9, opset=19, ml_opset=3),
    (1, 17): Limits(ir=9, opset=20, ml_opset=4),
    (1, 18): Limits(ir=10, opset=21, ml_opset=4),
    (1, 19): Limits(ir=10, opset=21, ml_opset=5),
    (1, 20): Limits(ir=10, opset=21, ml_opset=5),
    (1, 21): Limits(ir=10, opset=22, ml_opset=5),
    (1, 22): Limits(ir=10, opset=22, ml_opset=5),
    (1, 23): Limits(ir=11, opset=23, ml_opset=5),
    (1, 24): Limits(ir=13, opset=25, ml_opset=5),
    (1, 25): Limits(ir=13, opset=26, ml_opset=5),
    (1, 32): Limits(ir=14, opset=28, ml_opset=5),
}
"""The limits by the first release that has them."""


class Consumer(Enum):
    """A kind of consumer whose limits are known."""

    EDGE = "edge"
    """A Supabase Edge Function: ONNX Runtime 1.20, and 256 MB of memory."""


_EDGE_RUNTIME = (1, 20)
_EDGE_MEMORY_BYTES = 256_000_000


@dataclass(frozen=True, kw_only=True)
class OnnxFacts:
    """What decides whether a consumer can load an ONNX file.

    Attributes:
        ir: The version of its format.
        opsets: The version of each domain that it imports.
        operators: The operators that its graphs use, as (domain, name), without those that it defines itself.
        size_bytes: Of the file that a consumer opens: the user tower where the release has it alone, else the model.
    """

    ir: int
    opsets: Mapping[str, int]
    operators: Collection[tuple[str, str]] = ()
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Consumers:
    """The consumers that a model declares.

    Attributes:
        kinds: Consumers with known limits.
        runtime: The oldest ONNX Runtime that loads the model, as numbers of its version.
        memory_bytes: The memory that a consumer has for the model.
        warns: What they cannot load is noted on the release, not refused.
    """

    kinds: frozenset[Consumer] = field(default_factory=frozenset)
    runtime: tuple[int, int] | None = None
    memory_bytes: int | None = None
    warns: bool = False

    @property
    def oldest_runtime(self) -> tuple[int, int] | None:
        """The oldest ONNX Runtime of all consumers; None where none is declared."""
        found = [self.runtime, _EDGE_RUNTIME if Consumer.EDGE in self.kinds else None]
        return min((version for version in found if version is not None), default=None)

    @property
    def least_memory_bytes(self) -> int | None:
        """The memory of the consumer that has the least; None where none is known."""
        found = [self.memory_bytes, _EDGE_MEMORY_BYTES if Consumer.EDGE in self.kinds else None]
        return min((size for size in found if size is not None), default=None)

    def problem(self, facts: OnnxFacts) -> str | None:
        """Return why these consumers cannot load a file, and the option of the export that helps; None if they can."""
        problems = []
        if (runtime := self.oldest_runtime) is not None:
            problems += _of_runtime(runtime, facts)
        memory, needed = self.least_memory_bytes, _MEMORY_PER_BYTE * facts.size_bytes
        if memory is not None and needed > memory:
            problems.append(
                f"opening its {facts.size_bytes} bytes takes about {needed} bytes of memory, and a consumer has "
                f"{memory}. Export it in half precision or quantised, or let the consumer load the user tower alone: "
                "set the run's tag supabase.towers to user"
            )
        return "; ".join(problems) or None


ANY_CONSUMER = Consumers()
"""No consumer is declared, so every file is accepted."""


def parse_consumers(table: Mapping[str, object]) -> Consumers:
    """Parse a model's table of the settings.

    Raises:
        ValueError: the table is malformed.
    """
    names = ("consumers", "onnxruntime", "memory_bytes", "unloadable")
    if unknown := sorted(table.keys() - set(names)):
        raise ValueError(f"{unknown[0]}: no such setting of a model; there are {', '.join(names)}")
    kinds, memory = table.get("consumers", []), table.get("memory_bytes")
    known = {kind.value: kind for kind in Consumer}
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in known for kind in kinds):
        raise ValueError(f"consumers: expected a list of {', '.join(map(repr, known))}")
    if memory is not None and (not isinstance(memory, int) or isinstance(memory, bool) or memory <= 0):
        raise ValueError("memory_bytes: expected a whole number of bytes, 1 at least")
    if (unloadable := table.get("unloadable", "refuse")) not in {"refuse", "warn"}:
        raise ValueError("unloadable: expected 'refuse' or 'warn'")
    return Consumers(
        kinds=frozenset(known[kind] for kind in kinds),
        runtime=None if "onnxruntime" not in table else _runtime(table["onnxruntime"]),
        memory_bytes=memory,
        warns=unloadable == "warn",
    )


def _runtime(value: object) -> tuple[int, int]:
    oldest = min(_RUNTIMES)
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) in {2, 3} and all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        version = (int(parts[0]), int(parts[1]))
        if version >= oldest:
            return version
    raise ValueError(f"onnxruntime: expected a version such as '1.20', {_shown(oldest)} at least")


def _shown(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _of_runtime(runtime: tuple[int, int], facts: OnnxFacts) -> list[str]:
    limits = _RUNTIMES[max(version for version in _RUNTIMES if version <= runtime)]
    reads = f"ONNX Runtime {_shown(runtime)} reads"
    problems = []
    if facts.ir > limits.ir:
        problems.append(
            f"it has IR version {facts.ir}, and {reads} {limits.ir} at most. Set model.ir_version = {limits.ir} before "
            "onnx.save, or export with an older onnx"
        )
    opset, ml_opset = facts.opsets.get(ONNX_DOMAIN, 0), facts.opsets.get(ML_DOMAIN, 0)
    if opset > limits.opset or ml_opset > limits.ml_opset:
        found = " and ".join(
            f"{domain} {version}" for domain, version in ((ONNX_DOMAIN, opset), (ML_DOMAIN, ml_opset)) if version
        )
        target = f"{{'': {limits.opset}, '{ML_DOMAIN}': {limits.ml_opset}}}"
        problems.append(
            f"it has the opset {found}, and {reads} {limits.opset} and {ML_DOMAIN} {limits.ml_opset} at most. Export "
            f"with opset_version={limits.opset} (torch.onnx.export) or target_opset={target} (skl2onnx, onnxmltools), "
            f"or convert it with onnx.version_converter.convert_version(model, {limits.opset})"
        )
    foreign = sorted(f"{domain}::{name}" for domain, name in facts.operators if domain not in _OWN_DOMAINS)
    if foreign:
        problems.append(
            f"it uses operators that only an extension has: {', '.join(foreign[:5])}. Export it without them, for "
            "example with the preprocessing outside the model"
        )
    return problems
