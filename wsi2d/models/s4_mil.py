"""``s4-mil``: a diagonal state-space layer on a slide's patches in raster order, pooled by the maximum."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from wsi2d.data.bags import BagBatch
from wsi2d.models.aggregator import About, Embedded
from wsi2d.models.blocks import max_pool
from wsi2d.models.output import ModelOutput
from wsi2d.models.patch_model import PatchModel, PatchModelConfig
from wsi2d.models.s4d import S4DLayer
from wsi2d.models.scan_options import StepOptions
from wsi2d.models.sequence import raster_sequence


class S4MILConfig(StepOptions, PatchModelConfig):
    """Options of ``s4-mil``."""

    name: Literal["s4-mil"] = "s4-mil"
    state: int = Field(32, ge=2, le=4096, multiple_of=2, description="states a channel, in conjugate pairs")


class S4MIL(PatchModel):
    """Project, LayerNorm, S4D along the patches in raster order, each channel's maximum, predict.

    A patch's attention is the share of channels of which it holds the maximum: 0 for most.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Source: L. Fillioux, J. Boyd, M. Vakalopoulou, P.-H. Cournède, S. Christodoulidis, "Structured State Space Models
    for Multiple Instance Learning in Digital Pathology", MICCAI 2023.
    """

    config_class = S4MILConfig
    about = About(
        sees="sequence",
        order="raster",
        cost="patches × log",
        paper="Fillioux et al. 2023",
        source='L. Fillioux et al., "Structured State Space Models for Multiple Instance Learning in Digital '
        'Pathology", MICCAI 2023',
    )
    config: S4MILConfig

    def __init__(self, config: S4MILConfig, in_dim: int, out_dim: int) -> None:
        super().__init__(config, in_dim)
        self.norm = nn.LayerNorm(config.dim)
        self.layer = S4DLayer(config.dim, config.state, config.dt_min, config.dt_max)
        self.head = nn.Linear(config.dim, out_dim)

    def embed(self, batch: BagBatch) -> Embedded:
        """Each bag's patches along its sequence."""
        layout = raster_sequence(batch)
        sequence: Tensor = self.layer(self.norm(layout.scatter(self.project_patches(batch))))
        return Embedded.of_patches(layout.gather(sequence), batch)

    def aggregate(self, embedded: Embedded) -> ModelOutput:
        """One answer a bag: logits ``[bags, out_dim]``, and attention ``[M]`` of each patch."""
        cells, mask, place = embedded.padded()
        pooled, attention = max_pool(cells, mask)
        return ModelOutput(self.head(pooled), attention[embedded.bag, place][embedded.patches])
