"""Building blocks: the grid between blocks, the 2D Mamba mixer, attention pooling.

Inside a model a batch is a dense grid ``[batch, height, width, dim]`` padded to the largest bag. Two masks say what a
cell is: ``inside`` is true on a bag's own grid (false on padding), ``tissue`` is true where there is a patch.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi2d.data.bags import BagBatch
from wsi2d.errors import ConfigError
from wsi2d.kernels.scan2d import BACKEND_VARIABLE, available_backends, selective_scan_2d
from wsi2d.models.scan_order import ScanOrder, cell_order, reversed_places, taken

Convolution = Literal["2d", "raster", "none"]
DtInit = Literal["mamba", "published"]

RASTER_WIDTH = 4  # of causal convolutions along a sequence
_FLIPS: dict[int, tuple[tuple[int, ...], ...]] = {1: ((),), 2: ((), (1, 2)), 4: ((), (2,), (1,), (1, 2))}
_CROSS_FLIPS: dict[int, tuple[tuple[int, ...], ...]] = {2: ((), ()), 4: ((), (), (1, 2), (1, 2))}  # rows, columns, …


@dataclass(frozen=True)
class GridLayout:
    """Where each patch of a batch stands on the padded grid.

    Attributes:
        bag, row, col: int64 ``[M]``, the cell of each patch.
        inside: bool ``[batch, height, width]``, true on a bag's own grid.
        shapes: int64 ``[batch, 2]``, rows and columns of each bag's grid.
    """

    bag: Tensor
    row: Tensor
    col: Tensor
    inside: Tensor
    shapes: Tensor

    def scatter(self, patches: Tensor, empty: Tensor) -> Tensor:
        """Patches ``[M, dim]`` onto the grid ``[batch, height, width, dim]``; other cells take ``empty`` ``[dim]``."""
        grid = empty.expand(*self.inside.shape, -1).to(patches.dtype)
        return grid.index_put((self.bag, self.row, self.col), patches)

    def gather(self, grid: Tensor) -> Tensor:
        """Cells with a patch, ``[M, ...]``, of a grid ``[batch, height, width, ...]``."""
        return grid[self.bag, self.row, self.col]

    def turn(self, grid: Tensor) -> Tensor:
        """Each bag's own grid turned by half a circle, its padding left below and to the right."""
        batch, height, width = self.inside.shape
        if bool((self.shapes == self.shapes.new_tensor([height, width])).all()):
            return grid.flip((1, 2))
        rows = reversed_places(self.shapes[:, :1], height)
        cols = reversed_places(self.shapes[:, 1:], width)
        return grid[torch.arange(batch, device=grid.device)[:, None, None], rows[:, :, None], cols[:, None, :]]


def grid_layout(batch: BagBatch, *, flatten: bool = False) -> GridLayout:
    """Place a batch on its padded grid; with ``flatten`` each bag's grid becomes one row in raster order."""
    rows, cols, shapes = batch.index[:, 0], batch.index[:, 1], batch.shapes
    if flatten:
        rows, cols = torch.zeros_like(rows), rows * shapes[batch.bag, 1] + cols
        shapes = row_shapes(shapes)
    height, width = shapes.amax(0).tolist()
    row_inside = torch.arange(height, device=shapes.device)[None] < shapes[:, :1]
    col_inside = torch.arange(width, device=shapes.device)[None] < shapes[:, 1:]
    return GridLayout(batch.bag, rows, cols, row_inside[:, :, None] & col_inside[:, None, :], shapes)


def row_shapes(shapes: Tensor) -> Tensor:
    """Rows and columns ``[batch, 2]`` of grids of these shapes, each flattened to one row."""
    return torch.stack([torch.ones_like(shapes[:, 0]), shapes.prod(1)], 1)


class Mamba2DMixer(nn.Module):
    """Mamba's mixer with a 2D scan: projection, depthwise convolution, SiLU, scans, gate, projection.

    With two or four directions the grid is scanned again flipped, each time with its own Δ, B, C, A and D (or shared
    ones), and the results are averaged. Padding is zero wherever it could be read from, so that a bag's output does
    not depend on the batch it is in.

    Args:
        dim: width of the grid ``[batch, height, width, dim]``.
        state: states a channel, N.
        expand: the inner width E is ``expand * dim``.
        conv: 3×3 over the grid, a causal one of width 4 along the raster, or none.
        directions: 1, 2 (forward, and both axes flipped) or 4 (all flips).
        share_directions: one set of scan parameters for all directions.
        scan: false leaves the convolution alone, a control.
        scan_order: ``2d``; or each direction is a 1D scan of the flipped grid in raster or serpentine order, while the
            convolution stays what it is: a control. ``cross``: 1D scans along rows and along columns, with two
            directions forward, with four back as well.
        dt_init: ``mamba`` starts Δ log-uniform in [dt_min, dt_max]; ``published`` with a zero bias, so near 0.69.

    Raises:
        ConfigError: the variable ``WSI2D_SCAN_BACKEND`` names a backend that is not there; a cross-scan in one
            direction.

    Source: A. Gu and T. Dao, "Mamba", 2023, for all but the scan; see :mod:`wsi2d.kernels.scan2d` for that.
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int,
        expand: int,
        conv: Convolution,
        directions: int,
        share_directions: bool,
        scan: bool,
        dt_init: DtInit,
        dt_min: float,
        dt_max: float,
        scan_order: ScanOrder = "2d",
    ) -> None:
        super().__init__()
        if scan:
            refuse_unknown_backend()
        if scan_order == "cross" and directions not in _CROSS_FLIPS:
            raise ConfigError(f"scan_order 'cross' takes 2 or 4 directions, got {directions}")
        inner = expand * dim
        self.conv = conv
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        if conv == "2d":
            self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        elif conv == "raster":
            self.conv1d = nn.Conv1d(inner, inner, RASTER_WIDTH, padding=RASTER_WIDTH - 1, groups=inner)
        flips = _CROSS_FLIPS if scan_order == "cross" else _FLIPS
        self.flips = flips[directions] if scan else ()
        self.scan_order = scan_order
        sets = 1 if share_directions else directions
        self.scans = nn.ModuleList(
            ScanParameters(inner, state, math.ceil(dim / 16), dt_init, dt_min, dt_max)
            for _ in range(sets if scan else 0)
        )
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, grid: Tensor, layout: GridLayout) -> Tensor:
        """Mixed grid, ``[batch, height, width, dim]``."""
        inside = layout.inside.unsqueeze(-1)
        u, z = (self.in_proj(grid) * inside).chunk(2, -1)
        u = functional.silu(self._convolve(u, layout)) * inside
        if self.flips:
            u = self._scan(u, layout)
        mixed: Tensor = self.out_proj(u * functional.silu(z))
        return mixed

    def _scan(self, u: Tensor, layout: GridLayout) -> Tensor:
        total = torch.zeros_like(u)
        for k, flip in enumerate(self.flips):
            parameters = self.scans[k % len(self.scans)]
            if self.scan_order == "2d":
                total = total + parameters(u.flip(flip)).flip(flip)
            else:
                total = total + self._scan_sequence(parameters, u, layout, k)
        return total / len(self.flips)

    def _scan_sequence(self, parameters: nn.Module, u: Tensor, layout: GridLayout, direction: int) -> Tensor:
        """Each bag's own cells one after the other, its padding after them, where it is never read."""
        order = cell_order(
            layout.inside, layout.shapes, self.flips[direction],
            serpentine=self.scan_order == "serpentine",
            by_columns=self.scan_order == "cross" and direction % 2 == 1,
        )  # fmt: skip
        scanned = parameters(taken(u.flatten(1, 2), order).unsqueeze(1)).squeeze(1)
        return taken(scanned, order.argsort(1)).view_as(u)

    def _convolve(self, u: Tensor, layout: GridLayout) -> Tensor:
        if self.conv == "2d":
            convolved: Tensor = self.conv2d(u.permute(0, 3, 1, 2))
            return convolved.permute(0, 2, 3, 1)
        if self.conv == "raster":
            return self._convolve_raster(u, layout)
        return u

    def _convolve_raster(self, u: Tensor, layout: GridLayout) -> Tensor:
        """Along each bag's own rows one after the other: padding between rows is left out of the sequence."""
        bag, row, col = layout.inside.nonzero(as_tuple=True)
        place = row * layout.shapes[bag, 1] + col
        length = int(layout.shapes.prod(1).max())
        sequence = u.new_zeros(len(u), length, u.shape[-1]).index_put((bag, place), u[bag, row, col])
        mixed = self.conv1d(sequence.transpose(1, 2))[..., :length].transpose(1, 2)
        return torch.zeros_like(u).index_put((bag, row, col), mixed[bag, place])


def refuse_unknown_backend() -> None:
    """Tell before the first slide is read that the variable ``WSI2D_SCAN_BACKEND`` names a backend that is not there.

    Raises:
        ConfigError: it does.
    """
    named = os.environ.get(BACKEND_VARIABLE)
    if named and named not in available_backends():
        raise ConfigError(
            f"{BACKEND_VARIABLE} is '{named}', it should be one of {', '.join(available_backends())}, or not set"
        )


def step_parameters(
    inner: int, state: int, rank: int, dt_init: DtInit, dt_min: float, dt_max: float
) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """What makes the steps Δ and the decays A of one scan, at Mamba's starting values.

    Args:
        inner, state, rank: channels, states a channel, width from which Δ is projected.
        dt_init, dt_min, dt_max: as of :class:`Mamba2DMixer`.

    Returns:
        The projection ``[inner, rank]`` of Δ, its bias ``[inner]`` before the softplus, log(−A) ``[inner, state]``.
    """
    weight = nn.Parameter(torch.empty(inner, rank).uniform_(-(rank**-0.5), rank**-0.5))
    if dt_init == "mamba":
        step = torch.exp(torch.rand(inner) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min))
        bias = step + torch.log(-torch.expm1(-step))  # the inverse of softplus
    else:
        bias = torch.zeros(inner)
    A_log = torch.arange(1, state + 1, dtype=torch.float32).log().repeat(inner, 1)
    return weight, nn.Parameter(bias), nn.Parameter(A_log)


class ScanParameters(nn.Module):
    """The selective parameters of one scan direction, and the scan with them."""

    def __init__(self, inner: int, state: int, rank: int, dt_init: DtInit, dt_min: float, dt_max: float) -> None:
        super().__init__()
        self.split = (rank, state, state)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_weight, self.dt_bias, self.A_log = step_parameters(inner, state, rank, dt_init, dt_min, dt_max)
        self.D = nn.Parameter(torch.ones(inner))

    def forward(self, u: Tensor) -> Tensor:
        """Scanned grid, ``[batch, height, width, inner]``."""
        low_rank, B, C = self.x_proj(u).split(self.split, -1)
        delta = functional.linear(low_rank, self.dt_weight)
        A = -torch.exp(self.A_log)
        return selective_scan_2d(u, delta, A, B, C, self.D, delta_bias=self.dt_bias, delta_softplus=True)


class MixerBlock(nn.Module):
    """``x + mixer(RMSNorm(x))``."""

    def __init__(self, mixer: Mamba2DMixer, dim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = mixer

    def forward(self, grid: Tensor, layout: GridLayout) -> Tensor:
        """Residual update of ``[batch, height, width, dim]``."""
        update: Tensor = self.mixer(self.norm(grid), layout)
        return grid + update


class Mamba2DBlock(nn.Module):
    """A residual 2D Mamba block for grids without padding: ``[batch, height, width, dim]`` to the same.

    For those who want the 2D scan in a model of their own; the arguments are those of :class:`Mamba2DMixer`.
    """

    def __init__(
        self, dim: int, *, state: int = 16, expand: int = 2, conv: Convolution = "2d", directions: int = 1
    ) -> None:
        super().__init__()
        self.block = MixerBlock(
            Mamba2DMixer(
                dim, state=state, expand=expand, conv=conv, directions=directions, share_directions=False, scan=True,
                dt_init="mamba", dt_min=0.001, dt_max=0.1,
            ),
            dim,
        )  # fmt: skip

    def forward(self, grid: Tensor) -> Tensor:
        """The grid and what the scan adds to it."""
        batch, height, width, _ = grid.shape
        inside = torch.ones(batch, height, width, dtype=torch.bool, device=grid.device)
        shapes = torch.tensor([[height, width]], device=grid.device).expand(batch, 2)
        nowhere = torch.empty(0, dtype=torch.int64, device=grid.device)
        mixed: Tensor = self.block(grid, GridLayout(nowhere, nowhere, nowhere, inside, shapes))
        return mixed


class AttentionPool(nn.Module):
    """Attention pooling: a score a cell, softmax over a bag's cells, weighted mean.

    Source: M. Ilse, J. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, equation 8
    (and 9 where gated).
    """

    def __init__(self, dim: int, hidden: int, *, gated: bool = False) -> None:
        super().__init__()
        self.value = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden) if gated else None
        self.score = nn.Linear(hidden, 1)

    def forward(self, cells: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled ``[batch, dim]`` and attention ``[batch, cells]`` of cells ``[batch, cells, dim]`` where mask."""
        hidden = torch.tanh(self.value(cells))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(cells))
        scores = self.score(hidden).squeeze(-1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        attention = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return torch.einsum("bl,bld->bd", attention.to(cells.dtype), cells), attention


def max_pool(cells: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's maximum over a bag's cells.

    Args:
        cells: ``[batch, cells, dim]``.
        mask: bool ``[batch, cells]``, true where there is a cell.

    Returns:
        The maxima ``[batch, dim]``, and of each cell the share of channels whose maximum it holds, ``[batch, cells]``,
        in single precision at least.
    """
    values, at = cells.masked_fill(~mask.unsqueeze(-1), -math.inf).max(1)
    held = torch.zeros(mask.shape, dtype=torch.promote_types(cells.dtype, torch.float32), device=cells.device)
    return values, held.scatter_add(1, at, torch.ones_like(at, dtype=held.dtype)) / at.shape[1]


class Standardise(nn.Module):
    """Features to mean 0 and standard deviation 1, by the statistics of the training fold kept with the weights."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, mean: Tensor, sd: Tensor) -> None:
        """Take over statistics ``[dim]``; a feature that never varies is only centred."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(sd > 1e-6, sd, torch.ones_like(sd)))

    def forward(self, features: Tensor) -> Tensor:
        """Standardised features ``[M, dim]``."""
        return (features - self.mean) / self.scale
