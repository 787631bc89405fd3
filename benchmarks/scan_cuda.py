"""How fast the 2D scans are on a GPU: time, bytes and exponentials against what the GPU reaches alone.

For each grid, dtype and scan: the time of ``triton`` (the median of rounds, timed by events, with the second cache
emptied before each; up to 256×256 also replayed as a CUDA graph, which hides the launches and the host), against its
floor, the larger of two: the bytes of arguments and results at the measured copy bandwidth, and an exponential for each
cell, channel and state (forward; once more in the backward; two of them in the wavefront) at the measured rate. Then
against the backend ``torch`` and the kernels of ``scan_rivals.py``, whose results must agree, and the memory above
arguments and results.

All kernels are compiled first, by processes side by side. When the minutes asked for are over, what has not been
measured is left out and named in the result.

This module is run by ``scan.py``; it needs torch, triton and the folder ``kernels/``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import scan_rivals
import torch
import triton
import triton.language as tl
from torch import Tensor

from wsi2d.kernels.check import make_inputs
from wsi2d.kernels.scan2d import selective_scan_2d, wavefront_scan_2d

DIM, STATE = 256, 16
SIZES = (200, 512, 32, 64, 128, 256, 1024)  # what matters most comes first
RIVALS = (200, 64, 128, 256)
BATCHES = ((64, 14), (64, 56))
EXPONENTIALS = {"selective": 1, "wavefront": 2}  # of a cell, channel and state, in the forward
OPERATORS = {"selective": selective_scan_2d, "wavefront": wavefront_scan_2d}
LARGEST_LOOP = 128  # side of a grid
LARGEST_GRAPH = 256
BYTES_OF_CACHE = 256 * 2**20  # more than any second cache holds
DEVICE = "cuda"
SECONDS_OF_A_LINE = 4.0

Call = Callable[[], object]
Keep = Callable[[dict[str, object]], None]


class Machine(NamedTuple):
    """What the GPU reaches: bytes a second in a copy, exponentials a second."""

    bandwidth: float
    exponentials: float


# --- the machine ---------------------------------------------------------------------------------------------------


@triton.jit
def _many_exponentials(out, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b, c, d = at * 1e-9, at * 2e-9, at * 3e-9, at * 4e-9
    for _ in range(COUNT):
        a, b, c, d = tl.exp2(-a), tl.exp2(-b), tl.exp2(-c), tl.exp2(-d)
    tl.store(out + at, a + b + c + d)


def measure(rounds: int) -> Machine:
    """Bandwidth and rate of exponentials."""
    source = torch.empty(2**28, device=DEVICE).normal_()
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), rounds)
    programs, count, block = 132 * 64, 1000, 256
    out = torch.empty(programs * block, device=DEVICE)
    exponentials = seconds(lambda: _many_exponentials[(programs,)](out, count, block), rounds)
    return Machine(2 * source.numel() * 4 / copy, programs * block * count * 4 / exponentials)


# --- time ----------------------------------------------------------------------------------------------------------


def seconds(call: Call, rounds: int) -> float:
    """The median of some rounds, as many as take a few seconds at most."""
    call()
    flood = torch.empty(BYTES_OF_CACHE, dtype=torch.int8, device=DEVICE)
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < rounds and sum(times) < SECONDS_OF_A_LINE:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flood.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def replayed(call: Call, rounds: int) -> float:
    """The same of a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return seconds(graph.replay, rounds)


# --- scans ---------------------------------------------------------------------------------------------------------


class Scan:
    """A scan of random arguments: positive steps, no skip, gate or bias."""

    def __init__(self, scan: str, batch: int, size: int, dtype: torch.dtype) -> None:
        self.name, self.size, self.cells = scan, size, batch * size * size
        count, steps = (5, (1,)) if scan == "selective" else (8, (1, 2))
        generator = torch.Generator(DEVICE).manual_seed(0)
        inputs = []
        for k, small in enumerate(list(make_inputs(scan, (1, 1, 1, DIM, STATE)).values())[:count]):
            if small.ndim == 2:
                inputs.append(small.to(DEVICE))
                continue
            shape = (batch, size, size, small.shape[-1])
            values = torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype)
            inputs.append(values.sigmoid_().mul_(0.5).add_(0.05) if k in steps else values)
        self.leaves = [t.requires_grad_() for t in inputs]
        self.inputs = [t.detach() for t in inputs]
        self.grad_out = torch.randn_like(self.inputs[0])

    def forward(self, backend: str = "triton") -> Tensor:
        return OPERATORS[self.name](*self.inputs, backend=backend)

    def both(self, backend: str = "triton") -> tuple[Tensor, ...]:
        out = OPERATORS[self.name](*self.leaves, backend=backend)
        return torch.autograd.grad(out, self.leaves, self.grad_out)

    def floor(self, part: str, machine: Machine) -> tuple[float, str]:
        """Seconds at least, and what sets them."""
        read, write = sum(map(_bytes, self.inputs)), _bytes(self.inputs[0])
        exponentials = EXPONENTIALS[self.name] * self.cells * DIM * STATE
        if part != "forward":  # the backward reads everything and the gradient, and writes as much as it has read
            read, write, exponentials = 2 * read + _bytes(self.grad_out), write + read, 2 * exponentials
        of_bytes, of_exponentials = (read + write) / machine.bandwidth, exponentials / machine.exponentials
        return max((of_bytes, "bytes"), (of_exponentials, "exponentials"))

    def memory(self) -> float:
        """The most memory above arguments and results that forward and backward take, as a share of the arguments."""
        self.both()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.both()
        results = _bytes(self.grad_out) + sum(map(_bytes, self.inputs))
        arguments = sum(map(_bytes, self.inputs))
        return (torch.cuda.max_memory_allocated() - before - results) / arguments


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def timed(
    scan: Scan, batch: int, machine: Machine, rounds: int, dtype: str, *, loops: bool = True
) -> list[dict[str, object]]:
    """A line for the forward, and one for forward and backward; ``loops``: also against the backend ``torch``."""
    rows: list[dict[str, object]] = []
    for part, call in (("forward", scan.forward), ("forward + backward", scan.both)):
        taken, (floor, bound) = seconds(call, rounds), scan.floor(part, machine)
        row: dict[str, object] = {
            "scan": scan.name, "grid": f"{scan.size}×{scan.size}", "batch": batch, "dtype": dtype, "part": part,
            "milliseconds": taken * 1e3, "times_floor": taken / floor, "floor": bound,
        }  # fmt: skip
        if scan.size <= LARGEST_GRAPH:
            graph = replayed(call, rounds)
            row |= {"milliseconds_in_a_graph": graph * 1e3, "times_floor_in_a_graph": graph / floor}
        if loops and batch == 1 and scan.size <= LARGEST_LOOP:
            loop = (lambda: scan.forward("torch")) if part == "forward" else (lambda: scan.both("torch"))
            row["than_torch"] = seconds(loop, 3) / taken
        rows.append(row)
    return rows


# --- rivals --------------------------------------------------------------------------------------------------------


def against_rivals(size: int, rounds: int, machine: Machine) -> dict[str, object]:
    """The selective forward against the published structure and a 1D scan of as many cells, in float32."""
    scan = Scan("selective", 1, size, torch.float32)
    u, delta, A, B, C = scan.inputs
    first = [t.permute(0, 3, 1, 2).contiguous() for t in (u, delta, B, C)]
    line = [t.flatten(1, 2) for t in (u, delta, B, C)]

    def published() -> Tensor:
        return scan_rivals.published(first[0], first[1], A, first[2], first[3])

    def sequence() -> Tensor:
        return scan_rivals.sequence(line[0], line[1], A, line[2], line[3])

    torch.testing.assert_close(published().permute(0, 2, 3, 1), scan.forward(), rtol=1e-3, atol=1e-3)
    as_row = [t.unsqueeze(1) for t in line]
    wanted = selective_scan_2d(as_row[0], as_row[1], A, as_row[2], as_row[3], backend="triton").squeeze(1)
    torch.testing.assert_close(sequence(), wanted, rtol=1e-3, atol=1e-3)
    taken = seconds(scan.forward, rounds)
    return {
        "grid": f"{size}×{size}", "milliseconds": taken * 1e3,
        "than_published": seconds(published, rounds) / taken, "than_sequence": seconds(sequence, rounds) / taken,
    }  # fmt: skip


# --- all of it -----------------------------------------------------------------------------------------------------


def compile_all(scan: str, dtype: str) -> None:
    """Compile what a run may launch, once, into Triton's cache on disk."""
    from wsi2d.kernels.gpu import host
    from wsi2d.kernels.gpu.tuning import candidates

    case = Scan(scan, 1, 16, getattr(torch, dtype))
    parts, sides = ("forward", "backward"), (32, 512)
    tilings = {part: [tiling for n in sides for tiling in candidates(part, n, n, STATE)] for part in parts}
    for wanted, call in (("forward", case.forward), ("backward", case.both)):
        for tiling in dict.fromkeys(tilings[wanted]):

            def chosen(scan: str, part: str, *rest: Any, wanted: str = wanted, tiling: Any = tiling) -> Any:
                return tiling if part == wanted else tilings[part][0]

            host.choose = chosen
            call()
    torch.cuda.synchronize()


def compiled_side_by_side() -> float:
    """The same for all scans and dtypes, in a process each; the seconds it took."""
    start, script = time.monotonic(), str(Path(__file__).with_name("scan.py"))
    kinds = [(scan, dtype) for scan in OPERATORS for dtype in ("float32", "bfloat16")]
    command = [sys.executable, script, "--device", "cuda", "--compile"]
    running = [subprocess.Popen([*command, *kind]) for kind in kinds]
    for process in running:
        process.wait()  # what one of them could not compile is compiled, and its error shown, by the run
    return time.monotonic() - start


def run(options: argparse.Namespace, keep: Keep = lambda measured: None) -> dict[str, object]:
    """Measure, print, and return what was measured.

    Args:
        keep: takes what has been measured so far, after each grid.
    """
    begun, limit = time.monotonic(), 60 * getattr(options, "minutes", math.inf)
    compiling = compiled_side_by_side() if DEVICE == "cuda" else 0.0
    machine, rounds = measure(options.rounds), options.rounds
    name = torch.cuda.get_device_name()
    print(f"{name}; torch {torch.__version__}, triton {triton.__version__}; E = {DIM}, N = {STATE}")
    print(f"copies {machine.bandwidth / 1e12:.2f} TB/s, {machine.exponentials / 1e12:.2f} exponentials a ps")
    print(f"compiled in {compiling:.0f} s\n")
    rows, memory, rivals, left_out = [], [], [], list[str]()
    measured: dict[str, object] = {
        "machine": name, "triton": triton.__version__, "dim": DIM, "state": STATE, **machine._asdict(),
        "seconds_of_compiling": compiling, "times": rows, "against_rivals": rivals, "memory": memory,
        "left_out": left_out,
    }  # fmt: skip
    for size in (128,) if options.quick else RIVALS:
        if time.monotonic() - begun > limit / 2:
            left_out.append(f"rivals {size}×{size}")
            continue
        rivals.append(rival := against_rivals(size, rounds, machine))
        numbers = f"{rival['than_published']:.1f}× the published structure, {rival['than_sequence']:.1f}× a 1D scan"
        print(f"selective {rival['grid']} forward, float32: as fast as {numbers} of as many cells", flush=True)
        keep(measured)
    print(
        f"{'scan':10} {'grid':11} {'batch':>5} {'dtype':9} {'part':19} {'ms':>9} {'× floor':>8} {'in a graph':>11}",
        end="",
    )
    print(f" {'than torch':>11}")
    cases = [(1, size) for size in ((128,) if options.quick else SIZES)] + [*(() if options.quick else BATCHES)]
    for batch, size in cases:
        for scan in OPERATORS:
            for dtype in ("float32", "bfloat16"):
                past = time.monotonic() - begun
                if past > limit:
                    left_out.append(f"{scan} {size}×{size} batch {batch} {dtype}")
                    continue
                case = Scan(scan, batch, size, getattr(torch, dtype))
                for row in timed(case, batch, machine, rounds, dtype, loops=past < 0.7 * limit):
                    rows.append(row)
                    print(_line(row), flush=True)
                if size >= 512:
                    memory.append({"scan": scan, "grid": f"{size}×{size}", "dtype": dtype, "share": case.memory()})
                del case
                torch.cuda.empty_cache()
                keep(measured)
    for share in memory:
        print(f"{share['scan']} {share['grid']} {share['dtype']}: memory {share['share']:.2f} of the arguments'")
    if left_out:
        print(f"left out, for want of time: {', '.join(left_out)}")
    return measured


def _line(row: dict[str, object]) -> str:
    graph, loop = row.get("times_floor_in_a_graph"), row.get("than_torch")
    line = f"{row['scan']:10} {row['grid']:11} {row['batch']:5} {row['dtype']:9} {row['part']:19}"
    line += f" {row['milliseconds']:9.3f} {row['times_floor']:8.2f}"
    return (
        f"{line} {'' if graph is None else format(graph, '.2f'):>11} {'' if loop is None else format(loop, '.0f'):>11}"
    )
