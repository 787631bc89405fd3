"""``torchmil:sm-abmil``: patches smoothed over their neighbours, then attention pooling."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

from pydantic import Field
from torch import nn

from wsi2d.models.aggregator import About
from wsi2d.models.from_torchmil.graph import GraphModel
from wsi2d.models.patch_model import PatchModelConfig


class TorchMILSmABMILConfig(PatchModelConfig):
    """Options of ``torchmil:sm-abmil``."""

    name: Literal["torchmil:sm-abmil"] = "torchmil:sm-abmil"
    attention_dim: int = Field(128, ge=1, le=65_536, description="width of the layer that scores a patch")
    steps: int = Field(10, ge=1, le=1024, description="steps of smoothing, each as far as the neighbours")


class TorchMILSmABMIL(GraphModel):
    """ABMIL over patches that a smoothing with a learnt strength has mixed with their neighbours.

    Source: F. M. Castro-Macías et al., "Sm: enhanced localization in Multiple Instance Learning for medical imaging
    classification", NeurIPS 2024.
    """

    config_class = TorchMILSmABMILConfig
    about = About(
        sees="graph",
        order="neighbours",
        cost="patches",
        paper="Castro-Macías et al. 2024",
        source='F. M. Castro-Macías et al., "Sm: enhanced localization in Multiple Instance Learning for medical '
        'imaging classification", NeurIPS 2024',
    )
    config: TorchMILSmABMILConfig

    def make_net(self, models: ModuleType, out_dim: int) -> nn.Module:
        """torchmil's SmABMIL with ``out_dim`` logits."""
        c = self.config
        net: nn.Module = models.SmABMIL(in_shape=(c.dim,), att_dim=c.attention_dim, sm_steps=c.steps)
        net.last_layer = nn.Linear(c.dim, out_dim)
        return net

    def pooling(self) -> nn.Module:
        """What follows the smoothing."""
        part: nn.Module = self.net.pool.proj1
        return part
