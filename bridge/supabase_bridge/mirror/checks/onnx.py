"""Validate an ONNX model, compare it with model_meta.json, and try it.

Only the sandbox process calls this: a graph may use any amount of time and memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.mirror import onnx_file
from supabase_bridge.mirror.checks.trial import Trial, compare_tower, failed, run_trial
from supabase_bridge.mirror.errors import ModelRejectedError
from supabase_bridge.mirror.onnx_file import GivenInput, Tensor


def check_model(
    path: Path,
    meta: ModelMeta,
    given: GivenInput,
    *,
    trial_warns: bool = False,
    towers: Mapping[str, Path] = MappingProxyType({}),
) -> list[str]:
    """Check an ONNX model without weights beside it, and return notes on it for the release.

    Args:
        given: The version's own input example and signature.
        trial_warns: A failed trial is a note, not an error. The structure must be right in any case.
        towers: The parts that were cut from the graph, by the tower.

    Raises:
        ModelRejectedError: it is no valid ONNX model; its inputs or outputs differ from the sizes in `meta`; it cannot
            be run; its outputs are not finite; or a tower alone gives other results, or cannot be compared.
    """
    structure = onnx_file.read_structure(path)
    notes = onnx_file.validate(path)
    _compare_inputs(path.name, structure.inputs, meta)
    for tensor in structure.outputs:
        if not _has_embedding_size(tensor.name, tensor.shape, meta):
            problem = f"model_meta.json has embedding_dim {meta.embedding_dim}, and the graph gives {_listed([tensor])}"
            raise failed(path.name, problem)
    try:
        trial = run_trial(path, structure, given, _input_sizes(meta))
    except ModelRejectedError as error:
        if not trial_warns or towers:
            raise
        return [*notes, f"the trial failed, and is only a warning for this model: {error.problem}"]
    for tower, file in towers.items():
        compare_tower(path.name, structure, trial, tower, file)
    if trial is None:
        return [*notes, "the model was opened and not run: numpy lacks a type of its inputs or outputs"]
    return [*notes, *trial.notes, *_compare_results(path.name, structure.outputs, trial, meta)]


# --- names and dimensions ---------------------------------------------------------------------------------------------


def _input_sizes(meta: ModelMeta) -> dict[str, int | None]:
    """Return the size of each tower's input, by the input's name."""
    return {"user_features": meta.user_feature_dim, "item_features": meta.item_feature_dim}


def _compare_inputs(name: str, inputs: Sequence[Tensor], meta: ModelMeta) -> None:
    """Compare the two towers' inputs with model_meta.json; a graph with inputs of other names only is not compared.

    Raises:
        ModelRejectedError: an input has another size, or one of the two is missing.
    """
    known = _input_sizes(meta)
    found = {tensor.name: tensor for tensor in inputs if tensor.name in known}
    if inputs and not found:
        return
    for wanted, size in known.items():
        if size is None:
            continue
        said = f"model_meta.json has {wanted.removesuffix('s')}_dim {size}, and the graph"
        if wanted not in found:
            raise failed(name, f"{said} no input {wanted!r} (inputs: {_listed(inputs)})")
        if not _may_be(found[wanted].shape, size):
            raise failed(name, f"{said} takes {_listed([found[wanted]])}")


def _has_embedding_size(output: str, shape: Sequence[int], meta: ModelMeta) -> bool:
    known = meta.embedding_dim is not None and output in {"user_embedding", "item_embedding"}
    return not known or _may_be(shape, meta.embedding_dim)


def _may_be(shape: Sequence[int], size: int | None) -> bool:
    return not shape or shape[-1] in {size, -1}


def _listed(tensors: Sequence[Tensor]) -> str:
    shown = [f"{tensor.name[:80]!r} {['?' if size < 0 else size for size in tensor.shape]}" for tensor in tensors[:5]]
    return ", ".join(shown).replace("'?'", "?") or "none"


def _compare_results(name: str, outputs: Sequence[Tensor], trial: Trial, meta: ModelMeta) -> list[str]:
    """Compare the trial's results with model_meta.json, and return notes on shapes that the graph declares wrongly.

    onnxruntime warns of such a shape and goes on.
    """
    notes = []
    for tensor, result in zip(outputs, trial.results, strict=True):
        if not isinstance(result, np.ndarray) or tensor.dtype is None:
            continue
        if not _has_embedding_size(tensor.name, result.shape, meta):
            problem = (
                f"model_meta.json has embedding_dim {meta.embedding_dim}, and output {tensor.name[:80]!r} has shape "
            )
            raise failed(name, problem + str(list(result.shape)))
        # A graph may leave an output's shape open altogether, which reads as no dimensions.
        if tensor.shape and not _fits(tensor, result.shape, trial.sizes):
            declared = ", ".join("?" if size < 0 else str(size) for size in _declared(tensor, trial.sizes))
            found = list(result.shape)
            notes.append(f"output {tensor.name[:80]!r} has shape {found}, and the graph declares [{declared}] for it")
    return notes


def _fits(tensor: Tensor, shape: Sequence[int], sizes: Mapping[str, int]) -> bool:
    """Return whether a shape is one that the graph declares; equal names of dimensions mean equal sizes."""
    wanted = _declared(tensor, sizes)
    return len(shape) == len(wanted) and all(size in {-1, found} for size, found in zip(wanted, shape, strict=True))


def _declared(tensor: Tensor, sizes: Mapping[str, int]) -> list[int]:
    """Return the declared shape, with the size that the trial gave each named dimension; -1 for any size."""
    dimensions = zip(tensor.shape, tensor.names, strict=True)
    return [sizes.get(named, -1) if size < 0 else size for size, named in dimensions]
