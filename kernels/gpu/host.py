"""The host of the GPU kernels: how a grid is cut, the memory beside the arguments, the launches.

This module needs triton. In Triton's interpreter (``TRITON_INTERPRET=1``) it takes tensors on the CPU, slowly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from wsi2d.kernels.gpu import selective, wavefront
from wsi2d.kernels.gpu.tuning import Tiling, choose, power_of_two

_PROGRAMS_A_PROCESSOR = {False: 12, True: 8}  # forward and, with more registers, backward
_INTERPRETED_PROGRAMS = 3
_KEPT = 8 * 2**20  # bytes of what crosses the borders of tiles that the backward may always keep

Grids = Sequence[Tensor]


# --- how a grid is cut ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """A grid in tiles, and some of its channels in blocks.

    Attributes:
        size: ``[images, height, width, dim]``.
        states: of a channel, filled up to a power of two.
        first, blocks: the channels of one launch, from ``first`` on.
    """

    size: torch.Size
    state: int
    tiling: Tiling
    first: int
    blocks: int

    @property
    def states(self) -> int:
        return power_of_two(self.state)

    @property
    def down(self) -> int:
        return -(-self.size[1] // self.tiling.rows)

    @property
    def across(self) -> int:
        return -(-self.size[2] // self.tiling.columns)

    @property
    def carried(self) -> int:
        """Channels of the launch, filled up to whole blocks."""
        return self.blocks * self.tiling.channels

    @property
    def units(self) -> int:
        """Tiles of all blocks and images."""
        return self.down * self.across * self.blocks * self.size[0]

    def numbers(self) -> tuple[int, ...]:
        """What both kernels take of the tiles."""
        return self.down, self.across, self.blocks, self.size[0], self.first

    def sizes(self) -> tuple[int, ...]:
        """And of the grid."""
        return *self.size[1:], self.state

    def constants(self, **options: bool) -> dict[str, Any]:
        tiling = self.tiling
        sizes = {"ROWS": tiling.rows, "COLUMNS": tiling.columns, "STATES": self.states, "CHANNELS": tiling.channels}
        return {**sizes, **options, "num_warps": tiling.warps}


def _chunks(size: torch.Size, state: int, tiling: Tiling, kept: int) -> Iterator[_Cut]:
    """Channels in launches whose tiles' borders need no more than ``kept`` bytes, but a block at least."""
    images, height, width, dim = size
    whole = _Cut(size, state, tiling, 0, -(-dim // tiling.channels))
    of_block = 4 * images * whole.states * tiling.channels * (whole.across * height + whole.down * width)
    blocks = max(1, min(whole.blocks, kept // of_block))
    for first in range(0, whole.blocks, blocks):
        yield _Cut(size, state, tiling, first * tiling.channels, min(blocks, whole.blocks - first))


@cache
def _most_programs(device: torch.device, reverse: bool) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return _PROGRAMS_A_PROCESSOR[reverse] * int(torch.cuda.get_device_properties(device).multi_processor_count)


# --- arguments -----------------------------------------------------------------------------------------------------


def _in_line(tensor: Tensor) -> Tensor:
    """Channels or states side by side, and all cells at one distance, as the kernels read them."""
    _, height, width, count = tensor.shape
    between = tensor.stride(2) if width > 1 else count
    wanted = (height * width * between, width * between, between, 1)
    pairs = zip(tensor.shape, tensor.stride(), wanted, strict=True)
    if between >= count and all(size == 1 or stride == right for size, stride, right in pairs):
        return tensor
    return tensor.contiguous()


def _between(grids: Grids) -> list[int]:
    """How far apart the cells of each grid lie."""
    return [grid.stride(2) if grid.shape[2] > 1 else grid.shape[3] for grid in grids]


def _rates(A: Tensor, states: int, channels: int) -> Tensor:
    """log2(e)·A, filled up with zeros to whole blocks of channels and ``states``."""
    dim, state = A.shape
    scaled = A.double() * math.log2(math.e)
    return torch.nn.functional.pad(scaled, (0, states - state, 0, -dim % channels)).float().contiguous()


def _lanes(values: Tensor | None, dim: int, channels: int, device: torch.device) -> Tensor:
    """``[dim]`` in float32, filled up likewise; all zeros where there are none."""
    if values is None:
        return torch.zeros(dim + -dim % channels, device=device)
    return torch.nn.functional.pad(values.float(), (0, -dim % channels))


def _of_channels(cut: _Cut, A: Grids, lanes: Sequence[Tensor | None], device: torch.device) -> tuple[Tensor, ...]:
    """What the kernels take of all channels, for every launch of them."""
    channels, dim = cut.tiling.channels, cut.size[3]
    rates = (_rates(values, cut.states, channels) for values in A)
    return *rates, *(_lanes(values, dim, channels, device) for values in lanes)


def _empty(*shape: int, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)


def _like(grid: Tensor) -> Tensor:
    """A result in the shape and dtype of a grid, whatever its strides."""
    return torch.empty(grid.shape, dtype=grid.dtype, device=grid.device)


def _launch(
    kernel: Any, cut: _Cut, reverse: bool, grids: Grids, rest: Sequence[Any], constants: dict[str, Any]
) -> None:
    """Draw all tiles of a cut: ``grids`` are pointers up to the tickets, ``rest`` what comes behind the flags."""
    device = grids[0].device
    waiting = torch.zeros(1 + cut.units, dtype=torch.int32, device=device)
    programs = min(cut.units, _most_programs(device, reverse))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*grids, waiting, waiting[1:], *rest, **constants)


class _Borders:
    """What crosses the borders of tiles: overwritten by the next tile, or all kept for a backward."""

    def __init__(self, cut: _Cut, device: torch.device, *, keep: bool) -> None:
        images, height, width, _ = cut.size
        self.right = _empty(cut.across if keep else 1, images, height, cut.carried, cut.states, device=device)
        self.down = _empty(cut.down if keep else 1, images, width, cut.carried, cut.states, device=device)


class _Sums:
    """Gradients that are summed over channels ``[images, height, width, state]``: one sum that all programs add to, or
    one for each block of a launch where the order of additions must always be the same."""

    def __init__(self, count: int, cut: _Cut, device: torch.device) -> None:
        self.atomic = not torch.are_deterministic_algorithms_enabled()
        shape = (1 if self.atomic else cut.blocks, *cut.size[:3], cut.state)
        self.parts = [torch.zeros(shape, dtype=torch.float32, device=device) for _ in range(count)]
        self.stride = self.parts[0][0].numel()

    def totals(self) -> list[Tensor]:
        return [part.sum(0) if len(part) > 1 else part[0] for part in self.parts]


def _kept_bytes(arguments: Grids, B: Tensor, sums: int, state: int, tiling: Tiling) -> int:
    """What a backward may keep of the borders, for it to need no more than a quarter of its arguments where it can."""
    size = sum(grid.numel() * grid.element_size() for grid in arguments)
    of_tile = 4 * tiling.rows * tiling.columns * tiling.channels * power_of_two(state)
    scratch = _most_programs(B.device, True) * of_tile
    halves = 0 if B.dtype == torch.float32 else sums * B.numel() * 4
    return max(_KEPT, size // 4 - scratch - halves - _KEPT // 4)


# --- the selective scan --------------------------------------------------------------------------------------------


def selective_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, softplus: bool,
) -> Tensor:  # fmt: skip
    """The output in the dtype of u; arguments as :func:`wsi2d.kernels.scan2d.selective_scan_2d` describes them."""
    out = _like(u)
    if not u.numel():
        return out
    u, delta, B, C = (_in_line(t) for t in (u, delta, B, C))
    z = None if z is None else _in_line(z)

    def run(tiling: Tiling) -> Tensor:
        cut = _Cut(u.shape, A.shape[1], tiling, 0, -(-u.shape[3] // tiling.channels))
        parameters = _of_channels(cut, (A,), (D, delta_bias), u.device)
        _selective_tiles(cut, (u, delta, u if z is None else z, B, C), parameters, out, softplus, z is not None)
        return out

    return run(choose("selective", "forward", u, A.shape[1], run))


def _selective_tiles(
    cut: _Cut, grids: Grids, parameters: Grids, out: Tensor | None, softplus: bool, gated: bool
) -> _Borders:
    """Run the forward kernel; without ``out`` only for what crosses the borders, all of which is kept."""
    borders = _Borders(cut, grids[0].device, keep=out is None)
    tensors = *grids, *parameters, grids[0] if out is None else out, borders.right, borders.down
    rest = *cut.numbers(), *_between(grids), *cut.sizes()
    constants = cut.constants(SOFTPLUS=softplus, GATED=gated, WRITE=out is not None)
    _launch(selective.forward, cut, False, tensors, rest, constants)
    return borders


def selective_backward(
    grad_out: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, softplus: bool,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of all arguments but the last, in their order; None for those that are not there."""
    tensors = u, delta, A, B, C, D, z, delta_bias
    if not u.numel():
        return [None if t is None else torch.zeros_like(t) for t in tensors]
    u, delta, B, C, q = (_in_line(t) for t in (u, delta, B, C, grad_out))
    z = None if z is None else _in_line(z)
    grids = u, delta, u if z is None else z, B, C
    grad_u, grad_delta, grad_z = _like(u), _like(delta), None if z is None else _like(z)
    device, dim, state = u.device, u.shape[3], A.shape[1]

    def group(cut: _Cut, parameters: Grids, sums: _Sums) -> tuple[Tensor, Tensor]:
        """Some channels; what crosses their borders is gone before the next ones come."""
        borders = _selective_tiles(cut, grids, parameters, None, softplus, False)
        shared = _Shared(cut, device, of_states=1, of_channels=2)
        pointers = (
            *grids, *parameters, q, grad_u, grad_delta, grad_u if grad_z is None else grad_z, *sums.parts,
            *shared.of_states, shared.of_channels, borders.right, borders.down, *shared.scratch,
        )  # fmt: skip
        rest = sums.stride, *cut.numbers(), *_between((*grids, q)), *cut.sizes()
        constants = cut.constants(SOFTPLUS=softplus, GATED=z is not None, ATOMIC=sums.atomic)
        _launch(selective.backward, cut, True, pointers, rest, constants)
        return shared.of_states[0].sum((0, 1)), shared.of_channels.sum((0, 1))

    def run(tiling: Tiling) -> list[Tensor | None]:
        arguments = [t for t in (u, delta, z, B, C) if t is not None]
        cuts = list(_chunks(u.shape, state, tiling, _kept_bytes(arguments, B, 2, state, tiling)))
        sums, parameters = _Sums(2, cuts[0], device), _of_channels(cuts[0], (A,), (D, delta_bias), device)
        of_A, of_channels = zip(*(group(cut, parameters, sums) for cut in cuts), strict=True)
        grad_A = torch.cat(of_A)[:dim, :state].contiguous()
        grad_D, grad_bias = torch.cat(of_channels, 1)[:, :dim]
        return [
            grad_u, grad_delta, grad_A, *sums.totals(), None if D is None else grad_D.clone(), grad_z,
            None if delta_bias is None else grad_bias.clone(),
        ]  # fmt: skip

    return run(choose("selective", "backward", u, state, run))


class _Shared:
    """What the tiles of a backward add to, and their scratch."""

    def __init__(self, cut: _Cut, device: torch.device, *, of_states: int, of_channels: int) -> None:
        (images, height, width, _), tiling = cut.size, cut.tiling

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        self.of_states = [zeros(cut.down, images, cut.carried, cut.states) for _ in range(of_states)]
        self.of_channels = zeros(cut.down, images, of_channels, cut.carried)
        programs = min(cut.units, _most_programs(device, True))
        self.scratch = (
            _empty(images, height, cut.carried, cut.states, device=device),
            _empty(images, width, cut.carried, cut.states, device=device),
            _empty(programs, tiling.rows, tiling.columns, tiling.channels, cut.states, device=device),
        )


# --- the wavefront scan --------------------------------------------------------------------------------------------


def wavefront_forward(
    x: Tensor, delta_t: Tensor, delta_l: Tensor, A_t: Tensor, A_l: Tensor,
    B_t: Tensor, B_l: Tensor, C: Tensor, D: Tensor | None,
) -> Tensor:  # fmt: skip
    """The output in the dtype of x; arguments as :func:`wsi2d.kernels.scan2d.wavefront_scan_2d` describes them."""
    out = _like(x)
    if not x.numel():
        return out
    grids = tuple(_in_line(t) for t in (x, delta_t, delta_l, B_t, B_l, C))

    def run(tiling: Tiling) -> Tensor:
        cut = _Cut(x.shape, A_t.shape[1], tiling, 0, -(-x.shape[3] // tiling.channels))
        _wavefront_tiles(cut, grids, _of_channels(cut, (A_t, A_l), (D,), x.device), out)
        return out

    return run(choose("wavefront", "forward", x, A_t.shape[1], run))


def _wavefront_tiles(cut: _Cut, grids: Grids, parameters: Grids, out: Tensor | None) -> _Borders:
    """Run the forward kernel; without ``out`` only for what crosses the borders, all of which is kept."""
    borders = _Borders(cut, grids[0].device, keep=out is None)
    tensors = *grids, *parameters, grids[0] if out is None else out, borders.right, borders.down
    rest = *cut.numbers(), *_between(grids), *cut.sizes()
    _launch(wavefront.forward, cut, False, tensors, rest, cut.constants(WRITE=out is not None))
    return borders


def wavefront_backward(
    grad_out: Tensor, x: Tensor, delta_t: Tensor, delta_l: Tensor, A_t: Tensor, A_l: Tensor,
    B_t: Tensor, B_l: Tensor, C: Tensor, D: Tensor | None,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of all arguments in their order; None for a D that is not there."""
    if not x.numel():
        tensors = x, delta_t, delta_l, A_t, A_l, B_t, B_l, C, D
        return [None if t is None else torch.zeros_like(t) for t in tensors]
    grids, q = tuple(_in_line(t) for t in (x, delta_t, delta_l, B_t, B_l, C)), _in_line(grad_out)
    grads = [_like(t) for t in (x, delta_t, delta_l)]
    device, dim, state = x.device, x.shape[3], A_t.shape[1]

    def group(cut: _Cut, parameters: Grids, sums: _Sums) -> list[Tensor]:
        """Some channels; what crosses their borders is gone before the next ones come."""
        borders = _wavefront_tiles(cut, grids, parameters, None)
        shared = _Shared(cut, device, of_states=2, of_channels=1)
        pointers = (
            *grids, *parameters, q, *grads, *sums.parts, *shared.of_states, shared.of_channels, borders.right,
            borders.down, *shared.scratch,
        )  # fmt: skip
        rest = sums.stride, *cut.numbers(), *_between((*grids, q)), *cut.sizes()
        _launch(wavefront.backward, cut, True, pointers, rest, cut.constants(ATOMIC=sums.atomic))
        return [part.sum((0, 1)) for part in (*shared.of_states, shared.of_channels)]

    def run(tiling: Tiling) -> list[Tensor | None]:
        cuts = list(_chunks(x.shape, state, tiling, _kept_bytes(grids, C, 3, state, tiling)))
        sums, parameters = _Sums(3, cuts[0], device), _of_channels(cuts[0], (A_t, A_l), (D,), device)
        of_At, of_Al, of_D = zip(*(group(cut, parameters, sums) for cut in cuts), strict=True)
        grad_At, grad_Al = (torch.cat(parts)[:dim, :state].contiguous() for parts in (of_At, of_Al))
        return [*grads, grad_At, grad_Al, *sums.totals(), None if D is None else torch.cat(of_D, 1)[0, :dim]]

    return run(choose("wavefront", "backward", x, state, run))
