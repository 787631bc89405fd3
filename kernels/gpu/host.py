"""The host of the GPU kernels: how a grid is cut, the memory beside the arguments, the launches.

This module needs triton. In Triton's interpreter (``TRITON_INTERPRET=1``) it takes tensors on the CPU, slowly.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from wsi2d.kernels.gpu import selective, wavefront
from wsi2d.kernels.gpu.tuning import LARGE, Tiling, choose, power_of_two

_PROGRAMS_A_PROCESSOR = {False: 12, True: 8}  # forward and, with more registers, backward
_INTERPRETED_PROGRAMS = 3
_FREELY = 512 * 2**20  # bytes that a backward may take on grids below LARGE: all channels in one launch
_SPARE = 8 * 2**20  # of a quarter, for what the allocator rounds up
_FEWEST_CHANNELS = 4  # of a block, where a block of more would take too much memory

Grids = Sequence[Tensor]
_Result = TypeVar("_Result")


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

    def right(self, planes: int) -> tuple[int, ...]:
        """Shape of what crosses right borders, of so many tile columns at most: the last one has no neighbour."""
        return min(planes, self.across - 1), self.size[0], self.size[1], self.carried, self.states

    def lower(self, planes: int) -> tuple[int, ...]:
        """And lower ones, of tile rows."""
        return min(planes, self.down - 1), self.size[0], self.size[2], self.carried, self.states

    def programs(self, reverse: bool, device: torch.device) -> int:
        """No more than run at a time, nor than twice the tiles that do not depend on each other."""
        at_once = min(self.down, self.across) * self.blocks * self.size[0]
        return min(self.units, 2 * at_once, _most_programs(device, reverse))

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


def _chunks(
    size: torch.Size, state: int, tiling: Tiling, allowed: int, sums: _Kinds, device: torch.device
) -> list[_Cut]:
    """Channels in launches that take no more than ``allowed`` bytes beside arguments and results, but a block at least.

    A block is of fewer channels where one takes more.
    """
    while True:
        blocks = -(-size[3] // tiling.channels)
        at_once = _at_once(size, state, tiling, blocks, allowed, sums, device)
        if at_once or tiling.channels <= _FEWEST_CHANNELS:
            break
        tiling = tiling._replace(channels=tiling.channels // 2)
    at_once = -(-blocks // -(-blocks // max(1, at_once)))  # groups of one size
    return [
        _Cut(size, state, tiling, first * tiling.channels, min(at_once, blocks - first))
        for first in range(0, blocks, at_once)
    ]


def _at_once(
    size: torch.Size, state: int, tiling: Tiling, blocks: int, allowed: int, sums: _Kinds, device: torch.device
) -> int:
    """How many blocks of channels fit."""

    def needed(count: int) -> int:
        return _beside(_Cut(size, state, tiling, 0, count), sums, device)

    if needed(blocks) <= allowed:
        return blocks
    return bisect_right(range(1, blocks), allowed, key=needed)


def _beside(cut: _Cut, sums: _Kinds, device: torch.device) -> int:
    """Bytes of a launch of a backward beside arguments and results."""
    borders = (cut.right(cut.across), cut.lower(cut.down), cut.right(1), cut.lower(1))
    of_states = (sums.cells - 1) * cut.down * cut.size[0] * cut.carried * cut.states
    tile = cut.tiling.rows * cut.tiling.columns * cut.tiling.channels * cut.states
    cells = math.prod(cut.size[:3]) * cut.state * sums.cells
    own = cut.blocks if sums.own and cut.blocks > 1 else 0
    numbers = sum(map(math.prod, borders)) + of_states + tile * cut.programs(True, device) + cut.units
    # rounded copies, half as large, are made when the borders are gone
    return 4 * max(numbers + cells * own + (cells // 2 if sums.rounded else 0), cells * (own + sums.rounded))


@cache
def _most_programs(device: torch.device, reverse: bool) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return _PROGRAMS_A_PROCESSOR[reverse] * int(torch.cuda.get_device_properties(device).multi_processor_count)


class _Kinds(NamedTuple):
    """Of a backward's sums over channels.

    Attributes:
        cells: how many there are; one more than matrices of decays.
        own: whether each block of channels has its own.
        rounded: whether results are copies in half precision.
    """

    cells: int
    own: bool
    rounded: bool


def _kinds(count: int, B: Tensor) -> _Kinds:
    return _Kinds(count, torch.are_deterministic_algorithms_enabled(), B.dtype != torch.float32)


def _kept_bytes(arguments: Grids) -> int:
    """What a backward may take beside arguments and results: a quarter of the arguments, of small grids more."""
    (_, height, width, _), device = arguments[0].shape, arguments[0].device
    quarter = sum(grid.numel() * grid.element_size() for grid in arguments) // 4 - _SPARE
    return quarter if height * width >= LARGE else max(quarter, min(_FREELY, _memory(device) // 16))


@cache
def _memory(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 2**40


def _or_with_less(run: Callable[[int], _Result], allowed: int) -> _Result:
    """Again with less memory where there is not as much."""
    for less in (allowed, allowed // 4, allowed // 16):
        with suppress(torch.cuda.OutOfMemoryError):
            return run(less)
    return run(0)


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
    """A number at least: kernels take an address also of what they never read."""
    return torch.empty(max(1, math.prod(shape)), dtype=torch.float32, device=device)


def _like(grid: Tensor) -> Tensor:
    """A result in the shape and dtype of a grid, whatever its strides."""
    return torch.empty(grid.shape, dtype=grid.dtype, device=grid.device)


def _launch(
    kernel: Any, cut: _Cut, reverse: bool, grids: Grids, rest: Sequence[Any], constants: dict[str, Any]
) -> None:
    """Draw all tiles of a cut: ``grids`` are pointers up to the tickets, ``rest`` what comes behind the flags."""
    device = grids[0].device
    waiting = torch.zeros(1 + cut.units, dtype=torch.int32, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(cut.programs(reverse, device),)](*grids, waiting, waiting[1:], *rest, **constants)


class _Borders:
    """What crosses the borders of tiles: overwritten by the next tile, or all kept for a backward."""

    def __init__(self, cut: _Cut, device: torch.device, *, keep: bool) -> None:
        self.right = _empty(*cut.right(cut.across if keep else 1), device=device)
        self.down = _empty(*cut.lower(cut.down if keep else 1), device=device)


class _Sums:
    """Gradients that are summed over channels ``[images, height, width, state]``: one sum that all programs add to, or
    one for each block of a launch where the order of additions must always be the same."""

    def __init__(self, kinds: _Kinds, cut: _Cut, device: torch.device) -> None:
        self.atomic = not kinds.own
        shape = (cut.blocks if kinds.own else 1, *cut.size[:3], cut.state)
        self.parts = [torch.zeros(shape, dtype=torch.float32, device=device) for _ in range(kinds.cells)]
        self.stride = self.parts[0][0].numel()

    def totals(self) -> list[Tensor]:
        return [part.sum(0) if len(part) > 1 else part[0] for part in self.parts]


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

    def within(allowed: int, tiling: Tiling) -> list[Tensor | None]:
        kinds = _kinds(2, B)
        cuts = _chunks(u.shape, state, tiling, allowed, kinds, device)
        sums, parameters = _Sums(kinds, cuts[0], device), _of_channels(cuts[0], (A,), (D, delta_bias), device)
        of_A, of_channels = zip(*(group(cut, parameters, sums) for cut in cuts), strict=True)
        grad_A = torch.cat(of_A)[:dim, :state].contiguous()
        grad_D, grad_bias = torch.cat(of_channels, 1)[:, :dim]
        return [
            grad_u, grad_delta, grad_A, *sums.totals(), None if D is None else grad_D.clone(), grad_z,
            None if delta_bias is None else grad_bias.clone(),
        ]  # fmt: skip

    def run(tiling: Tiling) -> list[Tensor | None]:
        allowed = _kept_bytes([t for t in (u, delta, z, B, C) if t is not None])
        return _or_with_less(lambda allowed: within(allowed, tiling), allowed)

    return run(choose("selective", "backward", u, state, run))


class _Shared:
    """What the tiles of a backward add to, and their scratch."""

    def __init__(self, cut: _Cut, device: torch.device, *, of_states: int, of_channels: int) -> None:
        images, tiling = cut.size[0], cut.tiling

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        self.of_states = [zeros(cut.down, images, cut.carried, cut.states) for _ in range(of_states)]
        self.of_channels = zeros(cut.down, images, of_channels, cut.carried)
        programs = cut.programs(True, device)
        self.scratch = (
            _empty(*cut.right(1), device=device),
            _empty(*cut.lower(1), device=device),
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

    def within(allowed: int, tiling: Tiling) -> list[Tensor | None]:
        kinds = _kinds(3, C)
        cuts = _chunks(x.shape, state, tiling, allowed, kinds, device)
        sums, parameters = _Sums(kinds, cuts[0], device), _of_channels(cuts[0], (A_t, A_l), (D,), device)
        of_At, of_Al, of_D = zip(*(group(cut, parameters, sums) for cut in cuts), strict=True)
        grad_At, grad_Al = (torch.cat(parts)[:dim, :state].contiguous() for parts in (of_At, of_Al))
        return [*grads, grad_At, grad_Al, *sums.totals(), None if D is None else torch.cat(of_D, 1)[0, :dim]]

    def run(tiling: Tiling) -> list[Tensor | None]:
        return _or_with_less(lambda allowed: within(allowed, tiling), _kept_bytes(grids))

    return run(choose("wavefront", "backward", x, state, run))
