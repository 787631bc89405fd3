"""The host of the CPU kernels: arguments in the layout they take, threads, scratch.

This module needs numba and numpy.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi2d.kernels.native import selective_backward as backward_of_selective
from wsi2d.kernels.native import selective_forward as forward_of_selective
from wsi2d.kernels.native import wavefront_backward as backward_of_wavefront
from wsi2d.kernels.native import wavefront_forward as forward_of_wavefront
from wsi2d.kernels.native.results import Results, aligned
from wsi2d.kernels.native.simd import LANES, STATES

T = TypeVar("T")

_KEPT_SCRATCH = 4 * 2**20  # floats that a thread keeps between calls
_PIECES = 4  # that a forward's work is cut into for each thread
_SMALL = 2**15  # cells × channels × states that one thread scans sooner than a second one wakes up


# --- threads -------------------------------------------------------------------------------------------------------


class _Threads:
    """Threads beside the calling one. A process that forks leaves them behind and gets its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0

    def run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Run all jobs, the first of them here; the first error is raised when all have ended."""
        waiting = self._submit(jobs[1:])
        try:
            jobs[0]()
        finally:
            for future in waiting:
                future.exception()
        for future in waiting:
            future.result()

    def _submit(self, jobs: Sequence[Callable[[], None]]) -> list[Future[None]]:
        """Hand jobs to a pool with a thread for each; a smaller one ends what it was given, and is handed no more."""
        if not jobs:
            return []
        with self._lock:
            if self._pool is None or self._size < len(jobs):
                if self._pool is not None:
                    self._pool.shutdown(wait=False)
                self._pool, self._size = ThreadPoolExecutor(len(jobs), "wsi2d-scan"), len(jobs)
            return [self._pool.submit(job) for job in jobs]


_threads = _Threads()
_scratch = threading.local()
_results = Results()


def _after_fork() -> None:
    global _threads, _scratch, _results
    _threads, _scratch, _results = _Threads(), threading.local(), Results()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _scratch_of_thread(floats: int) -> NDArray[np.float32]:
    """Scratch that this thread may use until its next call; large ones are not kept."""
    kept: NDArray[np.float32] | None = getattr(_scratch, "floats", None)
    if kept is not None and kept.size >= floats:
        return kept
    fresh = aligned(floats)
    if floats <= _KEPT_SCRATCH:
        _scratch.floats = fresh
    return fresh


# --- arguments -----------------------------------------------------------------------------------------------------


def _channels(tensor: Tensor | None) -> Tensor | None:
    """``[batch, height, width, dim]`` as the kernels read it: float32, channels side by side."""
    if tensor is None:
        return None
    tensor = tensor.float()
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _states(tensor: Tensor) -> Tensor:
    """``[batch, height, width, state]`` likewise, with states filled up to whole blocks by zeros."""
    missing = -tensor.shape[3] % STATES
    if missing:
        return torch.nn.functional.pad(tensor.float(), (0, missing))
    return _channels(tensor)  # type: ignore[return-value]


def _rates(A: Tensor) -> Tensor:
    """log2(e)·A as ``[dim / lanes, states / STATES, STATES, lanes]``, filled up with zeros."""
    dim, state = A.shape
    scaled = torch.nn.functional.pad(A.double() * math.log2(math.e), (0, -state % STATES, 0, -dim % LANES)).float()
    return scaled.reshape(-1, LANES, scaled.shape[1]).transpose(1, 2).contiguous()


def _lanes(values: Tensor | None, dim: int) -> Tensor:
    """``[dim]`` filled up to whole vectors with zeros; all zeros where there are none."""
    if values is None:
        return torch.zeros(dim + -dim % LANES, dtype=torch.float32, device="cpu")
    return torch.nn.functional.pad(values.float(), (0, -dim % LANES))


# --- work ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """A scan as its kernels take it.

    Attributes:
        plan: sizes and addresses, in the kernels' order.
        kept: the tensors behind the addresses.
        size: ``[images, height, width, dim]``.
        states: states of a channel, filled up to whole blocks.
    """

    plan: NDArray[np.int64]
    kept: tuple[Tensor | None, ...]
    size: torch.Size
    states: int

    @property
    def blocks(self) -> int:
        """Blocks of channels; a block of one image is a unit of work."""
        return -(-self.size[3] // LANES)


def _work(
    size: torch.Size, state: int, parameters: Sequence[Tensor], grids: Sequence[Tensor | None], *options: int
) -> _Work:
    states = state + -state % STATES
    _, height, width, dim = size
    numbers = [height, width, dim, states // STATES, *options, *(p.data_ptr() for p in parameters)]
    for grid in grids:
        numbers += (0, 0, 0, 0) if grid is None else (grid.data_ptr(), *grid.stride()[:3])
    return _Work(np.array(numbers, np.int64), (*parameters, *grids), size, states)


def _threads_of(grid: Tensor, state: int) -> int:
    """Threads that a scan is worth: torch's, but one for a small grid."""
    return 1 if grid.numel() * state <= _SMALL else torch.get_num_threads()


def _state_groups(grid: Tensor, state: int) -> list[slice]:
    """States that are scanned apart from each other: as many groups as it takes to give each thread something to do,
    where there are fewer units of work than threads. All of them where there are enough."""
    units, blocks = grid.shape[0] * -(-grid.shape[3] // LANES), -(-state // STATES)
    groups = max(1, min(blocks, _threads_of(grid, state) // units))
    borders = [blocks * k // groups * STATES for k in range(groups)] + [state]
    return [slice(first, last) for first, last in itertools.pairwise(borders)]


def _taken(waiting: deque[T]) -> Iterator[T]:
    """What waits, until other threads and this one have taken all: a slow processor is not waited for long."""
    while waiting:
        try:
            yield waiting.popleft()
        except IndexError:  # another thread was faster
            return


def _forward(kernel: ModuleType, works: Sequence[_Work], threads: int) -> None:
    """Run a forward kernel for one or more groups of states."""

    def scan(work: _Work, floats: int, waiting: deque[range]) -> None:
        scratch = _scratch_of_thread(floats)
        for units in _taken(waiting):
            kernel.run(work.plan, units.start, units.stop, scratch.ctypes.data)

    jobs = []
    for work in works:
        floats, units = kernel.scratch(work.plan), range(work.size[0] * work.blocks)
        shares = max(1, min(len(units), threads // len(works)))
        pieces = min(len(units), _PIECES * shares) if shares > 1 else 1
        waiting = deque(units[len(units) * k // pieces : len(units) * (k + 1) // pieces] for k in range(pieces))
        jobs += [partial(scan, work, floats, waiting)] * shares
    _threads.run(jobs)


def _backward(
    kernel: ModuleType, works: Sequence[_Work], threads: int, per_cell: int, per_channel: int
) -> list[tuple[list[Tensor], Tensor]]:
    """Run a backward kernel for one or more groups of states.

    Args:
        per_cell: how many gradients it sums over channels.
        per_channel: how many numbers of a channel it sums over cells, beside as many times the states.

    Returns:
        For each group those of cells, each ``[images, height, width, states]``, and those of channels ``[dim, …]``.
    """

    def scan(
        work: _Work, floats: int, parts: int, waiting: deque[int], cells: list[list[Tensor]], channels: Tensor
    ) -> None:
        scratch = _scratch_of_thread(floats)
        for number in _taken(waiting):
            image, part = divmod(number, parts)
            first, last = (image * work.blocks + work.blocks * k // parts for k in (part, part + 1))
            addresses = [sums[part].data_ptr() for sums in cells]
            kernel.run(work.plan, first, last, scratch.ctypes.data, *addresses, channels.data_ptr())

    jobs, sums = [], []
    for work in works:
        (images, height, width, _), blocks = work.size, work.blocks
        floats, shares = kernel.scratch(work.plan), max(1, min(images * blocks, threads // len(works)))
        # Parts of an image that different threads may take sum over their channels apart. Few images are cut so that
        # each thread has as many parts.
        parts = min(blocks, shares // math.gcd(images, shares)) if images < 4 * shares else 1
        cells = [[_zeros(images, height, width, work.states) for _ in range(parts)] for _ in range(per_cell)]
        channels = _empty(images, blocks, kernel.SUMS_OF_STATES * work.states + per_channel, LANES)
        sums.append((cells, channels))
        jobs += [partial(scan, work, floats, parts, deque(range(images * parts)), cells, channels)] * shares
    _threads.run(jobs)
    results = []
    for work, (cells, channels) in zip(works, sums, strict=True):
        totals = channels.sum(0).transpose(1, 2).reshape(-1, channels.shape[2])[: work.size[3]]
        results.append(([_total(parts) for parts in cells], totals))
    return results


def _empty(*shape: int) -> Tensor:
    return _results.empty(*shape)


def _zeros(*shape: int) -> Tensor:
    return _results.empty(*shape).zero_()


def _total(parts: Sequence[Tensor]) -> Tensor:
    """The sum of what groups of states or parts of an image found, in the first one's memory."""
    for part in parts[1:]:
        parts[0].add_(part)
    return parts[0]


# --- the scans -----------------------------------------------------------------------------------------------------


def selective_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, softplus: bool,
) -> Tensor:  # fmt: skip
    """The output in float32; arguments as :func:`wsi2d.kernels.scan2d.selective_scan_2d` describes them."""
    if not u.numel():
        return _empty(*u.shape)
    groups = _state_groups(u, A.shape[1])
    outs = [_empty(*u.shape) for _ in groups]
    inside = len(groups) == 1  # skip and gate: of all states together
    u_, delta_, z_ = _channels(u), _channels(delta), _channels(z) if inside else None
    works = [
        _selective_work(
            (u_, delta_, _states(B[..., group]), _states(C[..., group]), z_, out),
            A[:, group], D if inside else None, delta_bias, softplus,
        )
        for group, out in zip(groups, outs, strict=True)
    ]  # fmt: skip
    _forward(forward_of_selective, works, _threads_of(u, A.shape[1]))
    y = _total(outs)
    if not inside:
        if D is not None:
            y.addcmul_(D.float(), u.float())
        if z is not None:
            y.mul_(torch.nn.functional.silu(z.float()))
    return y


def selective_backward(
    grad_out: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, softplus: bool,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of all arguments but the last, in their order and in float32; None for those that are not there."""
    if not u.numel():
        return [None if t is None else _zeros(*t.shape) for t in (u, delta, A, B, C, D, z, delta_bias)]
    groups = _state_groups(u, A.shape[1])
    inside = len(groups) == 1
    q, grad_z = _channels(grad_out), None
    if z is not None and inside:
        grad_z = _empty(*u.shape)
    elif z is not None:
        y = selective_forward(u, delta, A, B, C, D, None, delta_bias, softplus)
        gate = torch.sigmoid(z.float())
        grad_z = grad_out * y * gate * (1 + z * (1 - gate))
        q = _channels(grad_out * z * gate)
    assert q is not None
    grads = [(_empty(*u.shape), _empty(*u.shape)) for _ in groups]
    u_, delta_, z_ = _channels(u), _channels(delta), _channels(z) if inside else None
    works = [
        _selective_work(
            (u_, delta_, _states(B[..., group]), _states(C[..., group]), z_, q, *grad, grad_z if inside else None),
            A[:, group], D if inside else None, delta_bias, softplus,
        )
        for group, grad in zip(groups, grads, strict=True)
    ]  # fmt: skip
    results = _backward(backward_of_selective, works, _threads_of(u, A.shape[1]), 2, 2)
    grad_u, grad_delta = (_total(parts) for parts in zip(*grads, strict=True))
    grad_D = None if D is None else results[0][1][:, -2].clone()
    if D is not None and not inside:
        grad_u.addcmul_(D.float(), q)
    grad_bias = None if delta_bias is None else _total([totals[:, -1].clone() for _, totals in results])
    grad_A, grad_B, grad_C = (
        _side_by_side(parts, groups)
        for parts in ([totals for _, totals in results], *zip(*(cells for cells, _ in results), strict=True))
    )
    grad_B, grad_C = grad_B.reshape(B.shape), grad_C.reshape(C.shape)  # one column may have been scanned as one row
    return [grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias]


def _side_by_side(parts: Sequence[Tensor], groups: Sequence[slice]) -> Tensor:
    """What the groups found for their states, without those that only fill up a block, ``[…, state]``."""
    return torch.cat([part[..., : g.stop - g.start] for part, g in zip(parts, groups, strict=True)], -1)


def _selective_work(
    grids: Sequence[Tensor | None], A: Tensor, D: Tensor | None, delta_bias: Tensor | None, softplus: bool
) -> _Work:
    first = grids[0]
    assert first is not None
    size, dim = first.shape, A.shape[0]
    if size[2] == 1:  # one column is scanned as one row: the recurrences are the same, and long rows are faster
        grids = [None if grid is None else grid.transpose(1, 2) for grid in grids]
        size = torch.Size((size[0], 1, size[1], dim))
    parameters = _rates(A), _lanes(D, dim), _lanes(delta_bias, dim)
    return _work(size, A.shape[1], parameters, grids, int(softplus))


def wavefront_forward(
    x: Tensor, delta_t: Tensor, delta_l: Tensor, A_t: Tensor, A_l: Tensor,
    B_t: Tensor, B_l: Tensor, C: Tensor, D: Tensor | None,
) -> Tensor:  # fmt: skip
    """The output in float32; arguments as :func:`wsi2d.kernels.scan2d.wavefront_scan_2d` describes them."""
    if not x.numel():
        return _empty(*x.shape)
    groups = _state_groups(x, A_t.shape[1])
    outs = [_empty(*x.shape) for _ in groups]
    cells = _channels(x), _channels(delta_t), _channels(delta_l)
    works = [
        _wavefront_work(cells, (B_t, B_l, C), (out,), (A_t, A_l), D if k == 0 else None, group)
        for k, (group, out) in enumerate(zip(groups, outs, strict=True))
    ]
    _forward(forward_of_wavefront, works, _threads_of(x, A_t.shape[1]))
    return _total(outs)


def wavefront_backward(
    grad_out: Tensor, x: Tensor, delta_t: Tensor, delta_l: Tensor, A_t: Tensor, A_l: Tensor,
    B_t: Tensor, B_l: Tensor, C: Tensor, D: Tensor | None,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of all arguments in their order and in float32; None for a D that is not there."""
    if not x.numel():
        return [None if t is None else _zeros(*t.shape) for t in (x, delta_t, delta_l, A_t, A_l, B_t, B_l, C, D)]
    groups = _state_groups(x, A_t.shape[1])
    grads = [[_empty(*x.shape) for _ in range(3)] for _ in groups]
    cells, q = (_channels(x), _channels(delta_t), _channels(delta_l)), _channels(grad_out)
    works = [
        _wavefront_work(cells, (B_t, B_l, C), (q, *grad), (A_t, A_l), D if k == 0 else None, group)
        for k, (group, grad) in enumerate(zip(groups, grads, strict=True))
    ]
    results = _backward(backward_of_wavefront, works, _threads_of(x, A_t.shape[1]), 3, 1)
    grad_D = None if D is None else results[0][1][:, -1].clone()
    grad_A_l = [totals[:, work.states :] for work, (_, totals) in zip(works, results, strict=True)]
    of_states = ([totals for _, totals in results], grad_A_l, *zip(*(cells for cells, _ in results), strict=True))
    return [
        *(_total(parts) for parts in zip(*grads, strict=True)),
        *(_side_by_side(parts, groups) for parts in of_states),
        grad_D,
    ]


def _wavefront_work(
    cells: Sequence[Tensor | None],
    states: Sequence[Tensor],
    others: Sequence[Tensor | None],
    A: Sequence[Tensor],
    D: Tensor | None,
    group: slice,
) -> _Work:
    first = cells[0]
    assert first is not None
    parameters = *(_rates(values[:, group]) for values in A), _lanes(D, first.shape[3])
    grids = *cells, *(_states(values[..., group]) for values in states), *others
    return _work(first.shape, group.stop - group.start, parameters, grids)
