"""What aggregators on the slide's grid have in common: patches on the grid with its gaps, blocks, attention pooling."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wsi2d.data.bags import BagBatch
from wsi2d.kernels.scan2d import free_memory
from wsi2d.models.aggregator import Embedded
from wsi2d.models.blocks import AttentionPool, GridLayout, grid_layout, row_shapes
from wsi2d.models.patch_model import AttentionModel, PatchModelConfig

# Numbers a cell that a forward pass holds at once at least, in widths of the model; mamba2d-mil was seen to hold 21.
_WIDTHS_HELD = 16


class GridModelConfig(PatchModelConfig):
    """Options of every aggregator on the grid."""

    blocks: int = Field(1, ge=1, le=1024, description="residual blocks")
    empty: Literal["token", "zero"] = Field("token", description="what a cell without tissue holds")
    pool: Literal["tissue", "all"] = Field("tissue", description="cells that attention may choose (all: published)")
    attention_dim: int = Field(128, ge=1, le=65_536, description="width of the layer that scores a cell")
    layout: Literal["grid", "row"] = Field("grid", description="row flattens the grid in raster order: a 1D control")


class GridModel(AttentionModel):
    """Project, lay onto the grid cropped to the tissue, run the blocks of :meth:`make_block`, pool by attention.

    A bag's answer does not depend on the batch it is in: blocks are told which cells are padding.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).
    """

    config: GridModelConfig

    def __init__(self, config: GridModelConfig, in_dim: int, out_dim: int) -> None:
        super().__init__(config, in_dim)
        if config.empty == "token":
            self.empty_token = nn.Parameter(torch.zeros(config.dim))
        else:
            self.register_buffer("empty_token", torch.zeros(config.dim), persistent=False)
        self.blocks = nn.ModuleList(self.make_block() for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.pool = AttentionPool(config.dim, config.attention_dim)
        self.head = nn.Linear(config.dim, out_dim)

    @abstractmethod
    def make_block(self) -> nn.Module:
        """A block: called with a grid ``[batch, height, width, dim]`` and its :class:`GridLayout` it returns a grid."""

    def embed(self, batch: BagBatch) -> Embedded:
        """Each bag on its own grid; the cells that attention may choose.

        Raises:
            MemoryError: the grids would not fit in memory.
        """
        flatten = self.config.layout == "row"
        _refuse_beyond_memory(row_shapes(batch.shapes) if flatten else batch.shapes, self.config.dim)
        layout = grid_layout(batch, flatten=flatten)
        grid = layout.scatter(self.project_patches(batch), self.empty_token)
        for block in self.blocks:
            grid = block(grid, layout)
        if self.config.pool == "tissue":
            return Embedded.of_patches(self.norm(layout.gather(grid)), batch)
        return self._with_empty_cells(grid, layout)

    def _with_empty_cells(self, grid: Tensor, layout: GridLayout) -> Embedded:
        """All cells of the bags' grids, in raster order."""
        bag = layout.inside.nonzero(as_tuple=True)[0]
        sizes = layout.shapes.prod(1)
        first = sizes.cumsum(0) - sizes
        patches = first[layout.bag] + layout.row * layout.shapes[layout.bag, 1] + layout.col
        return Embedded(self.norm(grid[layout.inside]), bag, len(layout.shapes), patches)


def _refuse_beyond_memory(shapes: Tensor, dim: int) -> None:
    """Refuse grids of these shapes ``[batch, 2]``, padded to one, whose blocks hold more than there is, before the
    first of them is made."""
    height, width = shapes.amax(0).tolist()
    wanted = _WIDTHS_HELD * dim * 4 * len(shapes) * height * width
    if wanted < 2**28:
        return
    free = free_memory(shapes.device)
    if wanted > free:
        grids = f"{len(shapes)} × {height}×{width} cells"
        raise MemoryError(f"grids of {grids} need {wanted / 1e9:,.0f} GB, {free / 1e9:,.0f} GB are free")
