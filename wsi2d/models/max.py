"""``max``: the patch with the highest logit speaks for its bag."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from wsi2d.data.bags import BagBatch
from wsi2d.models.aggregator import About, Embedded
from wsi2d.models.blocks import max_pool
from wsi2d.models.output import ModelOutput
from wsi2d.models.patch_model import PatchModel, PatchModelConfig


class MaxMILConfig(PatchModelConfig):
    """Options of ``max``."""

    name: Literal["max"] = "max"
    over: Literal["logits", "embeddings"] = Field(
        "logits", description="what the maximum is taken of: each class's logit, or each channel of the embedding"
    )


class MaxMIL(PatchModel):
    """The highest logit of each class over a bag's patches, or the logits of each channel's maximum.

    A patch's attention is the share of classes (of channels) of which it holds the maximum: 0 for most.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Source: M. Ilse, J. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, equation 5.
    """

    config_class = MaxMILConfig
    about = About(
        sees="set",
        order="none",
        cost="patches",
        paper="Ilse et al. 2018",
        source='M. Ilse, J. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, for '
        "pooling by the maximum",
    )
    config: MaxMILConfig

    def __init__(self, config: MaxMILConfig, in_dim: int, out_dim: int) -> None:
        super().__init__(config, in_dim)
        self.head = nn.Linear(config.dim, out_dim)

    def embed(self, batch: BagBatch) -> Embedded:
        """Each patch by itself."""
        return Embedded.of_patches(self.project_patches(batch), batch)

    def aggregate(self, embedded: Embedded) -> ModelOutput:
        """One answer a bag: logits ``[bags, out_dim]``, and attention ``[M]`` of each patch."""
        cells, mask, place = embedded.padded()
        if self.config.over == "logits":
            logits, attention = max_pool(self.head(cells), mask)
        else:
            pooled, attention = max_pool(cells, mask)
            logits = self.head(pooled)
        return ModelOutput(logits, attention[embedded.bag, place][embedded.patches])
