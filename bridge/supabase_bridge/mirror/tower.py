"""Cut one tower of a two-tower model from its ONNX graph, by the names of inputs and outputs.

These functions parse a trainer's file: only the sandbox process (`checks.sandbox`) calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError

from supabase_bridge.mirror.errors import Fault, ModelRejectedError
from supabase_bridge.storage.local_files import discard, local_error


def of_tower(names: Iterable[str], tower: str) -> list[str]:
    """Return the inputs or outputs of one tower: their names begin with the tower's, as in `user_features`."""
    return [name for name in names if name.startswith(f"{tower}_")]


def cut_tower(path: Path, target: Path, tower: str) -> None:
    """Write the part of the model at `path` that computes one tower's outputs to `target`.

    Raises:
        ModelRejectedError: the graph has no output of the tower, or the tower needs an input of another one.
        LocalFileError: `target` cannot be written; no part of it is left.
    """
    try:
        model = onnx.load(path)
        _prune(model.graph, tower)
        data = model.SerializeToString(deterministic=True)
    except (DecodeError, EncodeError, ValueError) as error:
        raise ModelRejectedError(path.name, Fault.FAILED, f"its {tower} tower cannot be cut out: {error}") from error
    try:
        target.write_bytes(data)
    except OSError as error:
        discard(target)
        raise local_error(target, error) from error


def _prune(graph: onnx.GraphProto, tower: str) -> None:
    """Remove from a graph all that the tower's outputs do not need."""
    outputs = of_tower((value.name for value in graph.output), tower)
    if not outputs:
        raise ValueError(f"no output's name begins with {tower}_")
    needed = set(outputs)
    # The nodes are in topological order, so that one pass from the end finds all that are needed.
    for place in reversed(range(len(graph.node))):
        node = graph.node[place]
        if needed.isdisjoint(node.output):
            del graph.node[place]
        else:
            needed.update(_inputs(node))
    weights = {item.name for item in graph.initializer} | {item.values.name for item in graph.sparse_initializer}
    inputs = [value.name for value in graph.input if value.name in needed and value.name not in weights]
    if not inputs:
        raise ValueError("its outputs depend on no input")
    if foreign := sorted(set(inputs) - set(of_tower(inputs, tower))):
        raise ValueError(f"its outputs depend on input {foreign[0][:80]!r}")
    needed.update(name for node in graph.node for name in node.output)
    _keep(graph.output, lambda value: value.name in outputs)
    _keep(graph.input, lambda value: value.name in needed)
    _keep(graph.initializer, lambda item: item.name in needed)
    _keep(graph.sparse_initializer, lambda item: item.values.name in needed)
    _keep(graph.value_info, lambda value: value.name in needed)
    _keep(graph.quantization_annotation, lambda item: item.tensor_name in needed)


def _keep(field: Any, is_needed: Callable[[Any], bool]) -> None:
    """Remove the other items of a repeated field; the weights that stay are not copied."""
    for place in reversed(range(len(field))):
        if not is_needed(field[place]):
            del field[place]


def _inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those of the graphs in its attributes too."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _inputs(inner)
            yield from (value.name for value in graph.output)
