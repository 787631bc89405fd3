"""How much memory a call takes, on Linux."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable
from pathlib import Path


def peak_megabytes(call: Callable[[], object]) -> float:
    """The most that a call takes above what this process has already, MB."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free already must not count as free memory
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    call()
    lines = Path("/proc/self/status").read_text().splitlines()
    highest = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return (highest - before) / 1e6
