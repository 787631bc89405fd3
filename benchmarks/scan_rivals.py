"""Two other Triton kernels that compute selective scans, to compare ours with. Forward only.

``published`` has the structure that the 2DMamba paper describes for its CUDA kernel (J. Zhang et al., CVPR 2025, on
hardware-aware 2D scanning): one program for each image and channel, which walks the tiles of the grid and, in each
tile, the states one after the other; a tile is scanned along its rows, then down its columns, and what crosses its
borders waits in memory. ``sequence`` is a plain 1D scan, as of Mamba: a program for each image and block of channels
walks the sequence from start to end with its states in registers.

Both take float32 or half, no gate, bias or skip, and positive steps. This module needs triton.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _after(a1, x1, a2, x2):
    """Two steps of h ← a · h + x as one."""
    return a1 * a2, a2 * x1 + x2


@triton.jit(do_not_specialize=["height", "width"])
def _published(
    u, delta, B, C, A, out, right, down, height, width, dim,
    STATES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    image, channel = tl.program_id(0) // dim, tl.program_id(0) % dim
    i, j = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    grid, states = height * width, image.to(tl.int64) * STATES * height * width
    base = tl.program_id(0).to(tl.int64)
    right, down = right + base * STATES * height, down + base * STATES * width
    for top in range(0, height, ROWS):
        for left in range(0, width, COLUMNS):
            row, column = top + i, left + j
            inside = (row < height)[:, None] & (column < width)[None, :]
            cell = row[:, None] * width + column[None, :]
            step = tl.load(delta + base * grid + cell, mask=inside, other=0.0).to(tl.float32)
            drive = step * tl.load(u + base * grid + cell, mask=inside, other=0.0).to(tl.float32)
            y = tl.zeros((ROWS, COLUMNS), tl.float32)
            for n in range(STATES):
                into = tl.load(B + states + n * grid + cell, mask=inside, other=0.0).to(tl.float32)
                from_h = tl.load(C + states + n * grid + cell, mask=inside, other=0.0).to(tl.float32)
                a = tl.exp2(step * tl.load(A + channel * STATES + n))
                g_left = tl.load(right + n * height + row, mask=(row < height) & (left > 0), other=0.0)
                h_above = tl.load(down + n * width + column, mask=(column < width) & (top > 0), other=0.0)
                x = drive * into
                x = tl.where(j[None, :] == 0, x + a * g_left[:, None], x)
                _, g = tl.associative_scan((a, x), 1, _after)
                x = tl.where(i[:, None] == 0, g + a * h_above[None, :], g)
                _, h = tl.associative_scan((a, x), 0, _after)
                y += h * from_h
                last_g = tl.sum(tl.where(j[None, :] == COLUMNS - 1, g, 0.0), 1)
                last_h = tl.sum(tl.where(i[:, None] == ROWS - 1, h, 0.0), 0)
                tl.store(right + n * height + row, last_g, mask=row < height)
                tl.store(down + n * width + column, last_h, mask=column < width)
            tl.debug_barrier()
            tl.store(out + base * grid + cell, y, mask=inside)


def published(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, rows: int = 16, columns: int = 16) -> Tensor:
    """The 2D selective scan with channels before positions, which suits this structure.

    Args:
        u, delta: ``[batch, dim, height, width]``.
        A: ``[dim, state]``.
        B, C: ``[batch, state, height, width]``; states a power of two.
    """
    batch, dim, height, width = u.shape
    out, state = torch.empty_like(u), A.shape[1]
    right = torch.empty(batch, dim, state, height, device=u.device)
    down = torch.empty(batch, dim, state, width, device=u.device)
    rates = (A.double() * math.log2(math.e)).float().contiguous()
    sizes = {"STATES": state, "ROWS": rows, "COLUMNS": columns, "num_warps": 4}
    _published[(batch * dim,)](u, delta, B, C, rates, out, right, down, height, width, dim, **sizes)
    return out


@triton.jit(do_not_specialize=["length"])
def _sequence(
    u, delta, B, C, A, out, length, dim: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    image, block = tl.program_id(0), tl.program_id(1)
    n, channel = tl.arange(0, STATES), block * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < dim
    rates = tl.load(A + channel[:, None] * STATES + n[None, :], mask=there[:, None], other=0.0)
    h = tl.zeros((CHANNELS, STATES), tl.float32)
    for t in range(length):
        cell = image.to(tl.int64) * length + t
        step = tl.load(delta + cell * dim + channel, mask=there, other=0.0).to(tl.float32)
        drive = step * tl.load(u + cell * dim + channel, mask=there, other=0.0).to(tl.float32)
        into = tl.load(B + cell * STATES + n).to(tl.float32)
        from_h = tl.load(C + cell * STATES + n).to(tl.float32)
        h = tl.exp2(step[:, None] * rates) * h + drive[:, None] * into[None, :]
        tl.store(out + cell * dim + channel, tl.sum(h * from_h[None, :], 1), mask=there)


def sequence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The 1D selective scan.

    Args:
        u, delta: ``[batch, length, dim]``.
        A: ``[dim, state]``.
        B, C: ``[batch, length, state]``; states a power of two.
    """
    batch, length, dim = u.shape
    out, channels = torch.empty_like(u), 8
    rates = (A.double() * math.log2(math.e)).float().contiguous()
    sizes = {"dim": dim, "STATES": A.shape[1], "CHANNELS": channels, "num_warps": 1}
    _sequence[(batch, triton.cdiv(dim, channels))](u, delta, B, C, rates, out, length, **sizes)
    return out
