"""Which tiles are fastest: measured once for each kind of grid, and kept on disk.

This module needs triton.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor


class Tiling(NamedTuple):
    """Rows and columns of a tile, channels of a block, warps of a program."""

    rows: int
    columns: int
    channels: int
    warps: int


TUNING_VARIABLE = "WSI2D_SCAN_TUNING"  # "off" takes the first tiling that fits
_INTERPRETED = Tiling(4, 4, 8, 1)
_CANDIDATES = {
    "forward": (Tiling(8, 4, 8, 1), Tiling(4, 4, 8, 1), Tiling(8, 8, 4, 1)),
    "backward": (Tiling(8, 4, 8, 1), Tiling(4, 4, 8, 1)),
}
_OF_LARGE = {  # of a backward, the borders' memory decides how many channels go in a launch
    "forward": _CANDIDATES["forward"],
    "backward": (Tiling(8, 4, 4, 1), Tiling(8, 4, 8, 1)),
}
_OF_ONE_ROW = {
    "forward": (Tiling(1, 16, 4, 1), Tiling(1, 4, 8, 1)),
    "backward": (Tiling(1, 8, 4, 1), Tiling(1, 4, 8, 1)),
}
LARGE = 512 * 512  # cells of a grid from which on a backward takes no more than a quarter of its arguments
_SMALLEST = (Tiling(8, 4, 4, 1), Tiling(8, 2, 4, 1), Tiling(8, 1, 4, 1), Tiling(8, 1, 1, 1))  # for many states
# Numbers of a state in a thread: for each column (forward: h, and B and C of two rows), and beside.
_HELD = {"forward": (5, 10), "backward": (6, 20)}
_REGISTERS = 200  # of a thread, for these
_RUNS = 5
_AT_ONCE = 4  # runs between two events, so that the host waits behind the GPU and not the other way round


def power_of_two(count: int) -> int:
    """The next one that is not smaller."""
    return 1 << (count - 1).bit_length()


def candidates(part: str, height: int, width: int, state: int) -> list[Tiling]:
    """Tilings worth a try, the likeliest first: their states fit the registers, and they are not larger than the grid.

    Args:
        part: ``forward`` or ``backward``.
    """
    of_column, beside = _HELD[part]
    states = power_of_two(state)

    def fits(tiling: Tiling) -> bool:
        of_thread = max(1, states * tiling.channels // (32 * tiling.warps))
        return of_thread * (of_column * tiling.columns + beside) <= _REGISTERS

    def wasteful(tiling: Tiling) -> bool:
        return tiling.rows >= 2 * max(height, 4) or tiling.columns >= 2 * max(width, 4)

    kinds = _OF_ONE_ROW if height == 1 else _OF_LARGE if height * width >= LARGE else _CANDIDATES
    found = [tiling for tiling in kinds[part] if fits(tiling) and not wasteful(tiling)]
    return found or [next((tiling for tiling in _SMALLEST if fits(tiling)), _SMALLEST[-1])]


def choose(scan: str, part: str, first: Tensor, state: int, run: Callable[[Tiling], Any]) -> Tiling:
    """The tiling for a scan of these sizes.

    Args:
        scan, part: ``selective`` or ``wavefront``, ``forward`` or ``backward``.
        first: the input ``[batch, height, width, dim]``.
        run: the scan itself, which may be run often.
    """
    if first.device.type != "cuda":
        return _INTERPRETED
    images, height, width, dim = first.shape
    tried = candidates(part, height, width, state)
    # The rows of a tile decide in which order some sums are made.
    fixed = torch.are_deterministic_algorithms_enabled() or os.environ.get(TUNING_VARIABLE) == "off"
    if fixed or len(tried) == 1:
        return tried[0]
    with torch.cuda.device(first.device):
        known = _known(first.device)
        sizes = (*(power_of_two(n) for n in (images, height, width)), dim, state)
        kind = "large" if height * width >= LARGE else "small"
        key = " ".join(map(str, (scan, part, kind, *sizes, str(first.dtype).removeprefix("torch."))))
        if key in known and known[key] in tried:
            return known[key]
        if torch.cuda.is_current_stream_capturing():
            return tried[0]
        known[key] = min(tried, key=lambda tiling: _milliseconds(run, tiling))
        _keep(first.device, known)
        return known[key]


def _milliseconds(run: Callable[[Tiling], Any], tiling: Tiling) -> float:
    """The fastest of some runs; infinite where the GPU does not take the tiling."""
    try:
        run(tiling)
        times = []
        for _ in range(_RUNS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(_AT_ONCE):
                run(tiling)
            end.record()
            end.synchronize()
            times.append(float(start.elapsed_time(end)) / _AT_ONCE)
    except (torch.cuda.OutOfMemoryError, triton.runtime.errors.OutOfResources):
        return math.inf
    return min(times)


@cache
def _known(device: torch.device) -> dict[str, Tiling]:
    """What was measured on a GPU: by earlier processes, and by this one since."""
    return _read(device)


def _read(device: torch.device) -> dict[str, Tiling]:
    try:
        text = json.loads(_file(device).read_text("utf-8"))
        return {str(key): Tiling(*map(int, value)) for key, value in text.items()}
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError):
        return {}  # not there yet, nothing of ours, or no home to look in


def _keep(device: torch.device, known: dict[str, Tiling]) -> None:
    """Write it, with what other processes have added; where that cannot be done, the next process measures again."""
    with suppress(OSError, RuntimeError):
        file = _file(device)
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
        fresh.write_text(json.dumps(_read(device) | known, indent=1), "utf-8")
        fresh.replace(file)


@cache
def _file(device: torch.device) -> Path:
    """Beside the compiled scans of the CPU; another GPU, Triton or kernel has another."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(f"{torch.cuda.get_device_name(device)} {triton.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return folder / "wsi2d" / f"scan2d-gpu-{digest.hexdigest()[:16]}.json"
