"""How fast the 2D scans are on this machine's CPU, as ratios within one run.

For each grid it prints the time of ``native`` against a plain loop in PyTorch, the equations as they stand (over
columns, then rows; the wavefront: over the columns of the sheared grid), differentiated by autograd; against the
backend ``torch``, which is such a loop made lean; and against the floor: as many multiply-adds as it needs, on as many
threads. Their results must agree. The competitors take turns, and medians are compared. Then how time grows with the
cells, what a grid of one row costs, and the memory above the inputs.

This module is run by ``scan.py``; it needs torch, numba and the folder ``kernels/``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import torch
from memory import peak_megabytes
from torch import Tensor
from torch.nn import functional

from wsi2d.kernels.check import make_inputs
from wsi2d.kernels.native.jit import kernel
from wsi2d.kernels.native.results import aligned
from wsi2d.kernels.native.simd import AVX512, INSTRUCTIONS, LANES, fma, load, load_block, store
from wsi2d.kernels.scan2d import selective_scan_2d, wavefront_scan_2d

DIM, STATE = 256, 16
# Operations on the multiply-add pipe for each LANES elements of cell × channel × state: of the forward, and of forward
# and backward together.
OPERATIONS = {"selective": (10, 38), "wavefront": (18, 62)}
CHAINS = 12 if AVX512 else 5  # vectors that are multiplied side by side: as many as the registers hold

Call = Callable[[], object]


@kernel(numba.types.void(numba.types.int64, numba.types.int64))
def multiply_adds(address, count):
    """``count`` rounds of CHAINS independent multiply-adds of vectors."""
    factor, term = load(address, 0), load(address, LANES)
    x, y, z = (
        load_block(address, 2 * LANES),
        load_block(address, 6 * LANES),
        load_block(address, 10 * LANES),
    )
    w = load(address, 14 * LANES)
    for _ in range(count):
        x = fma(x, factor, term)
        if AVX512:
            y, z = fma(y, factor, term), fma(z, factor, term)
        else:
            w = fma(w, factor, term)
    store(address, 2 * LANES, x)
    store(address, 6 * LANES, y)
    store(address, 10 * LANES, z)
    store(address, 14 * LANES, w)


def floor_of(operations: float, threads: int) -> Call:
    """So many operations on the multiply-add pipe, of vectors, shared out among threads."""
    memory = [aligned(15 * LANES) for _ in range(threads)]
    for part in memory:
        part[:] = 0.5
    pool, rounds = ThreadPoolExecutor(threads), round(operations / CHAINS / threads)
    return lambda: list(pool.map(lambda part: multiply_adds(part.ctypes.data, rounds), memory))


def plain_selective(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The equations line by line, for the whole grid at once: columns unbound, then rows."""
    a = torch.exp(delta.unsqueeze(-1) * A)
    x = (delta * u).unsqueeze(-1) * B.unsqueeze(-2)
    g = torch.stack(recurrence(a.unbind(2), x.unbind(2)), 2)
    h = torch.stack(recurrence(a.unbind(1), g.unbind(1)), 1)
    return (h * C.unsqueeze(-2)).sum(-1)


def recurrence(a: Sequence[Tensor], x: Sequence[Tensor]) -> list[Tensor]:
    """h[t] = a[t] · h[t−1] + x[t]."""
    h = [x[0]]
    for a_t, x_t in zip(a[1:], x[1:], strict=True):
        h.append(a_t * h[-1] + x_t)
    return h


def plain_wavefront(
    x: Tensor, delta_t: Tensor, delta_l: Tensor, A_t: Tensor, A_l: Tensor, B_t: Tensor, B_l: Tensor, C: Tensor
) -> Tensor:
    """The equations on the sheared grid, whose row i lies i columns to the right: anti-diagonals become columns."""
    _, height, width, _ = x.shape
    of_t, of_l = torch.full((height, width, 1, 1), 0.5), torch.full((height, width, 1, 1), 0.5)
    of_t[:, 0], of_l[:, 0] = 1, 0
    of_t[0], of_l[0] = 0, 1
    a_t = of_t * torch.exp(delta_t.unsqueeze(-1) * A_t)
    a_l = of_l * torch.exp(delta_l.unsqueeze(-1) * A_l)
    drive = of_t * (delta_t * x).unsqueeze(-1) * B_t.unsqueeze(-2)
    drive = drive + of_l * (delta_l * x).unsqueeze(-1) * B_l.unsqueeze(-2)
    columns = [shear(t).unbind(2) for t in (a_t, a_l, drive)]
    h = [columns[2][0]]
    for a_t, a_l, x_d in zip(*(column[1:] for column in columns), strict=True):
        above = functional.pad(h[-1], (0, 0, 0, 0, 1, 0))[:, :height]
        h.append(a_t * above + a_l * h[-1] + x_d)
    states = functional.pad(torch.stack(h, 2).flatten(1, 2), (0, 0, 0, 0, 0, height))
    states = states.unflatten(1, (height, width + height))[:, :, :width]
    return (states * C.unsqueeze(-2)).sum(-1)


def shear(cells: Tensor) -> Tensor:
    """``[batch, height, width, …]`` to ``[batch, height, width + height − 1, …]``, zero where there is no cell."""
    height, width = cells.shape[1:3]
    flat = functional.pad(cells, (0, 0, 0, 0, 0, height)).flatten(1, 2)
    return flat[:, : height * (width + height - 1)].unflatten(1, (height, width + height - 1))


def scans_of(scan: str, height: int, width: int) -> dict[str, dict[str, Call]]:
    """What is timed: each competitor's forward, and its forward and backward."""
    inputs = list(make_inputs(scan, (1, height, width, DIM, STATE)).values())
    inputs = inputs[: 5 if scan == "selective" else 8]  # without skip, gate and bias
    if scan == "selective":
        inputs[1] = inputs[1].exp()  # positive steps, without a softplus
    leaves = [t.clone().requires_grad_() for t in inputs]
    grad_out = torch.randn_like(inputs[0])
    operator = selective_scan_2d if scan == "selective" else wavefront_scan_2d
    plain = plain_selective if scan == "selective" else plain_wavefront

    def native(*tensors: Tensor) -> Tensor:
        return operator(*tensors, backend="native")

    def lean(*tensors: Tensor) -> Tensor:
        return operator(*tensors, backend="torch")

    return {
        name: {
            "forward": lambda call=call: call(*inputs),
            "forward + backward": lambda call=call: torch.autograd.grad(call(*leaves), leaves, grad_out),
        }
        for name, call in (("native", native), ("loop", plain), ("torch", lean))
    }


def agree(scan: str) -> None:
    """Fail unless all competitors give the same numbers."""
    outputs = {name: parts["forward + backward"]() for name, parts in scans_of(scan, 9, 13).items()}
    for name in ("loop", "torch"):
        torch.testing.assert_close(outputs[name], outputs["native"], rtol=1e-4, atol=1e-4)


def medians(calls: dict[str, Call], rounds: dict[str, int]) -> dict[str, float]:
    """Median seconds of each; they take turns, and the first round of each is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for k in range(max(rounds.values())):
        for name, call in calls.items():
            if k < rounds[name]:
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def against_the_loop(scan: str, size: int, rounds: int, threads: int) -> list[dict[str, object]]:
    """Ratios at size × size, forward, and forward and backward."""
    agree(scan)
    scans = scans_of(scan, size, size)
    rows: list[dict[str, object]] = []
    for k, part in enumerate(("forward", "forward + backward")):
        calls = {name: parts[part] for name, parts in scans.items()}
        calls["floor"] = floor_of(OPERATIONS[scan][k] * size * size * DIM * STATE / LANES, threads)
        taken = medians(calls, {"native": 5 * rounds, "loop": rounds, "torch": rounds, "floor": 5 * rounds})
        rows.append(
            {
                "scan": scan, "grid": f"{size}×{size}", "part": part, "seconds": round(taken["native"], 5),
                "than_plain_loop": round(taken["loop"] / taken["native"], 1),
                "than_torch": round(taken["torch"] / taken["native"], 1),
                "times_floor": round(taken["native"] / taken["floor"], 2),
            }
        )  # fmt: skip
    return rows


def growth(rounds: int, sizes: tuple[int, ...]) -> list[dict[str, object]]:
    """Nanoseconds of forward and backward a cell: squares of growing size, and one row of as many cells."""
    shapes = [(s, s) for s in sizes] + [(1, 128 * 128), (128 * 128, 1)]
    rows: list[dict[str, object]] = []
    for height, width in shapes:
        calls = scans_of("selective", height, width)["native"]
        taken = medians({"native": calls["forward + backward"]}, {"native": rounds if height * width < 2**18 else 1})
        rows.append({"grid": f"{height}×{width}", "ns_per_cell": round(taken["native"] / (height * width) * 1e9)})
    return rows


def peak_memory(scan: str, size: int) -> float:
    """MB above the inputs that forward and backward take, in a process of its own."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("scan.py")),
        "--peak",
        scan,
        str(size),
        "--threads",
        str(torch.get_num_threads()),
    ]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(scan: str, size: int) -> None:
    """What :func:`peak_memory` reads."""
    warm = scans_of(scan, 17, 17)["native"]["forward + backward"]
    warm()
    call = scans_of(scan, size, size)["native"]["forward + backward"]
    print(peak_megabytes(call))


def run(options: argparse.Namespace) -> dict[str, object]:
    """Measure, print, and return what was measured."""
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(options.peak[0], int(options.peak[1]))
        return {}
    machine = f"{platform.machine()}, {INSTRUCTIONS}, {options.threads} threads"
    print(f"{machine}; torch {torch.__version__}, numba {numba.__version__}; E = {DIM}, N = {STATE}, float32\n")
    table = [row for scan in OPERATIONS for row in against_the_loop(scan, 128, options.rounds, options.threads)]
    if not options.quick:
        table += against_the_loop("selective", 200, options.rounds, options.threads)
    print(f"{'':40} {'':>8} {'faster than':>23}")
    print(f"{'scan':10} {'grid':9} {'part':19} {'seconds':>8} {'plain loop':>12} {'torch':>10} {'× floor':>9}")
    for row in table:
        numbers = f"{row['than_plain_loop']:11.0f}× {row['than_torch']:9.0f}× {row['times_floor']:9.2f}"
        print(f"{row['scan']:10} {row['grid']:9} {row['part']:19} {row['seconds']:8.4f} {numbers}")
    grids = growth(options.rounds, (128,) if options.quick else (64, 128, 256, 512, 1000))
    print("\nnanoseconds a cell, forward + backward: " + ", ".join(f"{g['grid']} {g['ns_per_cell']}" for g in grids))
    peaks = {scan: peak_memory(scan, 128) for scan in OPERATIONS} if sys.platform == "linux" else {}
    for scan, peak in peaks.items():
        print(f"{scan}: {peak:.0f} MB above the inputs at 128×128, forward + backward")
    return {
        "machine": machine, "numba": numba.__version__, "dim": DIM, "state": STATE, "against_the_loop": table,
        "growth": grids, "peak_megabytes": peaks,
    }  # fmt: skip
