"""``bimamba-mil``: Mamba on a slide's patches in raster order, forwards and backwards."""

from __future__ import annotations

from typing import Literal

from wsi2d.models.aggregator import About
from wsi2d.models.mamba_mil import MambaMIL, SequenceModelConfig
from wsi2d.models.sequence import Order, backwards, forwards


class BiMambaMILConfig(SequenceModelConfig):
    """Options of ``bimamba-mil``."""

    name: Literal["bimamba-mil"] = "bimamba-mil"


class BiMambaMIL(MambaMIL):
    """As ``mamba-mil``, with a second branch over the reversed sequence, with its own convolution, Δ, B, C, A and D.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Source: L. Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space
    Model", ICML 2024, as MambaMIL compares itself with.
    """

    config_class = BiMambaMILConfig
    about = About(
        sees="sequence",
        order="raster, both ways",
        cost="patches",
        paper="Zhu et al. 2024",
        source='L. Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space '
        'Model", ICML 2024',
    )
    config: BiMambaMILConfig

    def orders(self) -> tuple[Order, ...]:
        """Forwards and backwards."""
        return forwards, backwards
