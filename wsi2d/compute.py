"""Where work runs: the device of a model, and threads that stay a bounded distance ahead of their consumer."""

from __future__ import annotations

import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wsi2d.errors import ConfigError

if TYPE_CHECKING:
    import torch

CORES_VARIABLE = "WSI2D_CORES"
Item = TypeVar("Item")
Result = TypeVar("Result")


def resolve_device(name: str) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is CUDA where there is one.

    Raises:
        ConfigError: the name is no device, or the device is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}': unknown; use auto, cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"device '{name}': not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device '{name}': this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return device


def available_cores() -> int:
    """CPU cores this process may use (a Slurm or container limit is respected where the system tells it).

    ``WSI2D_CORES`` lowers it, for processes that share a machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get(CORES_VARIABLE, "")
    return max(1, min(cores, int(given))) if given.isdecimal() else cores


def begin_peak_memory(device: torch.device) -> None:
    """From now on :func:`peak_memory_gb` is the peak since here."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # Linux: the peak of resident memory begins anew


def peak_memory_gb(device: torch.device) -> float:
    """The most memory since :func:`begin_peak_memory`, 10⁹ bytes: what torch held on a CUDA device, else what was
    resident of this process; NaN where the system does not tell it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        status = Path("/proc/self/status").read_text("ascii", "replace")
    except OSError:
        return math.nan
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e9 if found else math.nan


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within it torch computes with that many CPU threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Iterator[Result]:
    """Results in order, computed by ``workers`` threads at most ``ahead`` items before they are consumed.

    Unlike ``Executor.map`` it does not submit everything at once, so memory stays bounded. An exception of
    ``function`` is raised in its item's place, and what was submitted after it is cancelled.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="wsi2d")
    try:
        pending: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(source, max(ahead, 1)))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(source, 1))
            yield result
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)  # what hangs must not keep an interrupt waiting
        raise
    pool.shutdown()
