"""``mamba2d-mil``: 2DMambaMIL, an aggregator that scans the slide's grid of patches in both dimensions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from wsi2d.models.aggregator import About
from wsi2d.models.blocks import Convolution, Mamba2DMixer, MixerBlock
from wsi2d.models.grid_model import GridModel, GridModelConfig
from wsi2d.models.scan_options import ScanOptions
from wsi2d.models.scan_order import ScanOrder


class Mamba2DMILConfig(ScanOptions, GridModelConfig):
    """Options of ``mamba2d-mil``. The defaults are ours; ``preset: published`` has the paper's."""

    name: Literal["mamba2d-mil"] = "mamba2d-mil"
    expand: int = Field(2, ge=1, le=64, description="inner width over width")
    conv: Convolution = Field("2d", description="2d: 3×3; raster: causal, width 4 (published); none")
    directions: Literal[1, 2, 4] = Field(4, description="scans, by flips of the grid")
    share_directions: bool = Field(False, description="one set of Δ, B, C, A for all directions")
    scan: bool = Field(True, description="false leaves the convolution alone: a control without long range")
    scan_order: ScanOrder = Field("2d", description="raster, serpentine, cross: 1D scans; controls")

    @model_validator(mode="after")
    def _cross_has_two_axes(self) -> Mamba2DMILConfig:
        if self.scan_order == "cross" and self.directions == 1:
            raise ValueError("scan_order 'cross' scans rows and columns: directions must be 2 or 4, got 1")
        return self


class Mamba2DMIL(GridModel):
    """2DMambaMIL: project, lay onto the grid, scan in 2D, pool by attention, predict.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Source: J. Zhang et al., "2DMamba: Efficient State Space Model for Image Representation with Applications on
    Giga-Pixel Whole Slide Image Classification", CVPR 2025, section 3.
    """

    config_class = Mamba2DMILConfig
    about = About(
        sees="grid",
        order="rows, then columns",
        cost="cells",
        paper="Zhang et al. 2025",
        source='J. Zhang et al., "2DMamba: Efficient State Space Model for Image Representation with Applications on '
        'Giga-Pixel Whole Slide Image Classification", CVPR 2025',
    )
    config: Mamba2DMILConfig

    def make_block(self) -> MixerBlock:
        """RMSNorm and Mamba's mixer with a 2D scan, added to the grid."""
        c = self.config
        mixer = Mamba2DMixer(
            c.dim, state=c.state, expand=c.expand, conv=c.conv, directions=c.directions,
            share_directions=c.share_directions, scan=c.scan, dt_init=c.dt_init, dt_min=c.dt_min, dt_max=c.dt_max,
            scan_order=c.scan_order,
        )  # fmt: skip
        return MixerBlock(mixer, c.dim)
