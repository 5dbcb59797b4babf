"""Interactions of generated users with generated items, for the demonstration's recommender to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Pairs = NDArray[np.int64]

PRICE_COLUMN = -1  # of the item features
_LATENT_DIM = 16
_SHARPNESS = 10.0  # the larger, the more predictable the users


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """Who turned to what, beside the features of both.

    User features are weights of preferred tags. Item features are the item's tags, its performers and, last, its
    price. `train` and `validation` hold rows (user, item) and share none.
    """

    user_features: Floats
    item_features: Floats
    train: Pairs
    validation: Pairs
    tag_vocab_size: int
    performer_vocab_size: int

    @property
    def user_feature_dim(self) -> int:
        """The length of a user's feature vector, which is the number of tags that can be preferred."""
        return int(self.user_features.shape[1])

    @property
    def item_feature_dim(self) -> int:
        """The length of an item's feature vector."""
        return int(self.item_features.shape[1])

    def marked(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Return a matrix with a row per user and a column per item that is true at `pairs`."""
        marks = np.zeros((len(self.user_features), len(self.item_features)), dtype=bool)
        marks[pairs[:, 0], pairs[:, 1]] = True
        return marks


def generate_interactions(
    rng: np.random.Generator,
    *,
    users: int = 1500,
    items: int = 240,
    tag_vocab_size: int = 48,
    performer_vocab_size: int = 15,
    per_user: int = 24,
    validation_per_user: int = 6,
) -> Interactions:
    """Draw users who prefer some tags, items that carry some, and what those users would turn to.

    Tags and performers point in latent directions, users and items where theirs point on the whole; the nearer the
    two, the likelier the interaction. The price has no bearing on it.

    Args:
        rng: the only source of chance; a generator in the same state draws the same interactions.
        users: how many users to draw.
        items: how many items to draw.
        tag_vocab_size: how many tags there are, and so the `user_feature_dim`.
        performer_vocab_size: how many performers there are; these, the tags and the price are the `item_feature_dim`.
        per_user: the interactions of each user, of both splits together.
        validation_per_user: how many of those are held out of the training.
    """
    latent = rng.normal(size=(tag_vocab_size + performer_vocab_size, _LATENT_DIM))
    preferred = _draw_marks(rng, users, tag_vocab_size, 5) * rng.uniform(0.5, 1.5, (users, tag_vocab_size))
    carried = np.hstack([_draw_marks(rng, items, tag_vocab_size, 5), _draw_marks(rng, items, performer_vocab_size, 1)])
    affinity = _normalise(preferred @ latent[:tag_vocab_size]) @ _normalise(carried @ latent).T
    # Gumbel noise makes the largest scores a draw without replacement from the softmax of the affinities.
    likeliest = np.argsort(-(_SHARPNESS * affinity + rng.gumbel(size=affinity.shape)), axis=1)[:, :per_user]
    pairs = np.stack([np.indices(likeliest.shape)[0], rng.permuted(likeliest, axis=1)], axis=2).astype(np.int64)
    return Interactions(
        user_features=preferred.astype(np.float32),
        item_features=np.hstack([carried, rng.lognormal(0.0, 0.5, (items, 1))]).astype(np.float32),
        train=pairs[:, validation_per_user:].reshape(-1, 2),
        validation=pairs[:, :validation_per_user].reshape(-1, 2),
        tag_vocab_size=tag_vocab_size,
        performer_vocab_size=performer_vocab_size,
    )


def _draw_marks(rng: np.random.Generator, rows: int, columns: int, count: int) -> Floats:
    """Return rows of zeros with `count` ones each, in columns drawn without replacement."""
    chosen = np.argsort(rng.random((rows, columns)), axis=1)[:, :count]
    marks = np.zeros((rows, columns))
    np.put_along_axis(marks, chosen, 1.0, axis=1)
    return marks


def _normalise(vectors: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths
