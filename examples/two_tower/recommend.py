"""A consumer: compute a user's embedding with the current release's tower, and ask for that release's items."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval_two_tower import embed
from features import read_catalogue, read_ratings, read_vocabularies, user_features

from supabase_bridge import Resolver
from supabase_bridge.embeddings.sets import EmbeddingSets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("user", type=int)
    parser.add_argument("--ml", type=Path, default=Path("ml"))
    parser.add_argument("-k", type=int, default=10)
    given = parser.parse_args()
    raw = given.ml / "data" / "raw"
    catalogue, ratings = read_catalogue(raw), read_ratings(raw)
    seen = {str(item) for item in ratings[ratings.user == given.user].item}
    with Resolver.from_env() as resolver, EmbeddingSets.from_env() as sets:
        release = resolver.resolve("two_tower")
        pulled = resolver.pull(release)
        vocabularies = read_vocabularies(pulled.directory / "features")
        rows = user_features([given.user], catalogue, ratings, vocabularies)
        (vector,) = embed(pulled.files[str(release.user_onnx_name)], "user", rows)
        # The run_id is that of the manifest that named the tower, so that both are of one release.
        found = sets.match_items(release.model, release.run_id, vector.tolist(), k=given.k + len(seen))
    titles = dict(zip(catalogue.item.astype(str), catalogue.title))
    print(f"user {given.user}, release {release.run_id}:")
    for match in [match for match in found if match.id not in seen][: given.k]:
        print(f"  {match.score:.3f}  {titles[match.id]}")


if __name__ == "__main__":
    main()
