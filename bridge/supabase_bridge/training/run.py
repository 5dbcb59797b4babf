"""Log a training to MLflow under the names that a release needs, in one script or in several.

Source: the release specification, sections 2 and 3; docs/training.md has the names.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import get_dataset_source_from_json, resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset

from supabase_bridge.core.documents import EvaluationProtocol
from supabase_bridge.core.evaluation import REFERENCE_PREFIX, protocol_params
from supabase_bridge.core.layout import FEATURES_PREFIX, SUMMARY_NAME, TOWERS, features_problem
from supabase_bridge.core.tags import TOWERS_TAG
from supabase_bridge.core.text import format_time
from supabase_bridge.storage.hashing import hash_file
from supabase_bridge.training.errors import IncompleteRunError

if TYPE_CHECKING:
    import numpy as np
    import onnx

_MODEL_NAME = "model"
_CONTEXT_PARAMS = {"training": "source_csv", "validation": "validation_set"}


@contextmanager
def release_run(
    model: str,
    *,
    run_id: str | None = None,
    register: bool = True,
    run_name: str | None = None,
    description: str | None = None,
    params: Mapping[str, object] | None = None,
    prep_run_id: str | None = None,
    source_csv: str | None = None,
) -> Iterator[ReleaseRun]:
    """Start or continue a run of MLflow, and register its model after the block.

    The model is registered after everything else, so that the release has all that was logged. After an exception in
    the block nothing is registered, and the run is marked as failed. Where a run is active already, that run is used
    and stays active; the bridge waits for its end.

    Args:
        model: The registered model, created if it is missing.
        run_id: A run of an earlier script; None: a new run.
        register: False in a script that a later one follows; only the last script registers.
        description: The version's description, and so the manifest's release notes.
        params: Params of the training, with the specification's names: `embedding_dim`, `hidden_dim`, `format`, ...
        prep_run_id: The run_id of the preprocessing.
        source_csv: The input of the preprocessing.

    Yields:
        The run, with methods that log the parts of a release.

    Raises:
        IncompleteRunError: the run has no ONNX model or no metric; nothing is registered.
        mlflow.exceptions.MlflowException: MLflow is unavailable or refuses a call.
    """
    if (active := mlflow.active_run()) is not None and run_id in {None, active.info.run_id}:
        run = ReleaseRun(model, active.info.run_id)
        yield _described(run, params, prep_run_id, source_csv)
    else:
        with mlflow.start_run(run_id=run_id, run_name=run_name) as started:
            run = ReleaseRun(model, started.info.run_id)
            yield _described(run, params, prep_run_id, source_csv)
            if register:
                run.check_complete()
    if register:
        run.register(description)


def _described(
    run: ReleaseRun, params: Mapping[str, object] | None, prep_run_id: str | None, source_csv: str | None
) -> ReleaseRun:
    named = {"prep_run_id": prep_run_id, "source_csv": source_csv, **(params or {})}
    run.log_params(**{name: value for name, value in named.items() if value is not None})
    return run


class ReleaseRun:
    """A run of MLflow whose model becomes a release; `release_run` makes it.

    Attributes:
        model: The registered model.
        run_id: MLflow's id of the run, by which a later script continues it.
        version: The registered version; None before the end of the block.
    """

    def __init__(self, model: str, run_id: str) -> None:
        self.model = model
        self.run_id = run_id
        self.version: int | None = None
        self._client = MlflowClient()
        self._logged: str | None = None
        self._features: dict[str, int] = {}

    def log_params(self, **params: object) -> None:
        """Log params; those with the specification's names become fields of model_meta.json."""
        if params:
            mlflow.log_params(params)

    def log_dataset(self, source: str | Path, *, context: str, name: str | None = None) -> None:
        """Log an input of the run by its place: a URI, or a local file, whose digest is logged too.

        Args:
            context: "training" or "validation"; the first of each is the release's `source_csv` or `validation_set`,
                unless that param is logged already.
        """
        text, path = str(source), Path(source)
        local = "://" not in text
        place = (
            get_dataset_source_from_json(json.dumps({"uri": text}), "local") if local else resolve_dataset_source(text)
        )
        digest = hash_file(path).sha256[:16] if local and path.is_file() else None
        made = MetaDataset(place, name=name or path.stem, digest=digest)  # type: ignore[abstract] # only by its stubs
        mlflow.log_input(made, context=context)
        param = _CONTEXT_PARAMS.get(context)
        if param is not None and param not in self._params():
            mlflow.log_param(param, text)

    def log_features(self, *paths: str | Path) -> None:
        """Log files that an inference needs beside the model, such as vocabularies; of a folder, all that is in it.

        Raises:
            IncompleteRunError: they are too many or too large, or of a kind that a release does not accept.
        """
        found: dict[str, Path] = {}
        for path in map(Path, paths):
            inside = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
            found |= {item.relative_to(path).as_posix() if path.is_dir() else item.name: item for item in inside}
        sizes = {FEATURES_PREFIX + name: path.stat().st_size for name, path in found.items()}
        if problem := features_problem({**self._features, **sizes}):
            raise IncompleteRunError(self.model, self.run_id, f"features/: {problem}")
        for name, path in found.items():
            mlflow.log_artifact(str(path), (FEATURES_PREFIX + name).rpartition("/")[0])
        self._features |= sizes

    def log_state_dict(self, state_dict: str | Path | Mapping[str, Any]) -> None:
        """Log a PyTorch state_dict, or the file that `torch.save` made of one, as `<model>_latest.pt`."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / f"{self.model}_latest.pt"
            if isinstance(state_dict, Mapping):
                import torch  # a training that has a state_dict has it; others need not

                torch.save(dict(state_dict), path)
            else:
                path.symlink_to(Path(state_dict).resolve())
            mlflow.log_artifact(str(path))
        self._log_trained_at()

    def log_onnx(
        self,
        model: str | Path | onnx.ModelProto,
        *,
        example: Mapping[str, np.ndarray[Any, Any]],
        towers: Sequence[str] = (),
    ) -> None:
        """Log the ONNX model with an input example, and with the signature that a run on the example gives.

        Args:
            example: By the names of the inputs, one or a few rows. The bridge's checks run the model on it.
            towers: "user" or "item": the towers that the release carries as ONNX files of their own.
        """
        import onnx
        import onnxruntime

        if unknown := sorted(set(towers) - set(TOWERS)):
            raise ValueError(f"no such tower: {unknown[0]!r}; there are {' and '.join(TOWERS)}")
        proto = onnx.load(model) if isinstance(model, str | Path) else model
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        results = dict(zip(names, session.run(names, dict(example)), strict=True))
        known = inspect.signature(mlflow.onnx.log_model).parameters
        logged = mlflow.onnx.log_model(
            proto,
            signature=mlflow.models.infer_signature(dict(example), results),
            input_example=dict(example),
            onnx_execution_providers=["CPUExecutionProvider"],
            # To infer the requirements, MLflow would load the model in a new process.
            pip_requirements=["mlflow", f"onnx=={onnx.__version__}", f"onnxruntime=={onnxruntime.__version__}"],
            **{"name" if "name" in known else "artifact_path": _MODEL_NAME},
            **({"save_as_external_data": False} if "save_as_external_data" in known else {}),
        )
        self._logged = str(logged.model_uri)
        if towers:
            mlflow.set_tag(TOWERS_TAG, ",".join(towers))
        self._log_trained_at()

    def log_evaluation(
        self,
        metrics: Mapping[str, float],
        *,
        split: str,
        candidates: str | int,
        seen_items: str,
        k: int | Sequence[int] | None = None,
        references: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Log the metrics of the evaluation and its protocol, without which they can be compared with nothing.

        Args:
            metrics: By name, `recall@20` or `recall_at_20`.
            split: The rule that separates training and validation, without dates: "the last 10 % of time".
            candidates: The items that are ranked: "all", or for example "100 sampled".
            seen_items: "masked" or "kept": the items that a user had in the training.
            k: The lengths of the lists.
            references: The metrics of other methods on the same data, by the method: popularity, for example.
        """
        lengths = list(k) if isinstance(k, Sequence) else k
        protocol = EvaluationProtocol(split=split, candidates=candidates, seen_items=seen_items, k=lengths)
        others = {
            f"{REFERENCE_PREFIX}{method}/{name}": value
            for method, named in (references or {}).items()
            for name, value in named.items()
        }
        mlflow.log_params(protocol_params(protocol))
        mlflow.log_metrics({name.replace("@", "_at_"): float(value) for name, value in {**metrics, **others}.items()})

    def log_summary(self, text: str) -> None:
        """Log the release's summary.md: conditions, findings and known limits, in Markdown."""
        mlflow.log_text(text, SUMMARY_NAME)

    def check_complete(self) -> None:
        """Check that the run has an ONNX model and metrics.

        Raises:
            IncompleteRunError: it lacks one of the two.
        """
        self._model_uri()
        if not self._client.get_run(self.run_id).data.metrics:
            raise self._incomplete("it has no metric; call log_evaluation before the end")

    def register(self, description: str | None = None) -> int:
        """Register the run's model, and return the version; `release_run` does that at the end.

        Raises:
            IncompleteRunError: see `check_complete`.
        """
        self.check_complete()
        made = mlflow.register_model(self._model_uri(), self.model)
        if description:
            self._client.update_model_version(self.model, made.version, description)
        self.version = int(made.version)
        return self.version

    def _model_uri(self) -> str:
        """Return the model that this script logged, or else the only one that an earlier script logged."""
        if self._logged is not None:
            return self._logged
        run = self._client.get_run(self.run_id)
        outputs = getattr(run, "outputs", None)  # MLflow before 3 has no logged models
        found = [f"models:/{item.model_id}" for item in (outputs.model_outputs if outputs else [])]
        if not found:
            history = json.loads(run.data.tags.get("mlflow.log-model.history", "[]"))
            found = list(dict.fromkeys(f"runs:/{self.run_id}/{item['artifact_path']}" for item in history))
        if len(found) != 1:
            count = "no model" if not found else f"{len(found)} logged models, and one script must register its own"
            raise self._incomplete(f"it has {count}; call log_onnx")
        return found[0]

    def _log_trained_at(self) -> None:
        if "trained_at" not in self._params():
            mlflow.log_param("trained_at", format_time(datetime.now(timezone.utc).replace(microsecond=0)))

    def _params(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self._client.get_run(self.run_id).data.params
        return found

    def _incomplete(self, problem: str) -> IncompleteRunError:
        return IncompleteRunError(self.model, self.run_id, problem)
