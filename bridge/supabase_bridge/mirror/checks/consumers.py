"""Hold an ONNX file against the declared consumers of its model. Only the sandbox process calls this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from supabase_bridge.core.consumers import ANY_CONSUMER, ONNX_DOMAIN, Consumers, OnnxFacts
from supabase_bridge.mirror.errors import Fault, ModelRejectedError

_OPENED_TOWER = "user"
"""The tower that a consumer opens alone, because it computes the embedding of a request."""


def check_consumers(path: Path, consumers: Consumers, towers: Mapping[str, Path]) -> list[str]:
    """Check that a model's declared consumers can load it, and return a note where that is only a warning.

    Args:
        towers: The parts that were cut from the graph, by the tower.

    Raises:
        ModelRejectedError: they cannot; the message names the option of the export that helps.
    """
    if consumers == ANY_CONSUMER:
        return []
    problem = consumers.problem(read_facts(path, opened=towers.get(_OPENED_TOWER, path)))
    if problem is None:
        return []
    if not consumers.warns:
        raise ModelRejectedError(path.name, Fault.UNLOADABLE, problem)
    return [f"its declared consumers cannot load it: {problem}"]


def read_facts(path: Path, *, opened: Path) -> OnnxFacts:
    """Read what decides whether a consumer can load the ONNX file at `path`.

    Args:
        opened: The file that a consumer opens.

    Raises:
        ModelRejectedError: it is no ONNX model.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ModelRejectedError(path.name, Fault.INVALID, str(error)[:300]) from error
    defined = {(_domain(function.domain), function.name) for function in model.functions}
    used = {operator for nodes in (model.graph.node, *(f.node for f in model.functions)) for operator in _of(nodes)}
    return OnnxFacts(
        ir=model.ir_version,
        opsets={_domain(item.domain): item.version for item in model.opset_import},
        operators=used - defined,
        size_bytes=opened.stat().st_size,
    )


def _domain(name: str) -> str:
    return name or ONNX_DOMAIN


def _of(nodes: object) -> Iterator[tuple[str, str]]:
    """Yield the operators of nodes, and of the graphs in them; protobuf limits how deep they are nested."""
    for node in nodes:  # type: ignore[attr-defined]  # protobuf's containers have no type of their own
        yield _domain(node.domain), node.op_type
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _of(graph.node)
