"""Train on the prepared interactions, export, and log everything but the evaluation to MLflow."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from features import ITEM_WIDTH, PERFORMERS, TAGS, USER_WIDTH, item_features, read_catalogue, read_vocabularies
from features import user_features as features_of_users
from torch.export import Dim
from tower import EMBEDDING, HIDDEN, Tower, TwoTower, batch_loss

from supabase_bridge.training import release_run


def train(prep: Path, raw: Path, *, epochs: int, batch: int = 256) -> TwoTower:
    """Train both towers: features from the history, labels from the interactions after it."""
    catalogue, vocabularies = read_catalogue(raw), read_vocabularies(prep / "features")
    history, labels = (pd.read_parquet(prep / f"interactions_{name}.parquet") for name in ("history", "train"))
    ids = sorted(labels.user.unique())
    users = features_of_users(ids, catalogue, history, vocabularies)
    items = item_features(catalogue, history, vocabularies)
    user_rows = pd.Index(ids).get_indexer(labels.user)
    item_rows = pd.Index(catalogue.item).get_indexer(labels.item)
    counts = np.bincount(item_rows, minlength=len(catalogue)) + 1
    log_q = torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32))

    towers = Tower(USER_WIDTH), Tower(ITEM_WIDTH)
    bags = [tower.first.weight for tower in towers]
    others = [part for tower in towers for name, part in tower.named_parameters() if name != "first.weight"]
    optimizers = torch.optim.SparseAdam(bags, lr=2e-3), torch.optim.Adam(others, lr=1e-3)
    for epoch in range(epochs):
        begun, losses, order = time.perf_counter(), [], np.random.permutation(len(labels))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            item_ids = torch.from_numpy(item_rows[chosen])
            loss = batch_loss(towers[0](users[user_rows[chosen]]), towers[1](items[item_rows[chosen]]), item_ids, log_q)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, {time.perf_counter() - begun:.1f} s", flush=True)
    return TwoTower(*(tower.dense() for tower in towers)).eval()


def export(model: TwoTower, artifacts: Path) -> dict[str, np.ndarray]:
    """Write the ONNX file and the state_dict; return an input example."""
    example = {
        "user_features": np.zeros((1, USER_WIDTH), np.float32),
        "item_features": np.zeros((1, ITEM_WIDTH), np.float32),
    }
    torch.onnx.export(
        model,
        tuple(torch.zeros((2, width)) for width in (USER_WIDTH, ITEM_WIDTH)),
        artifacts / "two_tower_latest.onnx",
        input_names=list(example),
        output_names=["user_embedding", "item_embedding"],
        dynamic_shapes=({0: Dim("user_batch")}, {0: Dim("item_batch")}),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    torch.save(model.state_dict(), artifacts / "two_tower_latest.pt")
    for values in example.values():
        values[:, -1] = 1  # a new user, a new item
    return example


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ml", type=Path, default=Path("ml"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    np.random.seed(given.seed)
    raw, prep = given.ml / "data" / "raw", given.ml / "data" / "processed" / "two_tower" / "latest"
    (artifacts := given.ml / "artifacts" / "latest").mkdir(parents=True, exist_ok=True)
    prepared = json.loads((prep / "prep.json").read_text())
    dimensions = {
        "embedding_dim": EMBEDDING,
        "hidden_dim": HIDDEN,
        "user_feature_dim": USER_WIDTH,
        "item_feature_dim": ITEM_WIDTH,
    }
    vocabularies = {"tag_vocab_size": TAGS, "performer_vocab_size": PERFORMERS, "preferred_tag_vocab_size": TAGS}
    fixed = {"format": "two_tower.feature_mlp", "input_schema_version": 1, "use_price_feature": False}
    with release_run(
        "two_tower",
        register=False,
        run_name="two_tower",
        prep_run_id=prepared["run_id"],
        source_csv=prepared["source_csv"],
        params={**fixed, **dimensions, **vocabularies, "epochs": given.epochs, "seed": given.seed},
    ) as run:
        example = export(train(prep, raw, epochs=given.epochs), artifacts)
        run.log_dataset(prep / "interactions_train.parquet", context="training")
        run.log_features(prep / "features")
        run.log_state_dict(artifacts / "two_tower_latest.pt")
        run.log_onnx(artifacts / "two_tower_latest.onnx", example=example, towers=["user", "item"])
    (artifacts / "mlflow_run_id").write_text(run.run_id)
    print(f"logged as run {run.run_id}")


if __name__ == "__main__":
    main()
