"""Memory for results, used again when they are gone.

The system gives fresh memory a page at a time, as it is first touched, and that takes longer than to scan what lies in
it. So the memory of a large result comes back here when its last tensor is gone, and the next result of about its size
lies in it, as PyTorch does on a GPU.

This module needs numpy.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 64
_LARGE = 2**18  # floats; the C library itself uses smaller pieces again
_KEPT = 2**27  # floats that may lie idle: 512 MiB
_SLACK = 1.25  # how much larger than a result its memory may be

Memory = NDArray[np.float32]


def aligned(floats: int) -> Memory:
    """Fresh memory at a border of 64 bytes; numpy asks the system for large pages where it is large."""
    whole = np.empty(floats + ALIGNMENT // 4, np.float32)
    skip = -whole.ctypes.data % ALIGNMENT // 4
    return whole[skip : skip + floats]


class Results:
    """The memory of results that are gone, up to some size in all; what came back first is let go first."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._idle: list[Memory] = []
        # A result may go at any moment, also while a thread holds the lock: what comes back waits here.
        self._returned: deque[Memory] = deque()

    def empty(self, *shape: int) -> Tensor:
        """A float32 tensor with anything in it."""
        floats = math.prod(shape)
        if floats < _LARGE:
            return torch.empty(shape, dtype=torch.float32, device="cpu")
        memory = self._take(floats)
        result = memory[:floats]
        weakref.finalize(result, self._returned.append, memory).atexit = False
        return torch.from_numpy(result).view(shape)

    def _take(self, floats: int) -> Memory:
        with self._lock:
            while self._returned:
                self._idle.append(self._returned.popleft())
            fitting = [k for k, memory in enumerate(self._idle) if floats <= memory.size <= _SLACK * floats]
            found = self._idle.pop(min(fitting, key=lambda k: self._idle[k].size)) if fitting else None
            idle = sum(memory.size for memory in self._idle)
            while idle > self._kept:
                idle -= self._idle.pop(0).size
        return aligned(floats) if found is None else found
