"""``srmamba-mil``: MambaMIL, Mamba on a slide's patches in raster order and in strides."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wsi2d.models.aggregator import About
from wsi2d.models.mamba_mil import SOURCE, MambaMIL, SequenceModelConfig
from wsi2d.models.sequence import Order, forwards, strided


class SRMambaMILConfig(SequenceModelConfig):
    """Options of ``srmamba-mil``."""

    name: Literal["srmamba-mil"] = "srmamba-mil"
    rate: int = Field(
        10, ge=1, le=1_000_000, description="stride in which the second branch takes the sequence, patches"
    )


class SRMambaMIL(MambaMIL):
    """As ``mamba-mil``, with a second branch over the sequence reordered by a stride, with its own convolution, Δ, B,
    C, A and D.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Source: S. Yang, Y. Wang, H. Chen, "MambaMIL: Enhancing Long Sequence Modeling with Sequence Reordering in
    Computational Pathology", MICCAI 2024.
    """

    config_class = SRMambaMILConfig
    about = About(
        sees="sequence",
        order="raster, strides",
        cost="patches",
        paper="Yang et al. 2024",
        source=SOURCE,
    )
    config: SRMambaMILConfig

    def orders(self) -> tuple[Order, ...]:
        """Forwards and by the stride."""
        return forwards, strided(self.config.rate)
