"""``abmil``: attention pooling over patches without their places, the yardstick for everything that uses them."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from wsi2d.config import Strict
from wsi2d.data.bags import BagBatch
from wsi2d.models.aggregator import Aggregator
from wsi2d.models.blocks import AttentionPool, Standardise
from wsi2d.models.output import ModelOutput


class ABMILConfig(Strict):
    """Options of ``abmil``."""

    name: Literal["abmil"] = "abmil"
    dim: int = Field(128, ge=1, le=65_536, description="width of the model")
    attention_dim: int = Field(128, ge=1, le=65_536)
    gated: bool = True
    dropout: float = Field(0.25, ge=0, lt=1)
    standardise: bool = Field(True, description="features by mean and deviation of the training fold")


class ABMIL(Aggregator):
    """Gated attention over a bag's patches; blind to where they are.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Source: M. Ilse, J. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018.
    """

    config_class = ABMILConfig
    config: ABMILConfig

    def __init__(self, config: ABMILConfig, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.config = config
        self.standardise = Standardise(in_dim) if config.standardise else None
        self.project = nn.Sequential(nn.Linear(in_dim, config.dim), nn.GELU(), nn.Dropout(config.dropout))
        self.pool = AttentionPool(config.dim, config.attention_dim, gated=config.gated)
        self.head = nn.Linear(config.dim, out_dim)

    def forward(self, batch: BagBatch) -> ModelOutput:
        """Logits ``[batch, out_dim]`` and attention ``[M]`` of each patch."""
        features = self.standardise(batch.features) if self.standardise else batch.features
        patches = self.project(features)
        counts = torch.bincount(batch.bag, minlength=len(batch))
        first = counts.cumsum(0) - counts
        place = torch.arange(len(patches), device=patches.device) - first[batch.bag]
        cells = patches.new_zeros(len(batch), int(counts.max()), patches.shape[1])
        cells = cells.index_put((batch.bag, place), patches)
        mask = torch.arange(cells.shape[1], device=patches.device)[None] < counts[:, None]
        pooled, attention = self.pool(cells, mask)
        return ModelOutput(self.head(pooled), attention[batch.bag, place])
