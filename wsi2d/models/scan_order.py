"""In which order a 1D scan takes the cells of a grid.

Raster is row by row, each from left to right; serpentine turns round at the end of each row, so that cells that follow
each other always touch. A cross-scan has a second raster beside the first, column by column, each from top to bottom
(Y. Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, section 4.2).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ScanOrder = Literal["2d", "raster", "serpentine", "cross"]


def reversed_places(lengths: Tensor, size: int) -> Tensor:
    """0 … size − 1 ``[batch, size]``, the first of ``lengths`` ``[batch, 1]`` in reverse."""
    place = torch.arange(size, device=lengths.device)[None]
    return torch.where(place < lengths, lengths - 1 - place, place)


def cell_order(
    inside: Tensor, shapes: Tensor, flip: tuple[int, ...], *, serpentine: bool = False, by_columns: bool = False
) -> Tensor:
    """Which cell each place of a 1D scan takes; a bag's own cells come first, without those of its padding between.

    Args:
        inside: bool ``[batch, height, width]``, true on a bag's own grid.
        shapes: int64 ``[batch, 2]``, rows and columns of each bag's grid.
        flip: axes (1 rows, 2 columns) along which each bag's own grid is flipped before it is scanned.
        serpentine: every second row, from the second on, is taken backwards; only row by row.
        by_columns: column by column instead of row by row.

    Returns:
        int64 ``[batch, height * width]``, cells counted in raster order on the padded grid.
    """
    _, height, width = inside.shape
    rows, cols = shapes[:, :1], shapes[:, 1:]
    own = torch.arange(max(height, width), device=inside.device)[None]
    row = reversed_places(rows, height) if 1 in flip else own[:, :height].expand(len(shapes), -1)
    col = reversed_places(cols, width) if 2 in flip else own[:, :width].expand(len(shapes), -1)
    row, col = row[:, :, None].expand_as(inside), col[:, None, :].expand_as(inside)
    if serpentine:
        col = torch.where((row % 2 == 1) & inside, cols[:, :, None] - 1 - col, col)
    place = torch.where(inside, col * height + row if by_columns else row * width + col, height * width)
    return place.flatten(1).argsort(dim=1, stable=True)


def taken(sequence: Tensor, places: Tensor) -> Tensor:
    """``[batch, length, dim]`` with the places ``[batch, length]`` in their order."""
    return sequence.gather(1, places.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))
