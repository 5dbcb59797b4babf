"""The lists of recommendations that two releases give to the same users: from their embedding sets, or their towers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from supabase_bridge.client.release import Release
from supabase_bridge.client.resolver import Resolver
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.embeddings.sets import EmbeddingSets
from supabase_bridge.look.comparison import Scored
from supabase_bridge.look.errors import NoListsError
from supabase_bridge.look.towers import SAMPLES, Ranking, rank_sample
from supabase_bridge.settings.model import Settings

USERS = 200
"""The number of users whose lists are compared."""
DEPTH = 50
"""The length of the lists that are read; a page shows their beginning."""


@dataclass(frozen=True, kw_only=True)
class Lists:
    """The lists of the same users in both releases, by user.

    Attributes:
        source: What they were made from.
    """

    now: Mapping[str, Sequence[Scored]]
    candidate: Mapping[str, Sequence[Scored]]
    source: str


def load_lists(resolver: Resolver, settings: Settings, now: Release, candidate: Release) -> Lists:
    """Return the lists of a sample of users; both releases' lists are made in the same way.

    Raises:
        NoListsError: they have neither ready sets with common users, nor samples with common users.
    """
    reasons = []
    if settings.embeddings_url is None:
        reasons.append("SUPABASE_BRIDGE_EMBEDDINGS_URL names no database with embedding sets")
    else:
        try:
            return _of_sets(settings, now, candidate)
        except BridgeError as error:
            reasons.append(str(error))
    try:
        return _of_towers(resolver, now, candidate)
    except BridgeError as error:
        reasons.append(str(error))
    raise NoListsError("; and ".join(reasons))


def _of_sets(settings: Settings, now: Release, candidate: Release) -> Lists:
    with EmbeddingSets.from_settings(settings) as sets:
        users = sets.sample_users(now.model, (now.run_id, candidate.run_id), limit=USERS)
        if not users:
            raise NoListsError("the sets of both releases have no user in common")

        def lists(release: Release) -> dict[str, Sequence[Scored]]:
            found: dict[str, Sequence[Scored]] = {}
            for user in users:
                vector = sets.user_embedding(release.model, release.run_id, user)
                matches = [] if vector is None else sets.match_items(release.model, release.run_id, vector, DEPTH)
                found[user] = [Scored(id=match.id, score=match.score) for match in matches]
            return found

        return Lists(
            now=lists(now),
            candidate=lists(candidate),
            source=f"the embedding sets of both releases, for {len(users)} users that both have",
        )


def _of_towers(resolver: Resolver, now: Release, candidate: Release) -> Lists:
    for release in (now, candidate):
        if missing := [name for name in SAMPLES if name not in release.files]:
            raise NoListsError(f"{release.model}/{release.run_id} carries no {' and no '.join(missing)}")
    with ExitStack() as stack:
        rankings: list[Ranking] = []
        for release in {release.run_id: release for release in (now, candidate)}.values():
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="supabase-bridge-")))
            rankings.append(rank_sample(resolver, release, directory, users=USERS, depth=DEPTH))
    first, last = rankings[0], rankings[-1]
    common = [user for user in first.lists if user in last.lists]
    if not common:
        raise NoListsError("the samples of both releases have no user in common")
    counts = " and ".join(dict.fromkeys(f"{ranking.items:,}" for ranking in (first, last)))
    return Lists(
        now={user: first.lists[user] for user in common},
        candidate={user: last.lists[user] for user in common},
        source=f"the towers of both releases, on their samples of {len(common)} common users and {counts} items",
    )
