"""The two-tower example, from the data to a recommendation: every script is a process, on a slice of the users."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from supabase_bridge import Resolver
from tests.support.consumers import new_signer
from tests.support.edge_function import pem, serving
from tests.support.machine import need_torch
from tests.support.scene import BUCKET, supabase_environment
from tests.support.simulators.postgrest import Postgrest
from tests.support.simulators.storage import StorageSimulator
from tests.support.two_tower import EXAMPLE, Scripts, raw_data

WIDTHS = {"embedding_dim": 256, "hidden_dim": 512, "user_feature_dim": 4099, "item_feature_dim": 21671}
WIDTHS |= {"tag_vocab_size": 4096, "performer_vocab_size": 1024, "preferred_tag_vocab_size": 4096}


def run(url: str, directory: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the whole example on a slice, with a database for the embeddings and further variables."""
    need_torch()
    quiet = {"OMP_NUM_THREADS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment = {**os.environ, **quiet, "SUPABASE_BRIDGE_EMBEDDINGS_URL": url, **more}
    command = [
        sys.executable,
        str(EXAMPLE / "run_all.py"),
        "--slice",
        "4",
        "--epochs",
        "1",
        "--releases",
        "1",
        *arguments,
    ]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def in_deno(project: StorageSimulator, url: str, features: Any, directory: Path, trusted: str) -> dict[str, Any]:
    """Return what the Edge Functions answer: the current release, and the titles of the items for user 5."""
    grants = "grant usage on schema supabase_bridge to service_role;"
    grants += "grant execute on all functions in schema supabase_bridge to service_role;"
    with psycopg.connect(url) as connection:
        connection.execute(grants.encode())
    raw = directory / "ml" / "data" / "raw"
    catalogue, ratings = features.read_catalogue(raw), features.read_ratings(raw)
    tags, mine = dict(zip(catalogue.item, catalogue.tags, strict=True)), ratings[ratings.user == 5]
    history = [
        {"item": str(item), "rating": int(rating), "tags": tags[item]}
        for item, rating in zip(mine["item"], mine.rating, strict=True)
    ]
    environment = {
        "SUPABASE_URL": project.url,
        "SUPABASE_PUBLISHABLE_KEY": project.anon_key,
        "SUPABASE_SECRET_KEY": project.service_key,
        "MODEL_TRUSTED_KEY": trusted,
    }
    found: dict[str, Any] = {}
    for script, body in (("index.ts", None), ("recommend.ts", {"history": history, "k": 10})):
        (home := directory / script).mkdir()
        with serving(script, home, environment) as function:
            status, found[script] = function.ask(body)
            assert status == 200, found[script]
    titles = dict(zip(catalogue["item"].astype(str), catalogue.title, strict=True))
    found["recommend.ts"] = [titles[one["id"]] for one in found["recommend.ts"]["items"]]
    return found


def test_the_same_ratings_are_prepared_into_the_same_bytes_and_split_by_time(
    scripts: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd = importlib.import_module("pandas")  # it ships no annotations
    prepared = []
    for name in ("one", "two"):
        raw_data(tmp_path / name)
        monkeypatch.setattr(sys, "argv", ["prep_two_tower.py", "--ml", str(tmp_path / name / "ml")])
        scripts("prep_two_tower").main()
        made = tmp_path / name / "ml" / "data" / "processed" / "two_tower" / "latest"
        files = {path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()}
        del files[Path("prep.json")]
        prepared.append(files)
    assert prepared[0] == prepared[1]
    history, train, val = (
        pd.read_parquet(made / f"interactions_{part}.parquet") for part in ("history", "train", "val")
    )
    assert len(history) + len(train) + len(val) == 30
    assert history.time.max() < train.time.min() <= train.time.max() < val.time.min()


def test_features_have_the_specified_widths_and_leave_out_what_is_in_no_vocabulary(
    scripts: Scripts, tmp_path: Path
) -> None:
    features = scripts("features")
    raw = raw_data(tmp_path)
    catalogue, ratings = features.read_catalogue(raw), features.read_ratings(raw)
    vocabularies = features.make_vocabularies(catalogue)
    assert vocabularies["tag_vocab"] == {
        "genre:Drama": 0,
        "genre:Comedy": 1,
        "subjects:m.x1": 2,
        "subjects:m.x0": 3,
        "subjects:m.x2": 4,
    }
    items = features.item_features(catalogue, ratings, vocabularies)
    users = features.user_features([1, 2, 99], catalogue, ratings, vocabularies)
    assert (items.shape, users.shape) == ((10, 21_671), (3, 4_099))
    del vocabularies["tag_vocab"]["genre:Drama"]
    fewer = features.item_features(catalogue, ratings, vocabularies)
    assert fewer[:, 0].nnz == 0
    assert (fewer != items)[:, features.TAGS :].nnz == 0
    unknown = users[2].toarray()[0]
    assert (float(unknown[-1]), int(np.count_nonzero(unknown))) == (1, 1)


def test_the_metrics_of_the_example_are_those_of_a_plain_calculation(scripts: Scripts) -> None:
    rng = np.random.default_rng(0)
    scores, seen = rng.random((5, 60)), rng.random((5, 60)) < 0.3
    wanted = (rng.random((5, 60)) < 0.4) & ~seen
    found = scripts("eval_two_tower").metrics(scores, seen, wanted)
    recall, precision, auc = [], [], []
    for user in range(5):
        ranked = [item for item in np.argsort(-scores[user]) if not seen[user, item]]
        hits = [bool(wanted[user, item]) for item in ranked]
        possible = min(sum(hits), 20)
        recall.append(sum(hits[:20]) / possible)
        precision.append(sum(sum(hits[: k + 1]) / (k + 1) for k in range(20) if hits[k]) / possible)
        pairs = [(i, j) for i, hit in enumerate(hits) if hit for j, other in enumerate(hits) if not other]
        auc.append(sum(i < j for i, j in pairs) / len(pairs))
    plain = {"recall@20": np.mean(recall), "map@20": np.mean(precision), "auc": np.mean(auc)}
    assert found == pytest.approx(plain)


@pytest.mark.exhaustive
def test_the_exported_graph_and_each_tower_alone_give_what_the_trained_model_gives(tmp_path: Path) -> None:
    need_torch()
    code = """
import sys
from pathlib import Path
import numpy, onnxruntime, torch
import features, tower, train_two_tower
from supabase_bridge.mirror.tower import cut_tower
torch.manual_seed(0)
model = tower.TwoTower(tower.Tower(features.USER_WIDTH).dense(), tower.Tower(features.ITEM_WIDTH).dense()).eval()
made = Path(sys.argv[1])
train_two_tower.export(model, made)
whole = onnxruntime.InferenceSession(made / "two_tower_latest.onnx")
for users, items in ((0, 3), (1, 0), (513, 1), (2, 513)):
    given = [torch.rand((users, features.USER_WIDTH)), torch.rand((items, features.ITEM_WIDTH))]
    expected = [part.detach().numpy() for part in model(*given)]
    feeds = dict(zip(("user_features", "item_features"), (part.numpy() for part in given)))
    for side, one, wanted in zip(("user", "item"), whole.run(["user_embedding", "item_embedding"], feeds), expected):
        numpy.testing.assert_allclose(one, wanted, atol=1e-5)
        cut_tower(made / "two_tower_latest.onnx", made / f"{side}.onnx", side)
        alone = onnxruntime.InferenceSession(made / f"{side}.onnx")
        (found,) = alone.run([f"{side}_embedding"], {f"{side}_features": feeds[f"{side}_features"]})
        numpy.testing.assert_allclose(found, wanted, atol=1e-5)
print("equal")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(EXAMPLE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout.endswith("equal\n"), done.stderr


@pytest.mark.exhaustive
def test_a_slice_of_the_example_ends_with_consumers_that_recommend_the_same(
    embeddings_url: str, scripts: Scripts, tmp_path: Path
) -> None:
    signer = new_signer()
    with StorageSimulator() as project:
        project.serve_rest(Postgrest(embeddings_url).handle)
        variables = {**supabase_environment(project), "SUPABASE_BRIDGE_SIGNING_KEY": signer.key.pem.decode()}
        done = run(embeddings_url, tmp_path, "--criterion", "auc >= 0.5", **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        project.let_anon_read(BUCKET)
        with Resolver(url=project.url, key=project.anon_key) as resolver:
            release = resolver.resolve("two_tower")
            meta, metrics = resolver.meta(release).to_object(), resolver.metrics(release).to_object()
            tower = resolver.pull(release, tmp_path / "pulled").files[str(release.user_onnx_name)]
        functions = in_deno(project, embeddings_url, scripts("features"), tmp_path, pem(signer))
    assert functions["index.ts"] == {"run_id": release.run_id, "signed": True, "embedding_dim": 256}
    assert f"user 5, release {release.run_id}:" in done.stdout
    printed = done.stdout.rpartition(f"release {release.run_id}:\n")[2].splitlines()
    assert functions["recommend.ts"] == [line.split(maxsplit=1)[1] for line in printed]
    assert len(printed) == 10
    prepared = json.loads((tmp_path / "ml/data/processed/two_tower/latest/prep.json").read_text())
    wanted = {"model_name": "two_tower", "format": "two_tower.feature_mlp", "run_id": release.run_id, **WIDTHS}
    assert {name: meta[name] for name in wanted} == wanted
    assert (meta["use_price_feature"], meta["input_schema_version"]) == (False, 1)
    assert meta["data_snapshot"]["prep_run_id"] == prepared["run_id"]
    assert meta["data_snapshot"]["source_csv"] == prepared["source_csv"] == "ml/data/raw/ml-100k.inter"
    assert set(metrics["metrics"]) == {"recall@20", "map@20", "auc", "recall_over_popularity@20"}
    assert set(metrics["reference_metrics"]["popularity"]) == {"recall@20", "map@20", "auc"}
    protocol = {"split": "the last 10 % of time, users with a history", "candidates": "all"}
    assert metrics["evaluation_protocol"] == {**protocol, "seen_items": "masked", "k": 20}
    assert metrics["validation_set"].endswith("interactions_val.parquet")
    assert metrics["threshold_passed"] is True
    assert {"features/tag_vocab.json", "features/performer_vocab.json", "features/schema.json"} < set(release.files)
    assert tower.stat().st_size == pytest.approx((4099 * 512 + 512 * 256) * 4, rel=0.01)
    embeddings = np.load(tmp_path / "ml" / "embeddings" / release.run_id / "items.npz")["embeddings"]
    assert embeddings.shape == (1682, 256)


@pytest.mark.exhaustive
def test_the_gate_refuses_a_model_that_was_not_trained(embeddings_url: str, tmp_path: Path) -> None:
    done = run(embeddings_url, tmp_path, "--epochs", "0")
    assert done.returncode != 0
    assert "two_tower v1 cannot go to Production: recall_over_popularity@20" in done.stderr
