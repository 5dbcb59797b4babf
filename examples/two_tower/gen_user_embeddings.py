"""Compute the embeddings of all users and items with a release's own towers and vocabularies.

A step before an activation (docs/steps.md): the worker names the release, and a folder with its verified files. Outside
of a step the command line names the release.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from eval_two_tower import embed
from features import item_features, read_catalogue, read_ratings, read_vocabularies, user_features

from supabase_bridge import Resolver


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release", nargs="?", help="two_tower/RUN_ID, or two_tower for the current one")
    parser.add_argument("--ml", type=Path, default=Path("ml"))
    given = parser.parse_args()
    raw = given.ml / "data" / "raw"
    if given.release is None:
        run_id, directory = os.environ["SUPABASE_BRIDGE_RUN_ID"], Path(os.environ["SUPABASE_BRIDGE_RELEASE_DIR"])
    else:
        with Resolver.from_env() as resolver:
            pulled = resolver.pull(given.release)
        run_id, directory = pulled.release.run_id, pulled.directory
    vocabularies = read_vocabularies(directory / "features")
    catalogue, ratings = read_catalogue(raw), read_ratings(raw)
    ids = {"users": sorted(ratings.user.unique()), "items": list(catalogue.item)}
    rows = {
        "users": user_features(ids["users"], catalogue, ratings, vocabularies),
        "items": item_features(catalogue, ratings, vocabularies),
    }
    (made := given.ml / "embeddings" / run_id).mkdir(parents=True, exist_ok=True)
    for kind in ("users", "items"):
        tower = kind[:-1]
        embeddings = embed(directory / f"two_tower_{run_id}.{tower}.onnx", tower, rows[kind])
        np.savez(made / f"{kind}.npz", ids=np.array(ids[kind]), embeddings=embeddings)
        print(f"{made / kind}.npz: {embeddings.shape}")


if __name__ == "__main__":
    main()
