"""The data of the example (MovieLens 100k and its Freebase graph), and its features at the specification's widths."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

WHEEL = "recbole==1.2.1"
FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.kg", "ml-100k.link")
TAGS, PERFORMERS, TOKENS = 4096, 1024, 16548
USER_WIDTH = TAGS + 3
ITEM_WIDTH = TAGS + PERFORMERS + TOKENS + 3
TAGS_OF_A_USER = 48
SAMPLE_USERS = 200
MAKERS = {"directed_by", "produced_by", "written_by", "production_companies", "cinematography"}
VOCABULARIES = ("tag_vocab", "performer_vocab")


def fetch(raw: Path) -> None:
    """Take the data from a wheel that contains it. GroupLens's licence: no commercial use, no redistribution."""
    if all((raw / name).exists() for name in FILES):
        return
    raw.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", directory, WHEEL]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(directory).glob("*.whl"))) as wheel:
            for name in FILES:
                (raw / name).write_bytes(wheel.read(f"recbole/dataset_example/ml-100k/{name}"))


def read_ratings(raw: Path) -> pd.DataFrame:
    """Return user, item, rating and time, in the order of time."""
    ratings = pd.read_csv(raw / "ml-100k.inter", sep="\t", names=["user", "item", "rating", "time"], header=0)
    return ratings.sort_values(["time", "user", "item"], ignore_index=True)


def read_catalogue(raw: Path) -> pd.DataFrame:
    """Return for each item its title, and the lists of its tags, performers and tokens."""
    items = pd.read_csv(raw / "ml-100k.item", sep="\t", names=["item", "title", "year", "genres"], header=0, dtype=str)
    links = pd.read_csv(raw / "ml-100k.link", sep="\t", names=["item", "film"], header=0, dtype=str)
    graph = pd.read_csv(raw / "ml-100k.kg", sep="\t", names=["film", "relation", "entity"], header=0, dtype=str)
    graph = graph[graph.relation.str.startswith("film.film.")].merge(links, on="film")
    graph["relation"] = graph.relation.str.removeprefix("film.film.")
    items = items.fillna("")
    tags = {item: [f"genre:{word}" for word in genres.split()] for item, genres in zip(items.item, items.genres)}
    tokens = {item: [f"title:{word.lower()}" for word in title.split()] for item, title in zip(items.item, items.title)}
    performers: dict[str, list[str]] = {item: [] for item in items.item}
    for item, relation, entity in zip(graph.item, graph.relation, graph.entity):
        if item not in tags:
            continue
        if relation == "actor":
            performers[item].append(entity)
            continue
        tags[item].append(f"{relation}:{entity}")
        if relation in MAKERS:
            tokens[item].append(f"maker:{entity}")
    items["item"] = items.item.astype(int)
    named = zip(("tags", "performers", "tokens"), (tags, performers, tokens))
    columns = {name: [sorted(set(found)) for found in lists.values()] for name, lists in named}
    return items.assign(**columns).sort_values("item", ignore_index=True)


def make_vocabularies(catalogue: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return the columns of the most frequent tags and performers."""
    made = {}
    for name, column, size in zip(VOCABULARIES, ("tags", "performers"), (TAGS, PERFORMERS)):
        counts = catalogue[column].explode().dropna().value_counts()
        chosen = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:size]
        made[name] = {text: place for place, (text, _) in enumerate(chosen)}
    return made


def write_features(directory: Path, vocabularies: dict[str, dict[str, int]]) -> None:
    """Write the files that an inference needs; a release carries them as `features/`."""
    directory.mkdir(parents=True, exist_ok=True)
    schema = {"version": 1, "user": ["tags", *_STATISTICS], "item": ["tags", "performers", "tokens", *_STATISTICS]}
    schema |= {"user_width": USER_WIDTH, "item_width": ITEM_WIDTH}
    schema |= {"token_hash": f"crc32 modulo {TOKENS}", "tags_of_a_user": TAGS_OF_A_USER}
    for name, value in {**vocabularies, "schema": schema}.items():
        (directory / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")


def write_sample(directory: Path, catalogue: pd.DataFrame, history: pd.DataFrame) -> None:
    """Write the titles of all items, and a sample that `supabase-bridge look` ranks with a release's towers."""
    vocabularies = read_vocabularies(directory)
    titles = {
        str(item): f"{title} ({year})" for item, title, year in zip(catalogue.item, catalogue.title, catalogue.year)
    }
    (directory / "titles.json").write_text(json.dumps(titles, indent=0) + "\n")
    users = sorted(history.user.unique())[:: max(1, history.user.nunique() // SAMPLE_USERS)]
    rows = {
        "users": (users, user_features(users, catalogue, history, vocabularies)),
        "items": (list(catalogue.item), item_features(catalogue, history, vocabularies)),
    }
    for kind, (ids, matrix) in rows.items():
        parts = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "shape": matrix.shape}
        np.savez_compressed(directory / f"sample_{kind}.npz", ids=np.array(ids), **parts)


def read_vocabularies(directory: Path) -> dict[str, dict[str, int]]:
    """Return the vocabularies of a folder that `write_features` wrote."""
    return {name: json.loads((directory / f"{name}.json").read_text()) for name in VOCABULARIES}


_STATISTICS = ["log_count", "mean_rating", "is_new"]


def item_features(
    catalogue: pd.DataFrame, history: pd.DataFrame, vocabularies: dict[str, dict[str, int]]
) -> sparse.csr_matrix:
    """Return a row of width ITEM_WIDTH for each item; what is not in a vocabulary is ignored."""
    tags, performers = (vocabularies[name] for name in VOCABULARIES)
    tokens = {token: zlib.crc32(token.encode()) % TOKENS for token in catalogue.tokens.explode().dropna().unique()}
    blocks = [
        _multi_hot(catalogue.tags, tags, TAGS),
        _multi_hot(catalogue.performers, performers, PERFORMERS),
        _multi_hot(catalogue.tokens, tokens, TOKENS),
        _statistics(catalogue.item, history.groupby("item").rating),
    ]
    return sparse.hstack(blocks, format="csr", dtype=np.float32)


def user_features(
    users: list[int], catalogue: pd.DataFrame, history: pd.DataFrame, vocabularies: dict[str, dict[str, int]]
) -> sparse.csr_matrix:
    """Return a row of width USER_WIDTH for each user: the tags of the rated items, and how the user rates."""
    of_items = _multi_hot(catalogue.tags, vocabularies["tag_vocab"], TAGS)
    known = history[history.user.isin(users)]
    rows = pd.Index(users).get_indexer(known.user)
    columns = pd.Index(catalogue.item).get_indexer(known.item)
    rated = sparse.csr_matrix(
        (known.rating.to_numpy(np.float32) - 2.5, (rows, columns)), shape=(len(users), len(catalogue))
    )
    preferred = (rated @ of_items).tolil()
    for row, (places, values) in enumerate(zip(preferred.rows, preferred.data)):
        best = sorted(sorted(zip(places, values), key=lambda pair: -abs(pair[1]))[:TAGS_OF_A_USER])
        length = float(np.linalg.norm([value for _, value in best])) or 1.0
        preferred.rows[row] = [place for place, _ in best]
        preferred.data[row] = [value / length for _, value in best]
    blocks = [preferred.tocsr(), _statistics(pd.Series(users), history.groupby("user").rating)]
    return sparse.hstack(blocks, format="csr", dtype=np.float32)


def _multi_hot(lists: pd.Series, columns: dict[str, int], width: int) -> sparse.csr_matrix:
    """Return a row of length 1 for each list."""
    found = [sorted({columns[text] for text in texts if text in columns}) for texts in lists]
    values = [np.full(len(places), 1 / np.sqrt(max(1, len(places))), np.float32) for places in found]
    pointers = np.cumsum([0, *map(len, found)])
    return sparse.csr_matrix((np.concatenate(values), np.concatenate(found).astype(int), pointers), (len(found), width))


def _statistics(ids: pd.Series, ratings: pd.core.groupby.SeriesGroupBy) -> sparse.csr_matrix:
    counts = ratings.count().reindex(ids, fill_value=0).to_numpy(np.float32)
    means = ratings.mean().reindex(ids).fillna(0).to_numpy(np.float32)
    return sparse.csr_matrix(np.column_stack([np.log1p(counts) / 7, means / 5, counts == 0]))
