"""Try an ONNX model on the version's own input example, or on made inputs, of which one finite result is enough.

Only the sandbox process calls this: a graph may use any amount of time and memory.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from supabase_bridge.mirror.errors import Fault, ModelRejectedError
from supabase_bridge.mirror.onnx_file import GivenInput, Structure, Tensor
from supabase_bridge.mirror.tower import of_tower

_INPUT_LIMIT_BYTES = 256_000_000
_TIME_LIMIT_SECONDS = 60
"""No attempt begins later than this after the first one; check_timeout limits an attempt that does not end."""
_SIZES = (2, 1, 32, 256)
"""The sizes for open dimensions, tried in this order until the graph runs."""
_TOWER_TOLERANCE = 1e-5
_STRINGS_LIMIT = 64
_MIXED_ATTEMPTS = 24
_ORT_ERRORS: tuple[type[Exception], ...] = (
    *(found for found in vars(ort).values() if isinstance(found, type) and issubclass(found, Exception)),
    *(RuntimeError, ValueError, TypeError),
)
_TOWER_ERRORS: tuple[type[Exception], ...] = (AssertionError, *_ORT_ERRORS)
_TENSOR_TYPE = re.compile(r"tensor\((\w+)\)")
_NUMPY_TYPES = frozenset({"float", "double", "float16", "bool", "string"}) | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
"""onnxruntime's names of the tensor types that it exchanges as numpy arrays."""

_Array: TypeAlias = np.ndarray[Any, Any]
_Integers: TypeAlias = Callable[[int], Any]
"""From a number of values to integers."""

_INTEGERS: Mapping[str, _Integers] = {
    "0": np.zeros,
    "1": np.ones,
    "0, 1, 2, ...": np.arange,
    "-1": lambda count: np.full(count, -1),
    "-1, 1, 1, ...": lambda count: np.concatenate([[-1], np.ones(max(count - 1, 0))])[:count],
    "2": lambda count: np.full(count, 2),
    "1, 2, 3, ...": lambda count: np.arange(1, count + 1),
}
"""Lengths, counts, masks and indices from 1 need 1 at least; sizes, axes and bounds need various values."""
_NUMBERS: Mapping[str, tuple[float, float]] = {"between 0 and 1": (0, 1), "1": (1, 1), "between -1 and 1": (-1, 1)}
_TRUTHS: Mapping[str, float] = {"mixed": 0.5, "true": 1.0, "false": 0.0}
"""The share of true values."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The results and input of the attempt that counts, the sizes of its open dimensions, and notes on both."""

    results: Sequence[Any]
    feeds: Mapping[str, _Array]
    sizes: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """One made input: a description for messages, and the values."""

    text: str
    feeds: Mapping[str, _Array]
    sizes: Mapping[str, int]
    size: int | None = None


def run_trial(path: Path, structure: Structure, given: GivenInput, known: Mapping[str, int | None]) -> Trial | None:
    """Run the graph; return None where numpy lacks a type of its inputs or outputs, so that it is only opened.

    Args:
        given: The version's own input example and signature.
        known: Sizes of the last dimension of inputs, by the inputs' names.

    Raises:
        ModelRejectedError: onnxruntime cannot open the graph, it runs on no input, or its output is finite on none.
    """
    try:
        session = _session(str(path))
        types = [item.type for item in (*session.get_inputs(), *session.get_outputs())]
    except _ORT_ERRORS as error:
        raise failed(path.name, f"onnxruntime cannot open it: {_words(error)}") from error
    if any(tensor.dtype is None for tensor in structure.inputs) or not _exchangeable(types):
        return None
    attempts = _attempts(path, structure.inputs, given, known)
    outputs = [tensor.name for tensor in structure.outputs]
    return _first_finite(path.name, outputs, attempts, lambda feeds: session.run(outputs, dict(feeds)))


def compare_tower(name: str, structure: Structure, trial: Trial | None, tower: str, file: Path) -> None:
    """Check that a tower alone gives the results that it has in the whole graph.

    Raises:
        ModelRejectedError: it does not, or there is nothing to compare with.
    """
    if trial is None:
        raise failed(name, f"its {tower} tower cannot be compared: the whole graph was not run")
    whole = {tensor.name: result for tensor, result in zip(structure.outputs, trial.results, strict=True)}
    outputs = of_tower(whole, tower)
    try:
        session = _session(str(file))
        inputs = [item.name for item in session.get_inputs()]
        results = session.run(outputs, {given: trial.feeds[given] for given in inputs})
        for output, alone in zip(outputs, results, strict=True):
            np.testing.assert_allclose(alone, whole[output], rtol=_TOWER_TOLERANCE, atol=_TOWER_TOLERANCE)
    except _TOWER_ERRORS as error:
        raise failed(name, f"its {tower} tower alone does not give the same: {_words(error)}") from error


def failed(name: str, problem: str) -> ModelRejectedError:
    """Return the error of a model that did not pass."""
    return ModelRejectedError(name, Fault.FAILED, problem)


def _first_finite(
    name: str,
    outputs: Sequence[str],
    attempts: Iterator[_Attempt],
    run: Callable[[Mapping[str, _Array]], Sequence[Any]],
) -> Trial:
    """Return the first attempt whose results are finite, but for minus infinity beside numbers."""
    failure, not_finite, tried = "", "", dict[str, None]()
    runs_with: set[int | None] = set()
    begun = time.monotonic()
    for attempt in attempts:
        if time.monotonic() - begun > _TIME_LIMIT_SECONDS:
            break
        if runs_with and attempt.size is not None and attempt.size not in runs_with:
            continue
        try:
            _check_feeds(attempt.feeds)
            results = run(attempt.feeds)
        except _ORT_ERRORS as error:
            failure = failure or _words(error)
            continue
        runs_with.add(attempt.size)
        tried[attempt.text] = None
        problems, notes = _not_finite(outputs, results)
        if not problems:
            return Trial(results=results, feeds=attempt.feeds, sizes=attempt.sizes, notes=notes)
        not_finite = not_finite or problems[0]
        if attempt.text == _OWN_EXAMPLE:
            break
    if not_finite:
        raise failed(name, f"{not_finite} in it, on every input that was tried ({'; '.join(tried)})")
    said = failure if failure.endswith(_TOO_LARGE) else f"a trial inference on made input failed: {failure}"
    raise failed(name, said)


_OWN_EXAMPLE = "the version's own input example"
_TOO_LARGE = "too large to be tried"


def _check_feeds(feeds: Mapping[str, _Array]) -> None:
    for name, array in feeds.items():
        if array.nbytes > _INPUT_LIMIT_BYTES:
            shape = list(array.shape)
            raise ValueError(
                f"input {name[:80]!r} of shape {shape} is larger than {_INPUT_LIMIT_BYTES} bytes, {_TOO_LARGE}"
            )


def _not_finite(outputs: Sequence[str], results: Sequence[Any]) -> tuple[list[str], tuple[str, ...]]:
    """Return the outputs with NaN or infinity, and as notes the outputs that have minus infinity beside numbers."""
    problems, notes = [], []
    for name, result in zip(outputs, results, strict=True):
        if not isinstance(result, np.ndarray) or result.dtype.kind != "f":
            continue
        finite = np.isfinite(result)
        if finite.all():
            continue
        if finite.any() and np.isneginf(result[~finite]).all():
            notes.append(f"output {name[:80]!r} has minus infinity beside numbers, taken as deliberate")
        else:
            problems.append(f"output {name[:80]!r} has NaN or infinity")
    return problems, tuple(notes)


def _exchangeable(types: Sequence[str]) -> bool:
    return all(name in _NUMPY_TYPES for text in types for name in _TENSOR_TYPE.findall(text))


def _session(model: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal errors only
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    # Without optimisation: an optimiser computes constant parts of the graph before the run.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _words(error: Exception) -> str:
    if "bad_alloc" in str(error) or "Failed to allocate" in str(error):
        return "it needs more memory than check_memory_bytes in the settings allows"
    # onnxruntime begins with paths and C++ signatures, and ends with the reason.
    return " ".join(str(error).split())[-300:]


# --- inputs -----------------------------------------------------------------------------------------------------------


def _attempts(
    path: Path, inputs: Sequence[Tensor], given: GivenInput, known: Mapping[str, int | None]
) -> Iterator[_Attempt]:
    """Yield the version's own example, then made inputs, equal in every run; texts of one kind are tried once."""
    if given.example is not None and (feeds := _example(given.example, inputs)) is not None:
        sizes = {
            named: size
            for tensor in inputs
            for named, size in zip(tensor.names, feeds[tensor.name].shape, strict=False)
            if named
        }
        yield _Attempt(text=_OWN_EXAMPLE, feeds=feeds, sizes=sizes)
    shapes = [_shape(tensor, given.signature, known, single=len(inputs) == 1) for tensor in inputs]
    open_dimensions = any(size is None for shape in shapes for size in shape)
    strings = _strings(path, inputs) if any(tensor.dtype == "object" for tensor in inputs) else {}
    done: set[str] = set()
    for number in range(len(_INTEGERS) + _MIXED_ATTEMPTS):
        rng = np.random.default_rng(20251031 + number)
        chosen = {tensor.name: _choice(tensor, number, rng, strings.get(tensor.name, ["a"])) for tensor in inputs}
        text = ", ".join(sorted({said for said, _ in chosen.values()})) or "no input"
        distinct = repr([said for said, _ in chosen.values()])
        if distinct in done:
            continue
        done.add(distinct)
        for size in _SIZES if open_dimensions else _SIZES[:1]:
            filled = [tuple(size if one is None else one for one in shape) for shape in shapes]
            yield _Attempt(
                text=text,
                size=size,
                feeds={
                    tensor.name: _filled(tensor, shape, chosen[tensor.name][1])
                    for tensor, shape in zip(inputs, filled, strict=True)
                },
                sizes={
                    named: one
                    for tensor, shape in zip(inputs, filled, strict=True)
                    for named, one in zip(tensor.names, shape, strict=True)
                    if named
                },
            )


def _choice(tensor: Tensor, number: int, rng: np.random.Generator, strings: Sequence[str]) -> tuple[str, _Integers]:
    """Return the description and the values of one input in the attempt with this number.

    The first attempts give every input the same kind of value, the later ones each input a kind of its own.
    """
    mixed = number >= len(_INTEGERS)
    kind = np.dtype(tensor.dtype).kind

    def pick(named: Mapping[str, Any]) -> tuple[str, Any]:
        items = list(named.items())
        return items[int(rng.integers(len(items)))] if mixed else items[number % len(items)]

    if kind == "f":
        said, (low, high) = pick(_NUMBERS)
        return f"numbers {said}", lambda count: rng.uniform(low, high, count)
    if kind == "b":
        said, share = pick(_TRUTHS)
        return f"truth values {said}", lambda count: rng.random(count) < share
    if kind in "iu":
        said, made = pick(_INTEGERS)
        return f"integers {said}", made
    if number == 0 or len(strings) == 1:
        return "strings that the graph names" if strings != ["a"] else "strings 'a'", lambda count: np.resize(
            np.array(strings, object), count
        )
    chosen = strings[int(rng.integers(len(strings))) if mixed else number % len(strings)]
    return f"strings {chosen[:20]!r}", lambda count: np.full(count, chosen, object)


def _filled(tensor: Tensor, shape: tuple[int, ...], made: _Integers) -> _Array:
    """Return an array of this shape, also of rank 0; for a shape that is too large, a view without memory."""
    dtype = np.dtype(tensor.dtype)
    count = prod(shape)
    if count * dtype.itemsize > _INPUT_LIMIT_BYTES:
        return np.broadcast_to(np.zeros((), dtype), shape)
    values = np.asarray(made(count))
    if dtype.kind == "u":
        values = np.abs(values)
    return np.asarray(values, dtype).reshape(shape)


def _shape(
    tensor: Tensor, signature: str | None, known: Mapping[str, int | None], *, single: bool
) -> tuple[int | None, ...]:
    """Return an input's shape: open dimensions as the signature has them, the last one as model_meta.json has it."""
    shape: list[int | None] = [None if size < 0 else size for size in tensor.shape]
    if shape and shape[-1] is None:
        shape[-1] = known.get(tensor.name)
    signed = _signed_shape(tensor.name, signature, single=single)
    if signed is not None and len(signed) == len(shape):
        shape = [
            size if own is None and type(size) is int and size > 0 else own
            for own, size in zip(shape, signed, strict=True)
        ]
    return tuple(shape)


def _signed_shape(name: str, signature: str | None, *, single: bool) -> list[Any] | None:
    """Return the shape of an input in MLflow's signature; None where it has none."""
    try:
        specs = json.loads(signature or "[]")
        found = [spec for spec in specs if spec.get("name") == name or (single and len(specs) == 1)]
        shape = found[0]["tensor-spec"]["shape"] if found else None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return shape if isinstance(shape, list) else None


def _example(data: bytes, inputs: Sequence[Tensor]) -> dict[str, _Array] | None:
    """Return the arrays of an MLflow input example; None where it does not fit the graph's inputs."""
    try:
        value = json.loads(data)
        for wrapper in ("inputs", "instances", "dataframe_split", "dataframe_records"):
            if isinstance(value, dict) and wrapper in value and wrapper not in {tensor.name for tensor in inputs}:
                value = value[wrapper]
        if isinstance(value, dict) and {"columns", "data"} <= value.keys():
            columns, rows = value["columns"], value["data"]
            named = set(columns) >= {tensor.name for tensor in inputs}
            value = {name: [row[place] for row in rows] for place, name in enumerate(columns)} if named else rows
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            value = {name: [row[name] for row in value] for name in value[0]}
        if not isinstance(value, dict):
            value = {tensor.name: value for tensor in inputs} if len(inputs) == 1 else {}
        return {tensor.name: _of_json(value[tensor.name], tensor) for tensor in inputs}
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None


def _of_json(value: Any, tensor: Tensor) -> _Array:
    array = np.asarray(value, np.dtype(tensor.dtype))
    # A column of a table is a list of numbers, and the graph wants a column of rows.
    return array.reshape(-1, 1) if array.ndim == 1 and len(tensor.shape) == 2 and tensor.shape[1] in {1, -1} else array


def _strings(path: Path, inputs: Sequence[Tensor]) -> dict[str, list[str]]:
    """Return the strings that the nodes behind each input of text name, such as the categories of an encoder."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    found: dict[str, list[str]] = {}
    for tensor in inputs:
        names = {tensor.name}
        strings: dict[str, None] = {}
        for node in nodes:
            if names.isdisjoint(node.input):
                continue
            if node.op_type in {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Gather", "Slice"}:
                names.update(node.output)
            for attribute in node.attribute:
                raw = [*attribute.strings, *attribute.t.string_data]
                strings.update({item.decode(errors="replace"): None for item in raw if len(item) < 1_000})
        found[tensor.name] = list(strings)[:_STRINGS_LIMIT] or ["a"]
    return found
