"""``torchmil:clam-sb``: CLAM with one attention branch, with its clustering of the most and least attended patches."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wsi2d.models.aggregator import About
from wsi2d.models.from_torchmil.adapter import BagAnswer, TorchMILModel
from wsi2d.models.patch_model import PatchModelConfig


class TorchMILCLAMConfig(PatchModelConfig):
    """Options of ``torchmil:clam-sb``."""

    name: Literal["torchmil:clam-sb"] = "torchmil:clam-sb"
    attention_dim: int = Field(128, ge=1, le=65_536, description="width of the layer that scores a patch")
    gated: bool = Field(True, description="the attention layer times a sigmoid of another")
    instances: int = Field(8, ge=1, le=65_536, description="patches at each end of the attention that are clustered")
    instance_weight: float = Field(
        0.43, ge=0, le=1000, description="of the clustering's loss, beside 1 of the bag's (published: 0.3 to 0.7)"
    )


class TorchMILCLAM(TorchMILModel):
    """CLAM-SB: attention pooling, and a classifier a class that tells its most attended patches from its least.

    With class y, the classifier of y is to call the most attended patches 1 and the least attended 0; those of the
    other classes are to call the most attended 0. The loss of this is a smooth top-1 SVM's, computed here: torchmil
    1.0.2 gives it targets of a shape over which it broadcasts. Without classes (survival) it plays no part.

    Source: M. Y. Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images",
    Nature Biomedical Engineering 2021; L. Berrada, A. Zisserman, M. P. Kumar, "Smooth Loss Functions for Deep Top-k
    Classification", ICLR 2018.
    """

    config_class = TorchMILCLAMConfig
    about = About(
        sees="set",
        order="none",
        cost="patches",
        paper="Lu et al. 2021",
        source='M. Y. Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images", '
        "Nature Biomedical Engineering 2021",
    )
    config: TorchMILCLAMConfig

    def make_net(self, models: ModuleType, out_dim: int) -> nn.Module:
        """torchmil's CLAM_SB with ``out_dim`` logits and as many clustering classifiers."""
        c = self.config
        net: nn.Module = models.CLAM_SB(in_shape=(c.dim,), att_dim=c.attention_dim, gated=c.gated)
        net.classifier = nn.Linear(c.dim, out_dim)
        net.inst_classifiers = nn.ModuleList(nn.Linear(c.dim, 2) for _ in range(out_dim))
        return net

    def answer(self, patches: Tensor, edges: Tensor) -> BagAnswer:
        """Logits of the patches' weighted mean, and what the clustering costs for each class that the bag may be."""
        logits, scores = self.net(patches.unsqueeze(0), return_att=True)
        logits, scores = logits.reshape(-1), scores[0]
        penalties = self.config.instance_weight * self._clustering_loss(patches, scores)
        return BagAnswer(logits, scores.softmax(0), penalties=penalties)

    def _clustering_loss(self, patches: Tensor, scores: Tensor) -> Tensor:
        """``[classes]``: the mean over classifiers, were the bag of this class."""
        count = min(self.config.instances, len(patches))
        most, least = scores.topk(count).indices, scores.topk(count, largest=False).indices
        in_class, out_of_class = [], []
        for classifier in self.net.inst_classifiers:
            high, low = classifier(patches[most]), classifier(patches[least])
            in_class.append((smooth_svm(high, 1).mean() + smooth_svm(low, 0).mean()) / 2)
            out_of_class.append(smooth_svm(high, 0).mean())
        mine, others = torch.stack(in_class), torch.stack(out_of_class)
        return (mine + others.sum() - others) / len(mine)


def smooth_svm(logits: Tensor, target: int) -> Tensor:
    """Smooth top-1 SVM loss ``[n]`` of logits ``[n, classes]``: log Σ_j exp(s_j − s_target + [j ≠ target])."""
    margin = torch.ones_like(logits)
    margin[:, target] = 0
    return (logits - logits[:, target : target + 1] + margin).logsumexp(1)
