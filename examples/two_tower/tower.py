"""The two towers (format `two_tower.feature_mlp`): trained with sparse rows, exported with dense ones."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

HIDDEN, EMBEDDING = 512, 256


class Tower(nn.Module):
    """Linear - ReLU - Linear - L2; the first layer as a bag of embeddings, so that a step costs what the row holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.EmbeddingBag(width, HIDDEN, mode="sum", sparse=True)
        self.bias = nn.Parameter(torch.zeros(HIDDEN))
        self.second = nn.Linear(HIDDEN, EMBEDDING)
        nn.init.normal_(self.first.weight, std=0.02)

    def forward(self, rows: sparse.csr_matrix) -> torch.Tensor:
        places, offsets = (torch.from_numpy(part.astype(np.int64)) for part in (rows.indices, rows.indptr[:-1]))
        hidden = self.first(places, offsets, per_sample_weights=torch.from_numpy(rows.data)) + self.bias
        return functional.normalize(self.second(functional.relu(hidden)))

    def dense(self) -> nn.Sequential:
        """Return the same function of dense rows, without the normalisation."""
        first = nn.Linear(self.first.num_embeddings, HIDDEN)
        with torch.no_grad():
            first.weight.copy_(self.first.weight.T)
            first.bias.copy_(self.bias)
        return nn.Sequential(first, nn.ReLU(), self.second)


class TwoTower(nn.Module):
    """Both towers over dense rows, as they are exported; its state_dict is the release's .pt file."""

    def __init__(self, user: nn.Sequential, item: nn.Sequential) -> None:
        super().__init__()
        self.user, self.item = user, item

    def forward(self, user_features: torch.Tensor, item_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return functional.normalize(self.user(user_features)), functional.normalize(self.item(item_features))


def batch_loss(users: torch.Tensor, items: torch.Tensor, item_ids: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return the softmax loss in the batch, corrected by the items' frequency; equal items are no negatives."""
    logits = users @ items.T / 0.07 - log_q[item_ids]
    same = item_ids[:, None] == item_ids[None, :]
    logits = logits.masked_fill(same & ~torch.eye(len(item_ids), dtype=torch.bool), -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(item_ids)))
