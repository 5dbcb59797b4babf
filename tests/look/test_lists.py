"""The lists of two releases: from their embedding sets, or from their towers and samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from pydantic import SecretStr

from supabase_bridge.client.release import Release
from supabase_bridge.client.resolver import Resolver
from supabase_bridge.core.errors import InvalidNameError
from supabase_bridge.embeddings.rows import Embeddings
from supabase_bridge.embeddings.sets import EmbeddingSets
from supabase_bridge.look.comparison import compare_lists
from supabase_bridge.look.errors import LookFileError, NoListsError
from supabase_bridge.look.lists import DEPTH, load_lists
from supabase_bridge.look.opened import TITLES_NAME, open_side, reference_of
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.directory import DirectoryStore
from tests.look.releases import ITEMS, TITLES, USERS, features, lay_out, npz, sample_files, two_towers
from tests.support.embedding_sets import WIDTH, rows
from tests.support.small_releases import PLAIN, keys_of, run_id


@pytest.fixture
def settings(store: DirectoryStore) -> Settings:
    assert store.name
    return Settings.load(reading=True)


@pytest.fixture
def resolver(settings: Settings) -> Iterator[Resolver]:
    with Resolver.from_settings(settings) as made:
        yield made


def release(resolver: Resolver, number: int) -> Release:
    return resolver.resolve(f"two_tower/{run_id(number)}")


def test_towers_rank_the_items_of_the_sample(pair: DirectoryStore, resolver: Resolver, settings: Settings) -> None:
    assert pair.name
    lists = load_lists(resolver, settings, release(resolver, 1), release(resolver, 2))
    assert lists.source == f"the towers of both releases, on their samples of {USERS} common users and {ITEMS} items"
    assert len(lists.now) == len(lists.candidate) == USERS
    assert {len(found) for found in (*lists.now.values(), *lists.candidate.values())} == {DEPTH}
    weights = np.random.default_rng(0)
    users, items = (
        rows_of @ weights.standard_normal((16, 16)).astype(np.float32)
        for _, rows_of in (features("user", USERS), features("item", ITEMS))
    )
    scores = (users / np.linalg.norm(users, axis=1, keepdims=True)) @ (
        items / np.linalg.norm(items, axis=1, keepdims=True)
    ).T
    assert [item.id for item in lists.now["user-7"]] == [f"item-{n}" for n in np.argsort(-scores[7])[:DEPTH]]
    assert lists.now["user-7"][0].score == pytest.approx(scores[7].max(), abs=1e-5)


def test_a_release_compared_with_itself_keeps_every_list(
    pair: DirectoryStore, resolver: Resolver, settings: Settings
) -> None:
    assert pair.name
    same = release(resolver, 1)
    lists = load_lists(resolver, settings, same, same)
    compared = compare_lists(lists.now, lists.candidate, length=20)
    assert compared is not None
    assert (compared.mean_same, compared.score_change) == (20, 0)


def test_a_tower_of_its_own_is_used_where_the_release_carries_it(
    store: DirectoryStore, resolver: Resolver, settings: Settings
) -> None:
    towers = {keys_of(1).tower_name(tower): two_towers(0) for tower in ("user", "item")}
    lay_out(store, 1, onnx_bytes=b"is not read", files={**sample_files(), **towers})
    found = release(resolver, 1)
    assert len(load_lists(resolver, settings, found, found).now) == USERS


def test_sets_are_searched_for_users_that_both_have(
    pair: DirectoryStore, resolver: Resolver, settings: Settings, sets: EmbeddingSets, embeddings_url: str
) -> None:
    assert pair.name
    settings = settings.with_changes(embeddings_url=SecretStr(embeddings_url))
    first, second = (release(resolver, number) for number in (1, 2))
    users = rows(6, prefix="user")
    half = Embeddings(ids=users.ids[:3], matrix=users.matrix[:3])
    sets.load(first, items=rows(80), users=users)
    with_towers = load_lists(resolver, settings, first, second)
    assert with_towers.source.startswith("the towers")
    sets.load(second, items=rows(80, seed=5), users=half)
    lists = load_lists(resolver, settings, first, second)
    assert lists.source == "the embedding sets of both releases, for 3 users that both have"
    assert set(lists.now) == set(lists.candidate) == set(half.ids)
    best = rows(80).ids[int(np.argmax(rows(80).matrix @ users.matrix[1]))]
    assert lists.now["user-1"][0].id == best
    assert [len(found) for found in lists.candidate.values()] == [DEPTH] * 3
    assert sets.user_embedding("two_tower", first.run_id, "no such user") is None
    vector = sets.user_embedding("two_tower", first.run_id, "user-1")
    assert vector is not None
    assert vector == pytest.approx(users.matrix[1].tolist(), abs=1e-3)
    assert len(vector) == WIDTH


def test_releases_without_sets_and_samples_say_what_is_missing(
    store: DirectoryStore, resolver: Resolver, settings: Settings, embeddings_url: str
) -> None:
    lay_out(store, 1)
    found = release(resolver, 1)
    message = (
        r"SUPABASE_BRIDGE_EMBEDDINGS_URL names no database with embedding sets; and .*carries no "
        r"features/sample_users.npz and no features/sample_items.npz"
    )
    with pytest.raises(NoListsError, match=message):
        load_lists(resolver, settings, found, found)
    with_url = settings.with_changes(embeddings_url=SecretStr(embeddings_url))
    with pytest.raises(NoListsError, match=f"two_tower/{found.run_id} has no complete set of embeddings; load it with"):
        load_lists(resolver, with_url, found, found)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"features/sample_users.npz": b"no archive"}, "sample_users.npz: expected the arrays"),
        ({"features/sample_users.npz": npz(ids=np.arange(2))}, "expected the arrays `ids` and `features`"),
        ({"features/sample_users.npz": npz(ids=np.array([object()]), features=np.zeros((1, 16)))}, "expected"),
        ({"features/sample_users.npz": npz(ids=np.arange(3), features=np.zeros((2, 16)))}, "3 ids for 2 rows"),
        ({"features/sample_users.npz": npz(ids=np.arange(2), features=np.zeros(2))}, "1 dimensions, not 2"),
        ({"features/sample_users.npz": npz(ids=np.arange(0), features=np.zeros((0, 16)))}, "it has no rows"),
        ({"features/sample_users.npz": npz(ids=np.arange(2), features=np.ones((2, 3)))}, "user tower cannot be run"),
        (
            {
                "features/sample_items.npz": npz(
                    ids=np.arange(1), data=np.ones(1), indices=[99], indptr=[0, 1], shape=[1, 16]
                )
            },
            "its parts do not fit each other",
        ),
    ],
)
def test_a_malformed_sample_is_named(
    store: DirectoryStore, resolver: Resolver, settings: Settings, files: dict[str, bytes], problem: str
) -> None:
    lay_out(store, 1, onnx_bytes=two_towers(0), files={**sample_files(), **files})
    found = release(resolver, 1)
    with pytest.raises(NoListsError, match=problem):
        load_lists(resolver, settings, found, found)


def test_titles_come_from_the_release_and_are_texts(store: DirectoryStore, resolver: Resolver) -> None:
    lay_out(store, 1, files=sample_files())
    lay_out(store, 2)
    sides = [open_side(resolver, f"two_tower/{run_id(number)}") for number in (1, 2)]
    assert [side.titles for side in sides] == [TITLES, {}]
    for number, data in ((3, b"["), (4, b"[]"), (5, b'{"a": 1}')):
        lay_out(store, number, files={TITLES_NAME: data})
        with pytest.raises(LookFileError, match=r"features/titles\.json: .*docs/look\.md"):
            open_side(resolver, f"two_tower/{run_id(number)}")


def test_a_side_is_a_channel_or_a_run_id() -> None:
    assert reference_of("two_tower", "staging") == "two_tower@staging"
    assert reference_of("two_tower", str(run_id(1))) == f"two_tower/{run_id(1)}"
    with pytest.raises(InvalidNameError, match="'7' is neither a channel, such as latest, nor a run_id"):
        reference_of("two_tower", "7")


def test_a_damaged_file_of_a_release_is_refused(store: DirectoryStore, resolver: Resolver, settings: Settings) -> None:
    lay_out(store, 1, onnx_bytes=two_towers(0), files=sample_files())
    found = release(resolver, 1)
    store.overwrite(keys_of(1).onnx, two_towers(1, drift=1), PLAIN)
    with pytest.raises(NoListsError, match=f"{keys_of(1).onnx_name}.*SHA-256"):
        load_lists(resolver, settings, found, found)
