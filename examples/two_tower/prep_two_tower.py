"""Prepare: split the ratings by time, and make the vocabularies from the part that training may see."""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path

import features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ml", type=Path, default=Path("ml"), help="the folder of data and artifacts")
    parser.add_argument("--slice", type=int, help="only the ratings of every n-th user, for a quick run")
    given = parser.parse_args()
    raw = given.ml / "data" / "raw"
    features.fetch(raw)
    ratings = features.read_ratings(raw)
    if given.slice:
        ratings = ratings[ratings.user % given.slice == 0].reset_index(drop=True)
    catalogue = features.read_catalogue(raw)

    run_id = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    made = given.ml / "data" / "processed" / "two_tower" / run_id
    made.mkdir(parents=True)
    first, second = (ratings.time.quantile(part) for part in (0.7, 0.9))
    parts = {
        "history": ratings[ratings.time <= first],
        "train": ratings[(ratings.time > first) & (ratings.time <= second)],
        "val": ratings[ratings.time > second],
    }
    for name, part in parts.items():
        part.to_parquet(made / f"interactions_{name}.parquet", index=False)
    features.write_features(made / "features", features.make_vocabularies(catalogue))
    features.write_sample(made / "features", catalogue, parts["history"])
    (made / "prep.json").write_text(json.dumps({"run_id": run_id, "source_csv": str(raw / "ml-100k.inter")}))
    (latest := made.with_name("latest")).unlink(missing_ok=True)
    latest.symlink_to(run_id)
    print(f"{made}: " + ", ".join(f"{len(part)} {name}" for name, part in parts.items()))


if __name__ == "__main__":
    main()
