"""``abmil``: attention pooling over patches without their places, the yardstick for everything that uses them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from wsi2d.data.bags import BagBatch
from wsi2d.models.aggregator import About, Embedded
from wsi2d.models.blocks import AttentionPool
from wsi2d.models.patch_model import AttentionModel, PatchModelConfig


class ABMILConfig(PatchModelConfig):
    """Options of ``abmil``."""

    name: Literal["abmil"] = "abmil"
    attention_dim: int = Field(128, ge=1, le=65_536, description="width of the layer that scores a patch")
    gated: bool = Field(True, description="the attention layer times a sigmoid of another")


class ABMIL(AttentionModel):
    """Gated attention over a bag's patches; blind to where they are.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Source: M. Ilse, J. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018.
    """

    config_class = ABMILConfig
    about = About(
        sees="set",
        order="none",
        cost="patches",
        paper="Ilse et al. 2018",
        source='M. Ilse, J. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018',
    )
    config: ABMILConfig

    def __init__(self, config: ABMILConfig, in_dim: int, out_dim: int) -> None:
        super().__init__(config, in_dim)
        self.pool = AttentionPool(config.dim, config.attention_dim, gated=config.gated)
        self.head = nn.Linear(config.dim, out_dim)

    def embed(self, batch: BagBatch) -> Embedded:
        """Each patch by itself."""
        return Embedded.of_patches(self.project_patches(batch), batch)
