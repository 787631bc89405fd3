"""What most aggregators begin and end with: patches standardised and projected, attention over what became of them."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from wsi2d.config import Strict
from wsi2d.data.bags import BagBatch
from wsi2d.models.aggregator import Aggregator, Embedded
from wsi2d.models.blocks import AttentionPool, Standardise
from wsi2d.models.output import ModelOutput


class PatchModelConfig(Strict):
    """Options of every aggregator that projects patches to a width of its own."""

    name: str
    dim: int = Field(128, ge=1, le=65_536, description="width of the model")
    dropout: float = Field(0.25, ge=0, lt=1, description="share of a patch's projected features that is dropped")
    standardise: bool = Field(True, description="features by mean and deviation of the training fold")


class PatchModel(Aggregator):
    """Patches standardised, projected to ``dim`` channels, GELU, dropout.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
    """

    config: PatchModelConfig

    def __init__(self, config: PatchModelConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        self.standardise = Standardise(in_dim) if config.standardise else None
        self.project = nn.Sequential(nn.Linear(in_dim, config.dim), nn.GELU(), nn.Dropout(config.dropout))

    def project_patches(self, batch: BagBatch) -> Tensor:
        """Projected patches ``[M, dim]`` of a batch, in its order."""
        features = self.standardise(batch.features) if self.standardise else batch.features
        projected: Tensor = self.project(features)
        return projected


class AttentionModel(PatchModel):
    """Attention pooling over what :meth:`embed` gives, then one linear layer.

    Attributes:
        pool, head: every subclass sets them.
    """

    pool: AttentionPool
    head: nn.Linear

    def aggregate(self, embedded: Embedded) -> ModelOutput:
        """One answer a bag: logits ``[bags, out_dim]``, and attention ``[M]`` of each patch."""
        cells, mask, place = embedded.padded()
        pooled, attention = self.pool(cells, mask)
        return ModelOutput(self.head(pooled), attention[embedded.bag, place][embedded.patches])
