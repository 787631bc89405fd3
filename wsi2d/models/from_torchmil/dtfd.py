"""``torchmil:dtfd``: pseudo-bags, each pooled to one vector, which are pooled again."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wsi2d.models.aggregator import About
from wsi2d.models.from_torchmil.adapter import BagAnswer, TorchMILModel
from wsi2d.models.patch_model import PatchModelConfig


class TorchMILDTFDConfig(PatchModelConfig):
    """Options of ``torchmil:dtfd``."""

    name: Literal["torchmil:dtfd"] = "torchmil:dtfd"
    attention_dim: int = Field(128, ge=1, le=65_536, description="width of the layers that score a patch, a pseudo-bag")
    groups: int = Field(8, ge=1, le=4096, description="pseudo-bags a bag (as many as patches where these are fewer)")


class TorchMILDTFD(TorchMILModel):
    """DTFD-MIL with its aggregated feature selection (AFS): pseudo-bags by attention, bags by attention over these.

    While training, patches are dealt out to pseudo-bags at random; otherwise in raster order, one to each in turn, so
    that an answer is always the same. The loss is that of the bag, and the mean of that of its pseudo-bags, which are
    held to the bag's truth. A patch's attention is its share of its pseudo-bag times that one's share of the bag.

    The layers are torchmil's, taken one by one: its own pass shuffles by numpy's global state, and its other ways to
    distil keep every patch of a pseudo-bag.

    Source: H. Zhang et al., "DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning for Histopathology
    Whole Slide Image Classification", CVPR 2022.
    """

    config_class = TorchMILDTFDConfig
    about = About(
        sees="set",
        order="pseudo-bags",
        cost="patches",
        paper="Zhang et al. 2022",
        source='H. Zhang et al., "DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning for '
        'Histopathology Whole Slide Image Classification", CVPR 2022',
    )
    config: TorchMILDTFDConfig

    def make_net(self, models: ModuleType, out_dim: int) -> nn.Module:
        """torchmil's DTFDMIL with ``out_dim`` logits in both tiers."""
        c = self.config
        self.loss_weights = (1.0, *[1 / c.groups] * c.groups)
        net: nn.Module = models.DTFDMIL(in_shape=(c.dim,), att_dim=c.attention_dim, distill_mode="afs")
        net.classifier = nn.Linear(c.dim, out_dim)
        net.u_classifier = nn.Linear(c.dim, out_dim)
        return net

    def answer(self, patches: Tensor, edges: Tensor) -> BagAnswer:
        """Both tiers. Where there are fewer pseudo-bags than ``groups``, some count more often than others."""
        wanted, count = self.config.groups, min(self.config.groups, len(patches))
        order = torch.arange(len(patches), device=patches.device)
        if self.training:
            order = torch.randperm(len(patches)).to(patches.device)
        vectors, shares = [], patches.new_empty(len(patches))
        members = [order[k::count] for k in range(count)]
        for mine in members:
            vector, scores = self.net.attention_pool(patches[mine].unsqueeze(0), return_att=True)
            vectors.append(vector)
            shares = shares.index_put((mine,), scores[0].softmax(0))
        pseudo = torch.cat(vectors)
        pooled, scores = self.net.u_attention_pool(pseudo.unsqueeze(0), return_att=True)
        of_group = torch.empty_like(order)
        for k, mine in enumerate(members):
            of_group[mine] = k
        logits = self.net.u_classifier(pooled)
        repeated = torch.arange(wanted, device=patches.device) % count
        return BagAnswer(
            logits[0],
            shares * scores[0].softmax(0)[of_group],
            trained=torch.cat([logits, self.net.classifier(pseudo)[repeated]]),
        )
