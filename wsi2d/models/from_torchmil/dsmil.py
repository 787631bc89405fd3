"""``torchmil:dsmil``: the most suspicious patch of each class, and attention by likeness to it."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wsi2d.models.aggregator import About
from wsi2d.models.from_torchmil.adapter import BagAnswer, TorchMILModel
from wsi2d.models.patch_model import PatchModelConfig


class TorchMILDSMILConfig(PatchModelConfig):
    """Options of ``torchmil:dsmil``."""

    name: Literal["torchmil:dsmil"] = "torchmil:dsmil"
    attention_dim: int = Field(128, ge=1, le=65_536, description="width of queries")
    nonlinear: bool = Field(True, description="queries by two layers (published) in place of one")


class TorchMILDSMIL(TorchMILModel):
    """DSMIL: two streams, one of the highest logit over patches, one of patches weighted by their likeness to it.

    For each class its own critical patch, as published; torchmil has one class. Prediction is the mean of both streams'
    logits, and training the mean of their losses. Attention is the mean over classes.

    Source: B. Li, Y. Li, K. W. Eliceiri, "Dual-stream Multiple Instance Learning Network for Whole Slide Image
    Classification with Self-supervised Contrastive Learning", CVPR 2021.
    """

    config_class = TorchMILDSMILConfig
    about = About(
        sees="set",
        order="none",
        cost="patches",
        paper="Li et al. 2021",
        source='B. Li, Y. Li, K. W. Eliceiri, "Dual-stream Multiple Instance Learning Network for Whole Slide Image '
        'Classification with Self-supervised Contrastive Learning", CVPR 2021',
    )
    config: TorchMILDSMILConfig
    loss_weights = (0.5, 0.5)

    def make_net(self, models: ModuleType, out_dim: int) -> nn.Module:
        """torchmil's DSMIL with a critical patch a class, and a last layer over the bag vectors of all classes."""
        c = self.config
        net: nn.Module = models.DSMIL(in_shape=(c.dim,), att_dim=c.attention_dim, nonlinear_q=c.nonlinear)
        net.inst_classifier = nn.Linear(c.dim, out_dim)
        net.bag_classifier = nn.Conv1d(out_dim, out_dim, c.dim)
        return net

    def answer(self, patches: Tensor, edges: Tensor) -> BagAnswer:
        """The mean of both streams."""
        of_bag, attention, of_patches = self.net(patches.unsqueeze(0), return_att=True, return_inst_pred=True)
        streams = torch.stack([of_bag.reshape(-1), of_patches[0].reshape(len(patches), -1).amax(0)])
        return BagAnswer(streams.mean(0), attention[0].mean(-1), trained=streams)
