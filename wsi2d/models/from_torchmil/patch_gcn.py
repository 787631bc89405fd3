"""``torchmil:patch-gcn``: graph convolutions over neighbouring patches, then attention pooling."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

from pydantic import Field
from torch import nn

from wsi2d.models.aggregator import About
from wsi2d.models.from_torchmil.graph import GraphModel
from wsi2d.models.patch_model import PatchModelConfig


class TorchMILPatchGCNConfig(PatchModelConfig):
    """Options of ``torchmil:patch-gcn``."""

    name: Literal["torchmil:patch-gcn"] = "torchmil:patch-gcn"
    attention_dim: int = Field(128, ge=1, le=65_536, description="width of the layer that scores a patch")
    layers: int = Field(4, ge=1, le=1024, description="graph convolutions, each as far as the neighbours")


class TorchMILPatchGCN(GraphModel):
    """Graph convolutions over touching patches, all their outputs side by side, one layer, attention pooling.

    Source: R. J. Chen et al., "Whole Slide Images are 2D Point Clouds: Context-Aware Survival Prediction using
    Patch-based Graph Convolutional Networks", MICCAI 2021. torchmil's layers are GCN's, the published ones GENConv.
    """

    config_class = TorchMILPatchGCNConfig
    about = About(
        sees="graph",
        order="neighbours",
        cost="patches",
        paper="Chen et al. 2021",
        source='R. J. Chen et al., "Whole Slide Images are 2D Point Clouds: Context-Aware Survival Prediction using '
        'Patch-based Graph Convolutional Networks", MICCAI 2021',
    )
    config: TorchMILPatchGCNConfig

    def make_net(self, models: ModuleType, out_dim: int) -> nn.Module:
        """torchmil's PatchGCN with ``out_dim`` logits."""
        c = self.config
        net: nn.Module = models.PatchGCN(in_shape=(c.dim,), n_gcn_layers=c.layers, att_dim=c.attention_dim)
        net.classifier = nn.Linear(c.dim, out_dim)
        return net

    def pooling(self) -> nn.Module:
        """What follows the convolutions and the layer behind them."""
        part: nn.Module = self.net.pool
        return part
