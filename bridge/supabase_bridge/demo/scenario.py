"""The two trainings that the demonstration releases one after the other."""

from __future__ import annotations

import numpy as np

from supabase_bridge.demo.interactions import Interactions, generate_interactions
from supabase_bridge.demo.two_tower import Hyperparameters

FIRST = Hyperparameters(
    embedding_dim=12,
    hidden_dim=32,
    epochs=4,
    learning_rate=0.001,
    batch_size=128,
    use_price_feature=True,
    seed=20251015,
)
SECOND = Hyperparameters(
    embedding_dim=32,
    hidden_dim=64,
    epochs=8,
    learning_rate=0.001,
    batch_size=128,
    use_price_feature=False,
    seed=20251031,
)


def interactions() -> Interactions:
    """Return the interactions both trainings learn from, the same at each call."""
    return generate_interactions(np.random.default_rng(20251004))
