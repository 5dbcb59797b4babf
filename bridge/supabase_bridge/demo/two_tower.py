"""A two-tower recommender trained in numpy alone.

Each tower is what PyTorch would write as `Sequential(Linear, ReLU, Linear)` followed by `F.normalize`; a user likes an
item the more, the larger the dot product of their embeddings. The loss is the softmax over the items of a batch, as in
Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations" (RecSys 2019), less the
correction for popular items, since none is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supabase_bridge.demo.interactions import PRICE_COLUMN, Floats, Interactions, Pairs

NORM_FLOOR = 1e-12  # as in torch.nn.functional.normalize
TEMPERATURE = 0.1
TOP = 20


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What a data scientist chooses before training; the same choice gives the same weights."""

    embedding_dim: int
    hidden_dim: int
    epochs: int
    learning_rate: float
    batch_size: int
    use_price_feature: bool
    seed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Tower:
    """The weights of one tower; a matrix has a row per output, as in `torch.nn.Linear`."""

    hidden_weight: Floats
    hidden_bias: Floats
    output_weight: Floats
    output_bias: Floats

    def arrays(self) -> tuple[Floats, ...]:
        """Return the weights in the order of the fields."""
        return (self.hidden_weight, self.hidden_bias, self.output_weight, self.output_bias)

    def embed(self, features: Floats) -> Floats:
        """Return an embedding of length 1 for each row of `features`."""
        return _forward(self, features).embedding


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoTower:
    """The weights of a recommender."""

    user_tower: Tower
    item_tower: Tower

    def arrays(self) -> tuple[Floats, ...]:
        """Return the weights of the user tower, then those of the item tower."""
        return self.user_tower.arrays() + self.item_tower.arrays()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a model ranks the items that users turned to in the validation interactions."""

    recall_at_20: float
    map_at_20: float
    auc: float


def train(
    interactions: Interactions,
    hyperparameters: Hyperparameters,
    progress: Callable[[int, float], None] | None = None,
) -> TwoTower:
    """Train both towers with Adam (Kingma and Ba, ICLR 2015) on mini-batches of the training interactions.

    Without `use_price_feature` the weights of the price are zero, so the model takes the same features either way.

    Args:
        interactions: the data, of which the validation split is not looked at.
        hyperparameters: the choices; `seed` fixes the initial weights and the order of the interactions.
        progress: called after each epoch with its number, from 1, and its mean loss.
    """
    rng = np.random.default_rng(hyperparameters.seed)
    item_features = interactions.item_features.copy()
    if not hyperparameters.use_price_feature:
        item_features[:, PRICE_COLUMN] = 0.0
    liked = interactions.marked(interactions.train)
    weights = list(_initial_model(rng, interactions, hyperparameters).arrays())
    means = [np.zeros_like(weight) for weight in weights]
    squares = [np.zeros_like(weight) for weight in weights]
    step = 0
    for epoch in range(1, hyperparameters.epochs + 1):
        losses = []
        for batch in _shuffled_batches(rng, interactions.train, hyperparameters.batch_size):
            users, items = batch[:, 0], batch[:, 1]
            loss, gradient = loss_and_gradient(
                _model_of(weights), interactions.user_features[users], item_features[items], liked[np.ix_(users, items)]
            )
            losses.append(loss)
            step += 1
            rate = hyperparameters.learning_rate * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
            for index, slope in enumerate(gradient.arrays()):
                means[index] = 0.9 * means[index] + 0.1 * slope
                squares[index] = 0.999 * squares[index] + 0.001 * slope**2
                weights[index] = weights[index] - rate * means[index] / (np.sqrt(squares[index]) + 1e-8)
        if progress is not None:
            progress(epoch, float(np.mean(losses)))
    return _model_of(weights)


def loss_and_gradient(
    model: TwoTower, user_features: Floats, item_features: Floats, liked: NDArray[np.bool_]
) -> tuple[float, TwoTower]:
    """Return the mean in-batch softmax loss and, in the place of each weight, its derivative.

    Args:
        model: the weights.
        user_features: a row per interaction of the batch.
        item_features: a row per interaction of the batch.
        liked: whether the user of a row likes the item of a column; if so, that item is no counter-example.
    """
    size = len(user_features)
    user, item = _forward(model.user_tower, user_features), _forward(model.item_tower, item_features)
    own = np.eye(size, dtype=bool)
    logits = np.where(liked & ~own, -np.inf, user.embedding @ item.embedding.T / TEMPERATURE)
    logits = logits - logits.max(axis=1, keepdims=True)
    odds = np.exp(logits)
    total = odds.sum(axis=1, keepdims=True)
    slope = (odds / total - own.astype(odds.dtype)) / (size * TEMPERATURE)
    return float(np.mean(np.log(total) - logits[own][:, None])), TwoTower(
        user_tower=_backward(model.user_tower, user_features, user, slope @ item.embedding),
        item_tower=_backward(model.item_tower, item_features, item, slope.T @ user.embedding),
    )


def evaluate(model: TwoTower, interactions: Interactions) -> Evaluation:
    """Rank, for each user, all items but those of the training, and compare with the validation.

    Each measure is a mean over users. MAP divides by the number of held-out items, at most 20; AUC is the chance that a
    held-out item ranks above one the user never turned to.
    """
    scores = model.user_tower.embed(interactions.user_features) @ model.item_tower.embed(interactions.item_features).T
    seen, wanted = interactions.marked(interactions.train), interactions.marked(interactions.validation)
    order = np.argsort(np.where(seen, np.inf, -scores), axis=1, kind="stable")
    found = np.take_along_axis(wanted, order, axis=1)
    candidates, held_out = (~seen).sum(axis=1), wanted.sum(axis=1)
    top = found[:, :TOP]
    precision = np.cumsum(top, axis=1) / np.arange(1, top.shape[1] + 1)
    # What ranks below a held-out item, less the held-out items among that.
    below = ((candidates[:, None] - 1 - np.arange(found.shape[1])) * found).sum(axis=1) - held_out * (held_out - 1) / 2
    return Evaluation(
        recall_at_20=float(np.mean(top.sum(axis=1) / held_out)),
        map_at_20=float(np.mean((precision * top).sum(axis=1) / np.minimum(held_out, TOP))),
        auc=float(np.mean(below / (held_out * (candidates - held_out)))),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pass:
    hidden: Floats
    norm: Floats
    embedding: Floats


def _forward(tower: Tower, features: Floats) -> _Pass:
    hidden = np.maximum(features @ tower.hidden_weight.T + tower.hidden_bias, 0)
    output = hidden @ tower.output_weight.T + tower.output_bias
    norm = np.maximum(np.linalg.norm(output, axis=1, keepdims=True), NORM_FLOOR)
    return _Pass(hidden=hidden, norm=norm, embedding=output / norm)


def _backward(tower: Tower, features: Floats, seen: _Pass, slope: Floats) -> Tower:
    """Carry the loss's slope at the embeddings back to the weights."""
    along = (slope * seen.embedding).sum(axis=1, keepdims=True)
    output = (slope - seen.embedding * along) / seen.norm
    hidden = (output @ tower.output_weight) * (seen.hidden > 0)
    return _tower_of([hidden.T @ features, hidden.sum(axis=0), output.T @ seen.hidden, output.sum(axis=0)])


def _tower_of(arrays: Sequence[Floats]) -> Tower:
    return Tower(hidden_weight=arrays[0], hidden_bias=arrays[1], output_weight=arrays[2], output_bias=arrays[3])


def _model_of(arrays: Sequence[Floats]) -> TwoTower:
    return TwoTower(user_tower=_tower_of(arrays[:4]), item_tower=_tower_of(arrays[4:]))


def _initial_model(rng: np.random.Generator, data: Interactions, hyperparameters: Hyperparameters) -> TwoTower:
    arrays: list[Floats] = []
    hidden, embedding = hyperparameters.hidden_dim, hyperparameters.embedding_dim
    for inputs in (data.user_feature_dim, data.item_feature_dim):
        for fan_in, fan_out in ((inputs, hidden), (hidden, embedding)):
            bound = fan_in**-0.5  # as torch.nn.Linear starts
            for shape in ((fan_out, fan_in), (fan_out,)):
                arrays.append(rng.uniform(-bound, bound, shape).astype(np.float32))
    model = _model_of(arrays)
    if not hyperparameters.use_price_feature:
        model.item_tower.hidden_weight[:, PRICE_COLUMN] = 0.0
    return model


def _shuffled_batches(rng: np.random.Generator, pairs: Pairs, size: int) -> Iterator[Pairs]:
    order = rng.permutation(len(pairs))
    for start in range(0, len(pairs), size):
        yield pairs[order[start : start + size]]
