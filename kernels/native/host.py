"""The host of the CPU kernels: arguments in the layout they take, threads, scratch.

This module needs numba and numpy.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi2d.kernels.native import selective, wavefront
from wsi2d.kernels.native.simd import LANES, STATES

_ALIGNMENT = 64
_KEPT_SCRATCH = 4 * 2**20  # floats that a thread keeps between calls
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
        waiting = []
        if len(jobs) > 1:
            pool = self._of_size(len(jobs) - 1)
            waiting = [pool.submit(job) for job in jobs[1:]]
        try:
            jobs[0]()
        finally:
            for future in waiting:
                future.exception()
        for future in waiting:
            future.result()

    def _of_size(self, size: int) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._size < size:
                if self._pool is not None:
                    self._pool.shutdown(wait=False)
                self._pool, self._size = ThreadPoolExecutor(size, "wsi2d-scan"), size
            return self._pool


_threads = _Threads()
_scratch = threading.local()


def _after_fork() -> None:
    global _threads, _scratch
    _threads, _scratch = _Threads(), threading.local()


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


def aligned(floats: int) -> NDArray[np.float32]:
    """Fresh memory at a border of 64 bytes."""
    whole = np.empty(floats + _ALIGNMENT // 4, np.float32)
    skip = -whole.ctypes.data % _ALIGNMENT // 4
    return whole[skip : skip + floats]


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
        return torch.zeros(dim + -dim % LANES)
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

    @property
    def threads(self) -> int:
        """Threads that it is worth."""
        if self.size.numel() * self.states <= _SMALL:
            return 1
        return min(self.size[0] * self.blocks, torch.get_num_threads())


def _work(
    size: torch.Size, state: int, parameters: Sequence[Tensor], grids: Sequence[Tensor | None], *options: int
) -> _Work:
    states = state + -state % STATES
    _, height, width, dim = size
    numbers = [height, width, dim, states // STATES, *options, *(p.data_ptr() for p in parameters)]
    for grid in grids:
        numbers += (0, 0, 0, 0) if grid is None else (grid.data_ptr(), *grid.stride()[:3])
    return _Work(np.array(numbers, np.int64), (*parameters, *grids), size, states)


def _forward(kernels: ModuleType, work: _Work) -> None:
    floats, units, threads = kernels.forward_scratch(work.plan), work.size[0] * work.blocks, work.threads

    def scan(thread: int) -> None:
        scratch = _scratch_of_thread(floats)
        first, last = units * thread // threads, units * (thread + 1) // threads
        kernels.forward(work.plan, first, last, scratch.ctypes.data)

    _threads.run([partial(scan, thread) for thread in range(threads)])


def _backward(kernels: ModuleType, work: _Work, per_cell: int, per_channel: int) -> tuple[list[Tensor], Tensor]:
    """Run a backward kernel.

    Args:
        per_cell: how many gradients it sums over channels.
        per_channel: how many numbers of a channel it sums over cells.

    Returns:
        Those of cells, each ``[images, height, width, states]``, and ``[dim, per_channel]``.
    """
    images, height, width, dim = work.size
    floats, blocks, threads = kernels.backward_scratch(work.plan), work.blocks, work.threads
    # Parts of an image that different threads may take sum over their channels apart. Few images are cut so that each
    # thread has as many parts.
    parts = min(blocks, threads // math.gcd(images, threads)) if images < 4 * threads else 1
    cells = [torch.zeros(parts, images, height, width, work.states) for _ in range(per_cell)]
    channels = torch.empty(images, blocks, per_channel, LANES)

    def scan(thread: int) -> None:
        scratch = _scratch_of_thread(floats)
        for job in range(thread, images * parts, threads):
            image, part = divmod(job, parts)
            first, last = image * blocks + blocks * part // parts, image * blocks + blocks * (part + 1) // parts
            addresses = [sums[part].data_ptr() for sums in cells]
            kernels.backward(work.plan, first, last, scratch.ctypes.data, *addresses, channels.data_ptr())

    _threads.run([partial(scan, thread) for thread in range(threads)])
    totals = channels.sum(0).transpose(1, 2).reshape(-1, per_channel)[:dim]
    return [sums[0] if parts == 1 else sums.sum(0) for sums in cells], totals


# --- the scans -----------------------------------------------------------------------------------------------------


def selective_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, softplus: bool,
) -> Tensor:  # fmt: skip
    """The output in float32; arguments as :func:`wsi2d.kernels.scan2d.selective_scan_2d` describes them."""
    out = torch.empty(u.shape)
    if out.numel():
        grids = _channels(u), _channels(delta), _states(B), _states(C), _channels(z), out
        _forward(selective, _selective_work(grids, A, D, delta_bias, softplus))
    return out


def selective_backward(
    grad_out: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, softplus: bool,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of all arguments but the last, in their order and in float32; None for those that are not there."""
    if not u.numel():
        return [None if t is None else torch.zeros(t.shape) for t in (u, delta, A, B, C, D, z, delta_bias)]
    grad_u, grad_delta, grad_z = torch.empty(u.shape), torch.empty(u.shape), None if z is None else torch.empty(u.shape)
    grids = _channels(u), _channels(delta), _states(B), _states(C), _channels(z)
    gradients = _channels(grad_out), grad_u, grad_delta, grad_z
    work = _selective_work((*grids, *gradients), A, D, delta_bias, softplus)
    cells, totals = _backward(selective, work, 2, work.states + 2)
    grad_B, grad_C = (sums[..., : A.shape[1]].reshape(B.shape) for sums in cells)
    grad_A = totals[:, : A.shape[1]].clone()
    grad_D = None if D is None else totals[:, -2].clone()
    grad_bias = None if delta_bias is None else totals[:, -1].clone()
    return [grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias]


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
    out = torch.empty(x.shape)
    if out.numel():
        grids = _channels(x), _channels(delta_t), _channels(delta_l), _states(B_t), _states(B_l), _states(C), out
        parameters = _rates(A_t), _rates(A_l), _lanes(D, x.shape[3])
        _forward(wavefront, _work(x.shape, A_t.shape[1], parameters, grids))
    return out


def wavefront_backward(
    grad_out: Tensor, x: Tensor, delta_t: Tensor, delta_l: Tensor, A_t: Tensor, A_l: Tensor,
    B_t: Tensor, B_l: Tensor, C: Tensor, D: Tensor | None,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of all arguments in their order and in float32; None for a D that is not there."""
    if not x.numel():
        return [None if t is None else torch.zeros(t.shape) for t in (x, delta_t, delta_l, A_t, A_l, B_t, B_l, C, D)]
    state = A_t.shape[1]
    gradients = [torch.empty(x.shape) for _ in range(3)]
    inputs = _channels(x), _channels(delta_t), _channels(delta_l), _states(B_t), _states(B_l), _states(C)
    parameters = _rates(A_t), _rates(A_l), _lanes(D, x.shape[3])
    work = _work(x.shape, state, parameters, (*inputs, _channels(grad_out), *gradients))
    cells, totals = _backward(wavefront, work, 3, 2 * work.states + 1)
    grad_A_t, grad_A_l = totals[:, :state].clone(), totals[:, work.states : work.states + state].clone()
    grad_D = None if D is None else totals[:, -1].clone()
    return [*gradients, grad_A_t, grad_A_l, *(sums[..., :state] for sums in cells), grad_D]
