"""Mamba2D's block: a wavefront scan without a gate, a local path beside it, MetaFormer's residuals.

::

    mixer(x) = out_proj(gelu(mean over scans of scan(gelu(in_proj(x))))) + local(LayerNorm(x))
    local(x) = pointwise(star(depthwise3×3(star(pointwise(x)))))        star(x) = s · relu(x)² + b, s and b learnt
    x ← x + mixer(LayerNorm(x))        x ← x + mlp(LayerNorm(x)), mlp = linear(gelu(linear(·)))

A scan has two parameter sets, one for what comes from above and one for what comes from the left; the second scan, with
two more of its own, runs over each bag's grid turned by half a circle, and is turned back.

Source: E. Baty, A. Hernández Díaz, C. Bridges, R. Davidson, S. Eckersley, S. Hadfield, "Mamba2D: A Natively
Multi-Dimensional State-Space Model for Vision Tasks", 2024; W. Yu et al., "MetaFormer Baselines for Vision", IEEE TPAMI
2024, for the residuals, the separable convolution and StarReLU.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi2d.kernels.scan2d import wavefront_scan_2d
from wsi2d.models.blocks import DtInit, GridLayout, refuse_unknown_backend, step_parameters

Scans = Literal[0, 1, 2]


class StepParameters(nn.Module):
    """Steps and decays of what comes from one side."""

    def __init__(self, inner: int, state: int, rank: int, dt_init: DtInit, dt_min: float, dt_max: float) -> None:
        super().__init__()
        self.dt_weight, self.dt_bias, self.A_log = step_parameters(inner, state, rank, dt_init, dt_min, dt_max)

    def forward(self, low_rank: Tensor) -> tuple[Tensor, Tensor]:
        """Δ ``[..., inner]`` of its projection ``[..., rank]``, and A ``[inner, state]``."""
        delta = functional.softplus(functional.linear(low_rank, self.dt_weight, self.dt_bias))
        return delta, -torch.exp(self.A_log)


class WavefrontParameters(nn.Module):
    """The selective parameters of one wavefront scan, and the scan with them."""

    def __init__(self, inner: int, state: int, rank: int, dt_init: DtInit, dt_min: float, dt_max: float) -> None:
        super().__init__()
        self.split = (rank, rank, state, state, state)
        self.x_proj = nn.Linear(inner, sum(self.split), bias=False)
        self.above = StepParameters(inner, state, rank, dt_init, dt_min, dt_max)
        self.left = StepParameters(inner, state, rank, dt_init, dt_min, dt_max)
        self.D = nn.Parameter(torch.ones(inner))

    def forward(self, x: Tensor) -> Tensor:
        """Scanned grid, ``[batch, height, width, inner]``."""
        from_above, from_left, B_t, B_l, C = self.x_proj(x).split(self.split, -1)
        delta_t, A_t = self.above(from_above)
        delta_l, A_l = self.left(from_left)
        return wavefront_scan_2d(x, delta_t, delta_l, A_t, A_l, B_t, B_l, C, self.D)


class StarReLU(nn.Module):
    """``scale · relu(x)² + bias`` with one learnt scale and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """As above, element by element."""
        return self.scale * functional.relu(x).square() + self.bias


class LocalPath(nn.Module):
    """A depthwise 3×3 convolution between two layers over the channels, twice as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, 2 * dim, bias=False)
        self.before = StarReLU()
        self.conv2d = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False)
        self.after = StarReLU()
        self.narrow = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, grid: Tensor, layout: GridLayout) -> Tensor:
        """``[batch, height, width, dim]``; padding counts as zero, as what lies outside of a grid does."""
        wide = self.before(self.widen(self.norm(grid))) * layout.inside.unsqueeze(-1)
        near = self.conv2d(wide.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = self.narrow(self.after(near))
        return out


class M2DMixer(nn.Module):
    """Mamba2D's token mixer.

    What a cell gets from above and from the left never comes from padding, which lies below and to the right of each
    bag's grid, also of the turned one.

    Args:
        dim: width of the grid ``[batch, height, width, dim]``.
        state: states a channel, N.
        expand: the inner width is ``expand * dim``.
        scans: 1 from the top left; 2 also from the bottom right; 0 leaves the local path alone, a control.
        local: whether there is a local path.
        dt_init, dt_min, dt_max: as of :class:`wsi2d.models.blocks.Mamba2DMixer`.

    Raises:
        ConfigError: the variable ``WSI2D_SCAN_BACKEND`` names a backend that is not there.
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int,
        expand: int,
        scans: Scans,
        local: bool,
        dt_init: DtInit,
        dt_min: float,
        dt_max: float,
    ) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.local = LocalPath(dim) if local else None
        self.scans = nn.ModuleList(
            WavefrontParameters(inner, state, rank, dt_init, dt_min, dt_max) for _ in range(scans)
        )
        if scans:
            refuse_unknown_backend()
            self.in_proj = nn.Linear(dim, inner)
            self.out_proj = nn.Linear(inner, dim)

    def forward(self, grid: Tensor, layout: GridLayout) -> Tensor:
        """Mixed grid, ``[batch, height, width, dim]``."""
        mixed = torch.zeros_like(grid) if self.local is None else self.local(grid, layout)
        if len(self.scans) == 0:
            return mixed
        x = functional.gelu(self.in_proj(grid))
        y = self.scans[0](x)
        if len(self.scans) == 2:
            y = (y + layout.turn(self.scans[1](layout.turn(x)))) / 2
        scanned: Tensor = self.out_proj(functional.gelu(y))
        return mixed + scanned


class M2DBlock(nn.Module):
    """``x + mixer(LayerNorm(x))``, then ``x + mlp(LayerNorm(x))``.

    Args:
        mixer: of the same width.
        dim: width of the grid.
        mlp_ratio: the MLP is so many times wider inside.
    """

    def __init__(self, mixer: M2DMixer, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, grid: Tensor, layout: GridLayout) -> Tensor:
        """Both residual updates of ``[batch, height, width, dim]``."""
        grid = grid + self.mixer(self.norm1(grid), layout)
        updated: Tensor = grid + self.mlp(self.norm2(grid))
        return updated
