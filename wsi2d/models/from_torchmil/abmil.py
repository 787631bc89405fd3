"""``torchmil:abmil``: torchmil's attention pooling."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from wsi2d.models.aggregator import About
from wsi2d.models.from_torchmil.adapter import BagAnswer, TorchMILModel
from wsi2d.models.patch_model import PatchModelConfig


class TorchMILABMILConfig(PatchModelConfig):
    """Options of ``torchmil:abmil``."""

    name: Literal["torchmil:abmil"] = "torchmil:abmil"
    attention_dim: int = Field(128, ge=1, le=65_536, description="width of the layer that scores a patch")
    gated: bool = Field(False, description="the attention layer times a sigmoid of another")


class TorchMILABMIL(TorchMILModel):
    """ABMIL as torchmil writes it.

    Source: M. Ilse, J. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018.
    """

    config_class = TorchMILABMILConfig
    about = About(
        sees="set",
        order="none",
        cost="patches",
        paper="Ilse et al. 2018",
        source='M. Ilse, J. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018',
    )
    config: TorchMILABMILConfig

    def make_net(self, models: ModuleType, out_dim: int) -> nn.Module:
        """torchmil's ABMIL with ``out_dim`` logits."""
        c = self.config
        net: nn.Module = models.ABMIL(in_shape=(c.dim,), att_dim=c.attention_dim, gated=c.gated)
        net.classifier = nn.Linear(c.dim, out_dim)
        return net

    def answer(self, patches: Tensor, edges: Tensor) -> BagAnswer:
        """Logits of the patches' weighted mean."""
        logits, scores = self.net(patches.unsqueeze(0), return_att=True)
        return BagAnswer(logits.reshape(-1), scores[0].softmax(0))
