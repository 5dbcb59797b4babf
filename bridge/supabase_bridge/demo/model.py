"""A small two-tower recommender in NumPy: generated data, training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Pairs = NDArray[np.int64]

PRICE_COLUMN = -1  # of the item features
NORM_FLOOR = 1e-12  # as in torch.nn.functional.normalize
_LATENT_DIM = 16
_SHARPNESS = 10.0  # the larger, the more predictable the users
_TEMPERATURE = 0.1
_TOP = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """Interactions of users with items, and the features of both.

    User features are weights of preferred tags. Item features are the item's tags, its performers and, last, its
    price. `train` and `validation` have rows (user, item), and no row is in both.
    """

    user_features: Floats
    item_features: Floats
    train: Pairs
    validation: Pairs

    def marked(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Return a matrix with a row per user and a column per item, which is true at `pairs`."""
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
    """Generate users, items and interactions; the same state of `rng` gives the same result.

    Each tag and performer has a random latent vector. A user or item has the sum of its vectors. The smaller the angle
    between user and item, the more probable is an interaction. The price has no influence.

    Args:
        per_user: Number of interactions of each user, in both splits together.
        validation_per_user: Number of interactions of each user in the validation split.
    """
    latent = rng.normal(size=(tag_vocab_size + performer_vocab_size, _LATENT_DIM))
    preferred = _draw_marks(rng, users, tag_vocab_size, 5) * rng.uniform(0.5, 1.5, (users, tag_vocab_size))
    carried = np.hstack([_draw_marks(rng, items, tag_vocab_size, 5), _draw_marks(rng, items, performer_vocab_size, 1)])
    user_vectors, item_vectors = preferred @ latent[:tag_vocab_size], carried @ latent
    affinity = (user_vectors / _lengths(user_vectors)) @ (item_vectors / _lengths(item_vectors)).T
    # With Gumbel noise, the largest scores are a sample without replacement from the softmax of the affinities.
    likeliest = np.argsort(-(_SHARPNESS * affinity + rng.gumbel(size=affinity.shape)), axis=1)[:, :per_user]
    pairs = np.stack([np.indices(likeliest.shape)[0], rng.permuted(likeliest, axis=1)], axis=2).astype(np.int64)
    return Interactions(
        user_features=preferred.astype(np.float32),
        item_features=np.hstack([carried, rng.lognormal(0.0, 0.5, (items, 1))]).astype(np.float32),
        train=pairs[:, validation_per_user:].reshape(-1, 2),
        validation=pairs[:, :validation_per_user].reshape(-1, 2),
    )


def _draw_marks(rng: np.random.Generator, rows: int, columns: int, count: int) -> Floats:
    """Return rows of zeros with `count` ones each, in columns drawn without replacement."""
    chosen = np.argsort(rng.random((rows, columns)), axis=1)[:, :count]
    marks = np.zeros((rows, columns))
    np.put_along_axis(marks, chosen, 1.0, axis=1)
    return marks


def _lengths(vectors: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(vectors, axis=1, keepdims=True)
    return lengths


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Hyperparameters of a training; the same values give the same weights."""

    embedding_dim: int
    hidden_dim: int
    epochs: int
    learning_rate: float
    batch_size: int
    use_price_feature: bool
    seed: int


class Tower(NamedTuple):
    """The weights of one tower; a matrix has a row per output, as in `torch.nn.Linear`."""

    hidden_weight: Floats
    hidden_bias: Floats
    output_weight: Floats
    output_bias: Floats

    def embed(self, features: Floats) -> Floats:
        """Return an embedding of length 1 for each row of `features`."""
        return _forward(self, features)[-1]


class TwoTower(NamedTuple):
    """The weights of a recommender."""

    user_tower: Tower
    item_tower: Tower


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Ranking metrics of a model on the validation split."""

    recall_at_20: float
    map_at_20: float
    auc: float


def train(
    interactions: Interactions, hyperparameters: Hyperparameters, on_epoch: Callable[[int], None] = lambda _: None
) -> TwoTower:
    """Train both towers with Adam (Kingma and Ba, ICLR 2015) on mini-batches of the training interactions.

    Without `use_price_feature` the weights of the price are zero, so the model always has the same inputs.

    Args:
        interactions: The data; the validation split is not used.
        hyperparameters: `seed` determines the initial weights and the order of the interactions.
        on_epoch: Called at the begin of each epoch with its number, from 1.
    """
    rng = np.random.default_rng(hyperparameters.seed)
    weights = _initial_weights(rng, interactions, hyperparameters)
    item_features = interactions.item_features.copy()
    if not hyperparameters.use_price_feature:
        item_features[:, PRICE_COLUMN] = 0.0
        weights[4][:, PRICE_COLUMN] = 0.0
    liked, size = interactions.marked(interactions.train), hyperparameters.batch_size
    means = [np.zeros_like(weight) for weight in weights]
    squares = [np.zeros_like(weight) for weight in weights]
    step = 0
    for epoch in range(hyperparameters.epochs):
        on_epoch(epoch + 1)
        shuffled = rng.permutation(interactions.train)
        for start in range(0, len(shuffled), size):
            users, items = shuffled[start : start + size].T
            model, marks = _model_of(weights), liked[np.ix_(users, items)]
            gradient = loss_and_gradient(model, interactions.user_features[users], item_features[items], marks)[1]
            step += 1
            rate = hyperparameters.learning_rate * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
            for index, slope in enumerate([*gradient.user_tower, *gradient.item_tower]):
                means[index] = 0.9 * means[index] + 0.1 * slope
                squares[index] = 0.999 * squares[index] + 0.001 * slope**2
                weights[index] = weights[index] - rate * means[index] / (np.sqrt(squares[index]) + 1e-8)
    return _model_of(weights)


def loss_and_gradient(
    model: TwoTower, user_features: Floats, item_features: Floats, liked: NDArray[np.bool_]
) -> tuple[float, TwoTower]:
    """Return the mean in-batch softmax loss and its gradient, in the shape of the model.

    Args:
        user_features: One row for each interaction of the batch.
        item_features: One row for each interaction of the batch.
        liked: Whether the user of a row likes the item of a column; such an item is no negative example.
    """
    size = len(user_features)
    user, item = model.user_tower.embed(user_features), model.item_tower.embed(item_features)
    own = np.eye(size, dtype=bool)
    logits = np.where(liked & ~own, -np.inf, user @ item.T / _TEMPERATURE)
    logits = logits - logits.max(axis=1, keepdims=True)
    odds = np.exp(logits)
    total = odds.sum(axis=1, keepdims=True)
    slope = (odds / total - own.astype(odds.dtype)) / (size * _TEMPERATURE)
    return float(np.mean(np.log(total) - logits[own][:, None])), TwoTower(
        user_tower=_backward(model.user_tower, user_features, slope @ item),
        item_tower=_backward(model.item_tower, item_features, slope.T @ user),
    )


def evaluate(model: TwoTower, interactions: Interactions) -> Evaluation:
    """Rank, for each user, all items except those of the training split, and compare with the validation split.

    Each metric is a mean over users. MAP divides by the number of held-out items, at most 20. AUC is the probability
    that a held-out item ranks above an item without interaction.
    """
    scores = model.user_tower.embed(interactions.user_features) @ model.item_tower.embed(interactions.item_features).T
    seen, wanted = interactions.marked(interactions.train), interactions.marked(interactions.validation)
    order = np.argsort(np.where(seen, np.inf, -scores), axis=1, kind="stable")
    found = np.take_along_axis(wanted, order, axis=1)
    candidates, held_out = (~seen).sum(axis=1), wanted.sum(axis=1)
    top = found[:, :_TOP]
    precision = np.cumsum(top, axis=1) / np.arange(1, top.shape[1] + 1)
    # The number of items below a held-out item, minus the held-out items among them.
    below = ((candidates[:, None] - 1 - np.arange(found.shape[1])) * found).sum(axis=1) - held_out * (held_out - 1) / 2
    return Evaluation(
        recall_at_20=float(np.mean(top.sum(axis=1) / held_out)),
        map_at_20=float(np.mean((precision * top).sum(axis=1) / np.minimum(held_out, _TOP))),
        auc=float(np.mean(below / (held_out * (candidates - held_out)))),
    )


def _forward(tower: Tower, features: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the activations of the hidden layer, the lengths of the outputs, and the embeddings."""
    hidden = np.maximum(features @ tower.hidden_weight.T + tower.hidden_bias, 0)
    output = hidden @ tower.output_weight.T + tower.output_bias
    lengths = np.maximum(_lengths(output), NORM_FLOOR)
    return hidden, lengths, output / lengths


def _backward(tower: Tower, features: Floats, slope: Floats) -> Tower:
    """Propagate the gradient of the embeddings back to the weights."""
    hidden, lengths, embedding = _forward(tower, features)
    output = (slope - embedding * (slope * embedding).sum(axis=1, keepdims=True)) / lengths
    before = (output @ tower.output_weight) * (hidden > 0)
    return Tower(before.T @ features, before.sum(axis=0), output.T @ hidden, output.sum(axis=0))


def _model_of(weights: list[Floats]) -> TwoTower:
    return TwoTower(Tower(*weights[:4]), Tower(*weights[4:]))


def _initial_weights(rng: np.random.Generator, data: Interactions, hyperparameters: Hyperparameters) -> list[Floats]:
    """Draw the weights of the user tower, then of the item tower, as `torch.nn.Linear` does."""
    weights: list[Floats] = []
    hidden, embedding = hyperparameters.hidden_dim, hyperparameters.embedding_dim
    for inputs in (data.user_features.shape[1], data.item_features.shape[1]):
        for fan_in, fan_out in ((inputs, hidden), (hidden, embedding)):
            for shape in ((fan_out, fan_in), (fan_out,)):
                weights.append(rng.uniform(-(fan_in**-0.5), fan_in**-0.5, shape).astype(np.float32))
    return weights
