"""Evaluate the exported model over the whole catalogue, log metrics and protocol, and register the version."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from features import item_features, read_catalogue, read_vocabularies, user_features
from scipy import sparse

from supabase_bridge.training import release_run

K = 20


def embed(onnx: Path | str, tower: str, rows: sparse.csr_matrix) -> np.ndarray:
    """Return the embeddings that an ONNX file with this tower gives for some rows."""
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    # The other tower of a file with both gets no rows.
    empty = {given.name: np.zeros((0, given.shape[1]), np.float32) for given in session.get_inputs()}
    parts = [
        session.run([f"{tower}_embedding"], {**empty, f"{tower}_features": rows[start : start + 256].toarray()})[0]
        for start in range(0, rows.shape[0], 256)
    ]
    return np.concatenate(parts)


def metrics(scores: np.ndarray, seen: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Return the means over users; rows are users, columns all items, those that a user has seen are masked."""
    scores = np.where(seen, -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(wanted, order[:, :K], axis=1)
    possible = np.minimum(wanted.sum(axis=1), K)
    precision = np.cumsum(hits, axis=1) / np.arange(1, K + 1)
    ranks = np.argsort(order, axis=1)
    positives, candidates = wanted.sum(axis=1), (~seen).sum(axis=1)
    below = candidates * positives - (ranks * wanted).sum(axis=1) - positives * (positives + 1) / 2
    return {
        f"recall@{K}": float((hits.sum(axis=1) / possible).mean()),
        f"map@{K}": float(((precision * hits).sum(axis=1) / possible).mean()),
        "auc": float((below / (positives * (candidates - positives))).mean()),
    }


def evaluate(prep: Path, raw: Path, onnx: Path) -> tuple[dict[str, float], dict[str, float], int]:
    """Return the metrics of the model and of popularity, and the number of users."""
    catalogue, vocabularies = read_catalogue(raw), read_vocabularies(prep / "features")
    history, train, val = (
        pd.read_parquet(prep / f"interactions_{name}.parquet") for name in ("history", "train", "val")
    )
    known = pd.concat([history, train])
    val = val[val.user.isin(known.user)]
    users = sorted(val.user.unique())
    places = pd.Index(users), pd.Index(catalogue.item)

    def pairs(part: pd.DataFrame) -> np.ndarray:
        part = part[part.user.isin(users)]
        matrix = np.zeros((len(users), len(catalogue)), bool)
        matrix[places[0].get_indexer(part.user), places[1].get_indexer(part.item)] = True
        return matrix

    seen, wanted = pairs(known), pairs(val)
    of_users = embed(onnx, "user", user_features(users, catalogue, known, vocabularies))
    of_items = embed(onnx, "item", item_features(catalogue, known, vocabularies))
    popular = known.groupby("item").size().reindex(catalogue.item, fill_value=0).to_numpy(float)
    return (
        metrics(of_users @ of_items.T, seen, wanted),
        metrics(np.tile(popular, (len(users), 1)), seen, wanted),
        len(users),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ml", type=Path, default=Path("ml"))
    given = parser.parse_args()
    raw, prep = given.ml / "data" / "raw", given.ml / "data" / "processed" / "two_tower" / "latest"
    artifacts = given.ml / "artifacts" / "latest"
    own, popularity, users = evaluate(prep, raw, artifacts / "two_tower_latest.onnx")
    better = own[f"recall@{K}"] / popularity[f"recall@{K}"]
    summary = ", ".join(f"{name} {value:.3f} (popularity {popularity[name]:.3f})" for name, value in own.items())
    with release_run("two_tower", run_id=(artifacts / "mlflow_run_id").read_text()) as run:
        run.log_dataset(prep / "interactions_val.parquet", context="validation")
        run.log_evaluation(
            {**own, f"recall_over_popularity@{K}": better},
            split="the last 10 % of time, users with a history",
            candidates="all",
            seen_items="masked",
            k=K,
            references={"popularity": popularity},
        )
    print(f"version {run.version}, {users} users: {summary}")


if __name__ == "__main__":
    main()
