"""The demonstration's training: its gradients, its repeatability, its measures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from supabase_bridge.demo import run as scenario
from supabase_bridge.demo.model import (
    PRICE_COLUMN,
    Evaluation,
    Floats,
    Hyperparameters,
    Interactions,
    Tower,
    TwoTower,
    evaluate,
    generate_interactions,
    loss_and_gradient,
    train,
)

BRIEF = Hyperparameters(
    embedding_dim=4, hidden_dim=6, epochs=2, learning_rate=0.01, batch_size=16, use_price_feature=True, seed=7
)


def few_interactions(seed: int = 1) -> Interactions:
    return generate_interactions(
        np.random.default_rng(seed),
        users=20,
        items=40,
        tag_vocab_size=9,
        performer_vocab_size=4,
        per_user=8,
        validation_per_user=3,
    )


def random_model(rng: np.random.Generator, *, user_dim: int, item_dim: int) -> TwoTower:
    def tower(inputs: int) -> Tower:
        return Tower(
            hidden_weight=rng.normal(size=(6, inputs)),
            hidden_bias=rng.normal(size=6),
            output_weight=rng.normal(size=(4, 6)),
            output_bias=rng.normal(size=4),
        )

    return TwoTower(user_tower=tower(user_dim), item_tower=tower(item_dim))


def weights_of(model: TwoTower) -> list[Floats]:
    return [*model.user_tower, *model.item_tower]


def test_a_generator_in_the_same_state_draws_the_same_interactions() -> None:
    first, second, other = few_interactions(), few_interactions(), few_interactions(seed=2)
    assert np.array_equal(first.user_features, second.user_features)
    assert np.array_equal(first.item_features, second.item_features)
    assert np.array_equal(first.train, second.train)
    assert np.array_equal(first.validation, second.validation)
    assert not np.array_equal(first.train, other.train)


def test_training_and_validation_share_no_interaction() -> None:
    interactions = few_interactions()
    train_pairs = {tuple(pair) for pair in interactions.train.tolist()}
    validation_pairs = {tuple(pair) for pair in interactions.validation.tolist()}
    assert len(train_pairs) == 20 * 5
    assert len(validation_pairs) == 20 * 3
    assert train_pairs.isdisjoint(validation_pairs)


def test_item_features_are_tags_then_performers_then_the_price() -> None:
    interactions = few_interactions()
    assert interactions.user_features.shape[1] == 9
    assert interactions.item_features.shape[1] == 9 + 4 + 1
    assert set(np.unique(interactions.item_features[:, :PRICE_COLUMN])) == {0.0, 1.0}
    assert np.all(interactions.item_features[:, PRICE_COLUMN] > 0)


def test_gradients_agree_with_finite_differences() -> None:
    rng = np.random.default_rng(3)
    model = random_model(rng, user_dim=5, item_dim=7)
    user_features, item_features = rng.normal(size=(8, 5)), rng.normal(size=(8, 7))
    liked = rng.random((8, 8)) < 0.2

    def loss() -> float:
        return loss_and_gradient(model, user_features, item_features, liked)[0]

    _, gradient = loss_and_gradient(model, user_features, item_features, liked)
    for weights, slopes in zip(weights_of(model), weights_of(gradient), strict=True):
        assert np.abs(slopes).max() > 1e-3
        for place in np.ndindex(weights.shape):
            kept = weights[place]
            weights[place] = kept + 1e-6
            above = loss()
            weights[place] = kept - 1e-6
            below = loss()
            weights[place] = kept
            assert slopes[place] == pytest.approx((above - below) / 2e-6, rel=1e-5, abs=1e-7)


def test_an_item_the_user_likes_is_no_counter_example() -> None:
    rng = np.random.default_rng(4)
    model = random_model(rng, user_dim=5, item_dim=7)
    user_features, item_features = rng.normal(size=(2, 5)), rng.normal(size=(2, 7))
    liked_both = np.ones((2, 2), dtype=bool)
    loss, gradient = loss_and_gradient(model, user_features, item_features, liked_both)
    assert loss == 0.0
    assert all(np.all(slopes == 0.0) for slopes in weights_of(gradient))


def test_the_same_hyperparameters_give_the_same_weights() -> None:
    interactions = few_interactions()
    first, second = train(interactions, BRIEF), train(interactions, BRIEF)
    other = train(interactions, replace(BRIEF, seed=8))
    assert all(np.array_equal(a, b) for a, b in zip(weights_of(first), weights_of(second), strict=True))
    assert not np.array_equal(first.user_tower.hidden_weight, other.user_tower.hidden_weight)
    assert all(weights.dtype == np.float32 for weights in weights_of(first))


def test_training_does_not_look_at_the_validation() -> None:
    interactions = few_interactions()
    without = replace(interactions, validation=interactions.validation[:0])
    both = zip(weights_of(train(interactions, BRIEF)), weights_of(train(without, BRIEF)), strict=True)
    assert all(np.array_equal(a, b) for a, b in both)


@pytest.mark.parametrize("use_price_feature", [True, False])
def test_training_leaves_the_interactions_as_they_were(use_price_feature: bool) -> None:
    interactions = few_interactions()
    train(interactions, replace(BRIEF, use_price_feature=use_price_feature))
    assert np.array_equal(interactions.item_features, few_interactions().item_features)


@pytest.mark.parametrize("use_price_feature", [True, False])
def test_the_price_matters_only_to_a_model_that_uses_it(use_price_feature: bool) -> None:
    interactions = few_interactions()
    model = train(interactions, replace(BRIEF, use_price_feature=use_price_feature))
    dearer = interactions.item_features.copy()
    dearer[:, PRICE_COLUMN] *= 3
    same = np.array_equal(model.item_tower.embed(dearer), model.item_tower.embed(interactions.item_features))
    assert same is not use_price_feature


def test_embeddings_have_length_one() -> None:
    interactions = few_interactions()
    embeddings = train(interactions, BRIEF).item_tower.embed(interactions.item_features)
    assert embeddings.shape == (40, BRIEF.embedding_dim)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1.0, abs=1e-6)


def test_the_loss_falls_with_each_epoch() -> None:
    interactions = few_interactions()
    users, items = interactions.train.T
    liked = interactions.marked(interactions.train)[np.ix_(users, items)]
    losses = [
        loss_and_gradient(
            train(interactions, replace(BRIEF, epochs=epochs)),
            interactions.user_features[users],
            interactions.item_features[items],
            liked,
        )[0]
        for epochs in range(5)
    ]
    assert losses == sorted(losses, reverse=True)


def measured_one_by_one(scores: Floats, interactions: Interactions) -> Evaluation:
    """Compute the measures by their definitions, a user at a time."""
    recalls, averages, chances = [], [], []
    for user, row in enumerate(scores):
        seen = {int(item) for who, item in interactions.train if who == user}
        wanted = {int(item) for who, item in interactions.validation if who == user}
        ranked = sorted((item for item in range(len(row)) if item not in seen), key=lambda item: -row[item])
        hits = [item in wanted for item in ranked[:20]]
        recalls.append(sum(hits) / len(wanted))
        averages.append(sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / min(len(wanted), 20))
        others = [item for item in ranked if item not in wanted]
        wins = [row[good] > row[bad] for good in wanted for bad in others]
        chances.append(sum(wins) / len(wins))
    return Evaluation(
        recall_at_20=float(np.mean(recalls)), map_at_20=float(np.mean(averages)), auc=float(np.mean(chances))
    )


def test_the_measures_are_what_their_definitions_say() -> None:
    interactions = few_interactions()
    model = train(interactions, BRIEF)
    scores = model.user_tower.embed(interactions.user_features) @ model.item_tower.embed(interactions.item_features).T
    expected, actual = measured_one_by_one(scores, interactions), evaluate(model, interactions)
    assert actual.recall_at_20 == pytest.approx(expected.recall_at_20)
    assert actual.map_at_20 == pytest.approx(expected.map_at_20)
    assert actual.auc == pytest.approx(expected.auc)


@pytest.mark.exhaustive
def test_both_releases_would_pass_a_gate_and_the_second_is_better() -> None:
    interactions = scenario.interactions()
    first = evaluate(train(interactions, scenario.FIRST), interactions)
    second = evaluate(train(interactions, scenario.SECOND), interactions)
    assert 0.65 < first.recall_at_20 < second.recall_at_20 - 0.02 < 0.76
    assert second.map_at_20 > first.map_at_20 + 0.02
    assert 0.88 < first.auc < second.auc < 0.95
