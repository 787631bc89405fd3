"""``conv2d-mil``: ``mamba2d-mil`` without its scan, the control for what its 3×3 convolution does by itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wsi2d.models.aggregator import About
from wsi2d.models.blocks import Mamba2DMixer, MixerBlock
from wsi2d.models.grid_model import GridModel, GridModelConfig


class Conv2DMILConfig(GridModelConfig):
    """Options of ``conv2d-mil``."""

    name: Literal["conv2d-mil"] = "conv2d-mil"
    expand: int = Field(2, ge=1, le=64, description="inner width over width")


class Conv2DMIL(GridModel):
    """``mamba2d-mil`` with ``scan: false``: a gated depthwise 3×3 convolution a block, so one cell's reach a block.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).
    """

    config_class = Conv2DMILConfig
    about = About(
        sees="grid",
        order="neighbours",
        cost="cells",
        paper="–",
        source="a control of ours: the block of mamba2d-mil without its scan",
    )
    config: Conv2DMILConfig

    def make_block(self) -> MixerBlock:
        """RMSNorm and Mamba's mixer without the scan, added to the grid."""
        c = self.config
        mixer = Mamba2DMixer(
            c.dim, state=1, expand=c.expand, conv="2d", directions=1, share_directions=False, scan=False,
            dt_init="mamba", dt_min=0.001, dt_max=0.1,
        )  # fmt: skip
        return MixerBlock(mixer, c.dim)
