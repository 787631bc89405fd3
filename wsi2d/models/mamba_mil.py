"""``mamba-mil``: Mamba on a slide's patches in raster order."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from wsi2d.data.bags import BagBatch
from wsi2d.models.aggregator import About, Embedded
from wsi2d.models.blocks import AttentionPool
from wsi2d.models.patch_model import AttentionModel, PatchModelConfig
from wsi2d.models.scan_options import ScanOptions
from wsi2d.models.sequence import Order, SequenceLayout, SequenceMixer, forwards, raster_sequence

SOURCE = (
    'S. Yang, Y. Wang, H. Chen, "MambaMIL: Enhancing Long Sequence Modeling with Sequence Reordering in Computational '
    'Pathology", MICCAI 2024'
)


class SequenceModelConfig(ScanOptions, PatchModelConfig):
    """Options that ``mamba-mil``, ``srmamba-mil`` and ``bimamba-mil`` share."""

    blocks: int = Field(1, ge=1, le=1024, description="residual blocks (published: 2)")
    expand: int = Field(2, ge=1, le=64, description="inner width over width")
    attention_dim: int = Field(128, ge=1, le=65_536, description="width of the layer that scores a patch")


class MambaMILConfig(SequenceModelConfig):
    """Options of ``mamba-mil``."""

    name: Literal["mamba-mil"] = "mamba-mil"


class SequenceBlock(nn.Module):
    """``x + mixer(LayerNorm(x))``."""

    def __init__(self, mixer: SequenceMixer, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer

    def forward(self, sequence: Tensor, layout: SequenceLayout) -> Tensor:
        """Residual update of ``[batch, length, dim]``."""
        update: Tensor = self.mixer(self.norm(sequence), layout)
        return sequence + update


class MambaMIL(AttentionModel):
    """Project, scan the patches in raster order, pool by attention, predict. Cells without a patch are left out.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Source: S. Yang, Y. Wang, H. Chen, "MambaMIL: Enhancing Long Sequence Modeling with Sequence Reordering in
    Computational Pathology", MICCAI 2024, with Mamba itself in place of SR-Mamba.
    """

    config_class: ClassVar[type[SequenceModelConfig]] = MambaMILConfig
    about = About(
        sees="sequence",
        order="raster",
        cost="patches",
        paper="Yang et al. 2024",
        source=SOURCE,
    )
    config: SequenceModelConfig

    def __init__(self, config: SequenceModelConfig, in_dim: int, out_dim: int) -> None:
        super().__init__(config, in_dim)
        self.blocks = nn.ModuleList(SequenceBlock(self._mixer(), config.dim) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.pool = AttentionPool(config.dim, config.attention_dim)
        self.head = nn.Linear(config.dim, out_dim)

    def orders(self) -> tuple[Order, ...]:
        """In which order each branch takes the sequence."""
        return (forwards,)

    def embed(self, batch: BagBatch) -> Embedded:
        """Each bag's patches along its sequence."""
        layout = raster_sequence(batch)
        sequence = layout.scatter(self.project_patches(batch))
        for block in self.blocks:
            sequence = block(sequence, layout)
        return Embedded.of_patches(self.norm(layout.gather(sequence)), batch)

    def _mixer(self) -> SequenceMixer:
        c = self.config
        return SequenceMixer(
            c.dim, self.orders(), state=c.state, expand=c.expand, dt_init=c.dt_init, dt_min=c.dt_min, dt_max=c.dt_max
        )
