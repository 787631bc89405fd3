"""``torchmil:transformer-abmil``: exact self-attention among all patches, then attention pooling."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from wsi2d.models.aggregator import About
from wsi2d.models.from_torchmil.adapter import BagAnswer, TorchMILModel, given_to
from wsi2d.models.from_torchmil.transmil import HeadsConfig


class TorchMILTransformerABMILConfig(HeadsConfig):
    """Options of ``torchmil:transformer-abmil``."""

    name: Literal["torchmil:transformer-abmil"] = "torchmil:transformer-abmil"
    layers: int = Field(1, ge=1, le=1024, description="layers of self-attention")
    attention_dim: int = Field(128, ge=1, le=65_536, description="width of the layer that scores a patch")


class TorchMILTransformerABMIL(TorchMILModel):
    """A transformer without positions, then ABMIL. Each patch looks at each: time grows with their square.

    Source: F. M. Castro-Macías et al., "Sm: enhanced localization in Multiple Instance Learning for medical imaging
    classification", NeurIPS 2024, of which it is a baseline.
    """

    config_class = TorchMILTransformerABMILConfig
    about = About(
        sees="set",
        order="none",
        cost="patches²",
        paper="Castro-Macías et al. 2024",
        source='F. M. Castro-Macías et al., "Sm: enhanced localization in Multiple Instance Learning for medical '
        'imaging classification", NeurIPS 2024',
    )
    config: TorchMILTransformerABMILConfig

    def make_net(self, models: ModuleType, out_dim: int) -> nn.Module:
        """torchmil's TransformerABMIL with ``out_dim`` logits."""
        c = self.config
        net: nn.Module = models.TransformerABMIL(
            in_shape=(c.dim,), pool_att_dim=c.attention_dim, transf_att_dim=c.dim, transf_n_layers=c.layers,
            transf_n_heads=c.heads,
        )  # fmt: skip
        net.last_layer = nn.Linear(c.dim, out_dim)
        return net

    def answer(self, patches: Tensor, edges: Tensor) -> BagAnswer:
        """Logits of the patches' weighted mean."""
        logits, scores = self.net(patches.unsqueeze(0), return_att=True)
        return BagAnswer(logits.reshape(-1), scores[0].softmax(0))

    def mixed(self, patches: Tensor, edges: Tensor) -> Tensor:
        """After self-attention."""
        return given_to(self.net.pool, lambda: self.net(patches.unsqueeze(0)))[0]
