"""``torchmil:sm-transformer-abmil``: exact self-attention and smoothing over neighbours, then attention pooling."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

from pydantic import Field
from torch import nn

from wsi2d.models.aggregator import About
from wsi2d.models.from_torchmil.graph import GraphModel
from wsi2d.models.from_torchmil.transmil import HeadsConfig


class TorchMILSmTransformerABMILConfig(HeadsConfig):
    """Options of ``torchmil:sm-transformer-abmil``."""

    name: Literal["torchmil:sm-transformer-abmil"] = "torchmil:sm-transformer-abmil"
    layers: int = Field(1, ge=1, le=1024, description="layers of self-attention, each smoothed over neighbours")
    attention_dim: int = Field(128, ge=1, le=65_536, description="width of the layer that scores a patch")
    steps: int = Field(10, ge=1, le=1024, description="steps of each smoothing, each as far as the neighbours")


class TorchMILSmTransformerABMIL(GraphModel):
    """A transformer without positions whose attention is smoothed over neighbouring patches, then smoothed ABMIL.

    Each patch looks at each: time grows with their square.

    Source: F. M. Castro-Macías et al., "Sm: enhanced localization in Multiple Instance Learning for medical imaging
    classification", NeurIPS 2024.
    """

    config_class = TorchMILSmTransformerABMILConfig
    about = About(
        sees="graph",
        order="neighbours",
        cost="patches²",
        paper="Castro-Macías et al. 2024",
        source='F. M. Castro-Macías et al., "Sm: enhanced localization in Multiple Instance Learning for medical '
        'imaging classification", NeurIPS 2024',
    )
    config: TorchMILSmTransformerABMILConfig

    def make_net(self, models: ModuleType, out_dim: int) -> nn.Module:
        """torchmil's SmTransformerABMIL with ``out_dim`` logits."""
        c = self.config
        net: nn.Module = models.SmTransformerABMIL(
            in_shape=(c.dim,), pool_att_dim=c.attention_dim, pool_sm_steps=c.steps, transf_att_dim=c.dim,
            transf_n_layers=c.layers, transf_n_heads=c.heads, transf_sm_steps=c.steps,
        )  # fmt: skip
        net.last_layer = nn.Linear(c.dim, out_dim)
        return net

    def pooling(self) -> nn.Module:
        """What follows self-attention and the pooling's own smoothing."""
        part: nn.Module = self.net.pool.proj1
        return part
