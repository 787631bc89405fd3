"""``mamba2d-mil``: 2DMambaMIL, an aggregator that scans the slide's grid of patches in both dimensions."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from wsi2d.config import Strict
from wsi2d.data.bags import BagBatch
from wsi2d.models.aggregator import Aggregator
from wsi2d.models.blocks import (
    AttentionPool,
    Convolution,
    DtInit,
    Mamba2DMixer,
    MixerBlock,
    Standardise,
    grid_layout,
)
from wsi2d.models.output import ModelOutput


class Mamba2DMILConfig(Strict):
    """Options of ``mamba2d-mil``. The defaults are ours; ``preset: published`` has the paper's."""

    name: Literal["mamba2d-mil"] = "mamba2d-mil"
    dim: int = Field(128, ge=1, le=65_536, description="width of the model")
    blocks: int = Field(1, ge=1, le=1024, description="residual blocks")
    state: int = Field(16, ge=1, le=4096, description="states a channel")
    expand: int = Field(2, ge=1, le=64, description="inner width over width")
    conv: Convolution = Field("2d", description="2d: 3×3; raster: causal, width 4 (published); none")
    directions: Literal[1, 2, 4] = Field(4, description="scans, by flips of the grid")
    share_directions: bool = Field(False, description="one set of Δ, B, C, A for all directions")
    scan: bool = Field(True, description="false leaves the convolution alone: a control without long range")
    layout: Literal["grid", "row"] = Field("grid", description="row flattens the grid in raster order: a 1D control")
    dt_init: DtInit = "mamba"
    dt_min: float = Field(0.001, gt=0)
    dt_max: float = Field(0.1, gt=0)
    empty: Literal["token", "zero"] = Field("token", description="what a cell without tissue holds")
    pool: Literal["tissue", "all"] = Field("tissue", description="cells that attention may choose (all: published)")
    attention_dim: int = Field(128, ge=1, le=65_536)
    dropout: float = Field(0.25, ge=0, lt=1)
    standardise: bool = Field(True, description="features by mean and deviation of the training fold")

    @model_validator(mode="after")
    def _dt_ordered(self) -> Mamba2DMILConfig:
        if self.dt_min >= self.dt_max:
            raise ValueError(f"dt_min must be below dt_max, got {self.dt_min} and {self.dt_max}")
        return self


class Mamba2DMIL(Aggregator):
    """2DMambaMIL: project, lay onto the grid, scan in 2D, pool by attention, predict.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Source: J. Zhang et al., "2DMamba: Efficient State Space Model for Image Representation with Applications on
    Giga-Pixel Whole Slide Image Classification", CVPR 2025, section 3.
    """

    config_class = Mamba2DMILConfig
    config: Mamba2DMILConfig

    def __init__(self, config: Mamba2DMILConfig, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.config = config
        self.standardise = Standardise(in_dim) if config.standardise else None
        self.project = nn.Sequential(nn.Linear(in_dim, config.dim), nn.GELU(), nn.Dropout(config.dropout))
        if config.empty == "token":
            self.empty_token = nn.Parameter(torch.zeros(config.dim))
        else:
            self.register_buffer("empty_token", torch.zeros(config.dim), persistent=False)
        self.blocks = nn.ModuleList(MixerBlock(self._mixer(), config.dim) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.pool = AttentionPool(config.dim, config.attention_dim)
        self.head = nn.Linear(config.dim, out_dim)

    def forward(self, batch: BagBatch) -> ModelOutput:
        """Logits ``[batch, out_dim]`` and attention ``[M]`` of each patch."""
        layout = grid_layout(batch, flatten=self.config.layout == "row")
        features = self.standardise(batch.features) if self.standardise else batch.features
        grid = layout.scatter(self.project(features), self.empty_token)
        for block in self.blocks:
            grid = block(grid, layout)
        mask = layout.tissue if self.config.pool == "tissue" else layout.inside
        pooled, attention = self.pool(self.norm(grid).flatten(1, 2), mask.flatten(1))
        return ModelOutput(self.head(pooled), layout.gather(attention.view_as(layout.inside)))

    def _mixer(self) -> Mamba2DMixer:
        c = self.config
        return Mamba2DMixer(
            c.dim, state=c.state, expand=c.expand, conv=c.conv, directions=c.directions,
            share_directions=c.share_directions, scan=c.scan, dt_init=c.dt_init, dt_min=c.dt_min, dt_max=c.dt_max,
        )  # fmt: skip
