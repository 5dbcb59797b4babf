"""Draft a release: make its documents, and name all its files, before its model is tried and any file is uploaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from supabase_bridge.core.criteria import Gate
from supabase_bridge.core.documents import FileRecord, Metrics, ModelMeta, Origin
from supabase_bridge.core.layout import METRICS_NAME, SUMMARY_NAME, ReleasePaths
from supabase_bridge.mirror import metadata, mlmodel
from supabase_bridge.mirror.assemble import AssembledRelease
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.mirror.upload import record_of


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The release with which a new one is compared.

    Attributes:
        meta: Its model_meta.json; None where it cannot be read.
    """

    metrics: Metrics
    meta: ModelMeta | None


@dataclass(frozen=True, kw_only=True)
class ReleaseDraft:
    """A release as it is known before its checks.

    Attributes:
        meta: model_meta.json, with the record of every file, and without the notes of the checks.
        files: The files by name, without model_meta.json.
        notes: What the release leaves out, or reads otherwise than the training wrote it.
    """

    paths: ReleasePaths
    meta: ModelMeta
    metrics: Metrics
    files: Mapping[str, ModelFile | bytes]
    notes: tuple[str, ...]

    @property
    def records(self) -> Mapping[str, FileRecord]:
        """The record of each file."""
        return self.meta.files


def make_draft(
    assembled: AssembledRelease,
    paths: ReleasePaths,
    facts: metadata.RunInfo,
    origin: Origin,
    *,
    baseline: Baseline | None,
    gate: Gate,
) -> ReleaseDraft:
    """Draft a release; equal arguments give equal bytes.

    Raises:
        InvalidDocumentError: a document of the training job breaks its schema.
    """
    compared = None if baseline is None else baseline.metrics
    metrics = metadata.complete_metrics(assembled.metrics, facts, run_id=paths.run_id, baseline=compared, gate=gate)
    meta, files = make_files(assembled, paths, facts, origin, metrics, baseline=baseline, gate=gate)
    return ReleaseDraft(
        paths=paths,
        meta=meta.model_copy(update={"files": {name: record_of(file) for name, file in files.items()}}),
        metrics=metrics,
        files=files,
        notes=(*assembled.notes, *metadata.notes(assembled.meta, assembled.metrics, facts)),
    )


def make_files(
    assembled: AssembledRelease,
    paths: ReleasePaths,
    facts: metadata.RunInfo,
    origin: Origin,
    metrics: Metrics,
    *,
    baseline: Baseline | None,
    gate: Gate,
) -> tuple[ModelMeta, dict[str, ModelFile | bytes]]:
    """Return a release's model_meta.json, without the records of files, and its other files by name."""
    basis = metadata.computed_from(facts, None if baseline is None else baseline.metrics, gate)
    notes = metadata.release_notes(metrics, facts)
    meta = metadata.complete_meta(
        assembled.meta,
        facts,
        paths=paths,
        origin=origin,
        release_notes=notes,
        computed_from=basis,
        graph=assembled.structure.record,
    )
    meta.to_bytes()
    summary = assembled.summary
    if summary is None:
        compared = None if baseline is None else baseline.meta
        summary = metadata.draft_summary(paths.model_key, metrics, facts, meta=meta, baseline=compared).encode()
    return meta, {
        **assembled.model_files(paths),
        METRICS_NAME: metrics.to_bytes(),
        SUMMARY_NAME: summary,
        **mlmodel.model_files(assembled.mlmodel, assembled.environment, assembled.structure, paths=paths, facts=facts),
    }
