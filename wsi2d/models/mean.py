"""``mean``: the mean of the patches' logits, blind to places and to which patch matters."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from wsi2d.data.bags import BagBatch
from wsi2d.models.aggregator import About, Embedded
from wsi2d.models.output import ModelOutput
from wsi2d.models.patch_model import PatchModel, PatchModelConfig


class MeanMILConfig(PatchModelConfig):
    """Options of ``mean``."""

    name: Literal["mean"] = "mean"


class MeanMIL(PatchModel):
    """Logits of each patch, averaged over a bag; the same as the logits of the mean embedding, since the last layer is
    linear.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Source: M. Ilse, J. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, equation 6.
    """

    config_class = MeanMILConfig
    about = About(
        sees="set",
        order="none",
        cost="patches",
        paper="Ilse et al. 2018",
        source='M. Ilse, J. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, for '
        "pooling by the mean",
    )
    config: MeanMILConfig

    def __init__(self, config: MeanMILConfig, in_dim: int, out_dim: int) -> None:
        super().__init__(config, in_dim)
        self.head = nn.Linear(config.dim, out_dim)

    def embed(self, batch: BagBatch) -> Embedded:
        """Each patch by itself."""
        return Embedded.of_patches(self.project_patches(batch), batch)

    def aggregate(self, embedded: Embedded) -> ModelOutput:
        """One answer a bag: logits ``[bags, out_dim]``, and attention ``[M]`` of each patch, the same for all."""
        counts = torch.bincount(embedded.bag, minlength=embedded.bags)
        mean = embedded.padded()[0].sum(1) / counts[:, None]
        share = 1 / counts.to(torch.promote_types(mean.dtype, torch.float32))
        return ModelOutput(self.head(mean), share[embedded.bag][embedded.patches])
