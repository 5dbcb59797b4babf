"""Compare two releases: their metrics, and the lists that they give to the same users. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from supabase_bridge.core.comparison import compare_metrics
from supabase_bridge.core.criteria import parse_criterion
from supabase_bridge.core.documents import Metrics
from supabase_bridge.core.errors import InvalidGateError


@dataclass(frozen=True, kw_only=True)
class MetricLine:
    """One metric of both releases.

    Attributes:
        difference: The candidate's value minus the current one. None: one is missing, or they cannot be compared.
        better: Whether the difference is an improvement. None: it is zero, or no criterion gives the direction.
        references: The metric of other methods, by the method, as the candidate recorded them.
    """

    name: str
    now: float | None
    candidate: float | None
    difference: float | None
    better: bool | None
    references: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class JudgedMetrics:
    """The metrics of both releases, those of the gate first.

    Attributes:
        problem: Why no differences are shown: the evaluations had different protocols.
    """

    lines: Sequence[MetricLine]
    problem: str | None

    def count(self, *, better: bool) -> int:
        """Return how many metrics improved, or became worse."""
        return sum(line.better is better for line in self.lines)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """An item of a list, and its score."""

    id: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """An item's place in a list, and in the other release's list.

    Attributes:
        rank: From 1.
        other_rank: None: the other list does not have the item.
    """

    rank: int
    id: str
    score: float
    other_rank: int | None


@dataclass(frozen=True, kw_only=True)
class UserChange:
    """How the list of one user changes.

    Attributes:
        same: The number of items that both lists have.
        length: The number of items of the longer list.
        moved: The mean number of places by which these items moved.
        score_change: The mean score of the candidate's list minus that of the current one.
    """

    user: str
    same: int
    length: int
    moved: float
    score_change: float


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One range of scores, and the share of each release's scores in it."""

    low: float
    high: float
    now: float
    candidate: float


@dataclass(frozen=True, kw_only=True)
class ListComparison:
    """The lists of a sample of users.

    Attributes:
        changes: The users, the most changed first.
    """

    changes: Sequence[UserChange]
    mean_same: float
    mean_length: float
    score_change: float
    bins: Sequence[Bin]

    def users_by_overlap(self) -> list[int]:
        """Return how many users have 0, 1, 2, ... items in both lists."""
        longest = max(change.length for change in self.changes)
        counts = [0] * (longest + 1)
        for change in self.changes:
            counts[change.same] += 1
        return counts


def judge_metrics(now: Metrics, candidate: Metrics) -> JudgedMetrics:
    """Compare the metrics of two releases; a criterion of a gate gives the direction in which one is better."""
    compared = compare_metrics(now, candidate)
    directions = {**_directions(now), **_directions(candidate)}
    references = candidate.reference_metrics or {}
    lines = []
    for change in sorted(compared.changes, key=lambda change: change.name not in directions):
        difference, direction = compared.differences.get(change.name), directions.get(change.name)
        line = MetricLine(
            name=change.name,
            now=change.before,
            candidate=change.after,
            difference=difference,
            better=direction * difference > 0 if difference and direction else None,
            references={
                method: float(values[change.name]) for method, values in references.items() if change.name in values
            },
        )
        lines.append(line)
    return JudgedMetrics(lines=lines, problem=compared.problem)


def compare_lists(
    now: Mapping[str, Sequence[Scored]], candidate: Mapping[str, Sequence[Scored]], *, length: int, bins: int = 24
) -> ListComparison | None:
    """Compare the first items of the lists of the users that both releases have; None if there is no such user."""
    users = [user for user in now if user in candidate]
    pairs = {user: (now[user][:length], candidate[user][:length]) for user in users}
    changes = [_change(user, old, new) for user, (old, new) in pairs.items()]
    if not changes:
        return None
    changes.sort(key=lambda change: (change.same / max(change.length, 1), -change.moved, change.user))
    old_scores = [item.score for old, _ in pairs.values() for item in old]
    new_scores = [item.score for _, new in pairs.values() for item in new]
    return ListComparison(
        changes=changes,
        mean_same=fmean(change.same for change in changes),
        mean_length=fmean(change.length for change in changes),
        score_change=median(new_scores) - median(old_scores) if old_scores and new_scores else 0.0,
        bins=_bins(old_scores, new_scores, bins),
    )


def places(own: Sequence[Scored], other: Sequence[Scored]) -> list[Place]:
    """Return the items of a list with their ranks in the other one."""
    ranks = {item.id: rank for rank, item in enumerate(other, 1)}
    return [
        Place(rank=rank, id=item.id, score=item.score, other_rank=ranks.get(item.id))
        for rank, item in enumerate(own, 1)
    ]


def _change(user: str, old: Sequence[Scored], new: Sequence[Scored]) -> UserChange:
    moves = [abs(place.rank - place.other_rank) for place in places(new, old) if place.other_rank is not None]
    return UserChange(
        user=user,
        same=len(moves),
        length=max(len(old), len(new)),
        moved=fmean(moves) if moves else 0.0,
        score_change=_mean_score(new) - _mean_score(old),
    )


def _mean_score(items: Sequence[Scored]) -> float:
    return fmean(item.score for item in items) if items else 0.0


def _directions(metrics: Metrics) -> dict[str, int]:
    """Return 1 for each metric that a criterion bounds below, and -1 for each that one bounds above."""
    found: dict[str, int] = {}
    for record in metrics.threshold_criteria or ():
        try:
            criterion = parse_criterion(record.criterion)
        except InvalidGateError:
            continue
        signs = {bound.sign[0] for bound in criterion.bounds}
        if len(signs) == 1:
            found[criterion.metric] = 1 if signs == {">"} else -1
    return found


def _bins(old: Sequence[float], new: Sequence[float], count: int) -> list[Bin]:
    """Return the shares of both releases' scores in ranges of equal width."""
    scores = [*old, *new]
    if not old or not new:
        return []
    low, high = min(scores), max(scores)
    width = (high - low) / count or 1.0

    def shares(own: Sequence[float]) -> list[float]:
        counts = [0] * count
        for score in own:
            counts[min(math.floor((score - low) / width), count - 1)] += 1
        return [number / len(own) for number in counts]

    return [
        Bin(low=low + place * width, high=low + (place + 1) * width, now=first, candidate=second)
        for place, (first, second) in enumerate(zip(shares(old), shares(new), strict=True))
    ]
