"""``torchmil:sm-abmil``: patches smoothed over their neighbours, then attention pooling."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from wsi2d.models.aggregator import About
from wsi2d.models.from_torchmil.adapter import BagAnswer, given_to
from wsi2d.models.from_torchmil.graph import GraphModel, normalised_adjacency
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

    def answer(self, patches: Tensor, edges: Tensor) -> BagAnswer:
        """Logits of the smoothed patches' weighted mean."""
        adjacency = normalised_adjacency(edges, patches)
        logits, scores = self.net(patches.unsqueeze(0), adjacency, return_att=True)
        return BagAnswer(logits.reshape(-1), scores[0].softmax(0))

    def mixed(self, patches: Tensor, edges: Tensor) -> Tensor:
        """After the smoothing."""
        adjacency = normalised_adjacency(edges, patches)
        return given_to(self.net.pool.proj1, lambda: self.net(patches.unsqueeze(0), adjacency))[0]
