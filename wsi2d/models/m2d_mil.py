"""``m2d-mil``: Mamba2D's block on the slide's grid of patches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from wsi2d.models.aggregator import About
from wsi2d.models.grid_model import GridModel, GridModelConfig
from wsi2d.models.m2d import M2DBlock, M2DMixer, Scans
from wsi2d.models.scan_options import ScanOptions


class M2DMILConfig(ScanOptions, GridModelConfig):
    """Options of ``m2d-mil``."""

    name: Literal["m2d-mil"] = "m2d-mil"
    expand: int = Field(1, ge=1, le=64, description="inner width of the scan over width")
    mlp_ratio: int = Field(4, ge=1, le=64, description="inner width of the MLP over width")
    scans: Scans = Field(2, description="1: from the top left (published); 2: also from the bottom right; 0: none")
    local: bool = Field(True, description="the depthwise-separable 3×3 convolution beside the scan")

    @model_validator(mode="after")
    def _mixes(self) -> M2DMILConfig:
        if self.scans == 0 and not self.local:
            raise ValueError("scans is 0 and local is false, so that nothing is mixed; set one of them")
        return self


class M2DMIL(GridModel):
    """Project, lay onto the grid, Mamba2D's blocks, pool by attention, predict.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Source: E. Baty et al., "Mamba2D: A Natively Multi-Dimensional State-Space Model for Vision Tasks", 2024, for the
    block (:mod:`wsi2d.models.m2d`); the aggregator around it is that of ``mamba2d-mil``.
    """

    config_class = M2DMILConfig
    about = About(
        sees="grid",
        order="from two corners",
        cost="cells",
        paper="Baty et al. 2024",
        source='E. Baty et al., "Mamba2D: A Natively Multi-Dimensional State-Space Model for Vision Tasks", 2024',
    )
    config: M2DMILConfig

    def make_block(self) -> M2DBlock:
        """Mamba2D's block."""
        c = self.config
        mixer = M2DMixer(
            c.dim, state=c.state, expand=c.expand, scans=c.scans, local=c.local, dt_init=c.dt_init, dt_min=c.dt_min,
            dt_max=c.dt_max,
        )  # fmt: skip
        return M2DBlock(mixer, c.dim, c.mlp_ratio)
