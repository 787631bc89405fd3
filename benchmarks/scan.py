"""How fast the 2D scans are on this machine's CPU, as ratios within one run.

    python benchmarks/scan.py [--threads 2] [--rounds 3] [--quick] [--json FILE]

For each grid it prints the time of ``native`` against a plain loop in PyTorch (over columns, then rows; the wavefront:
over anti-diagonals) that makes the decays of the whole grid first and is differentiated by autograd; against the
backend ``torch``, which is such a loop made lean; and against the floor that the processor's rate of multiply-adds
sets. The competitors take turns, and medians are compared. Then how time grows with the cells, what a grid of one row
costs, and the memory above the inputs. It needs torch, numba and the package.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numba
import torch
from torch import Tensor
from torch.nn import functional

from wsi2d.kernels import loops
from wsi2d.kernels.check import make_inputs
from wsi2d.kernels.native.host import aligned
from wsi2d.kernels.native.jit import kernel
from wsi2d.kernels.native.simd import INSTRUCTIONS, LANES, fma, load, load_block, store
from wsi2d.kernels.scan2d import selective_scan_2d, wavefront_scan_2d

DIM, STATE = 256, 16
# Operations on the multiply-add pipe for each LANES elements of cell × channel × state: of the forward, and of forward
# and backward together.
OPERATIONS = {"selective": (10, 38), "wavefront": (18, 62)}
CHAINS = 12

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
    for _ in range(count):
        x, y, z = fma(x, factor, term), fma(y, factor, term), fma(z, factor, term)
    store(address, 2 * LANES, x)
    store(address, 6 * LANES, y)
    store(address, 10 * LANES, z)


def seconds_of_one_multiply_add() -> float:
    """Of a vector, on one core; the fastest of some runs."""
    memory, rounds, best = aligned(14 * LANES), 200_000, float("inf")
    memory[:] = 0.5
    for _ in range(5):
        start = time.perf_counter()
        multiply_adds(memory.ctypes.data, rounds)
        best = min(best, time.perf_counter() - start)
    return best / (rounds * CHAINS)


def plain_wavefront(
    x: Tensor, delta_t: Tensor, delta_l: Tensor, A_t: Tensor, A_l: Tensor, B_t: Tensor, B_l: Tensor, C: Tensor
) -> Tensor:
    """The wavefront as a loop over anti-diagonals: decays and drives of all cells first."""
    _, height, width, _ = x.shape
    inside = torch.ones(height, width)
    inside[0], inside[:, 0] = 0, 0
    first_column = torch.zeros(height, width)
    first_column[1:, 0] = 1
    of_t = (0.5 * inside + first_column)[..., None, None]
    of_l = (1 - 0.5 * inside - first_column)[..., None, None]
    a_t = of_t * torch.exp(delta_t.unsqueeze(-1) * A_t)
    a_l = of_l * torch.exp(delta_l.unsqueeze(-1) * A_l)
    drive = of_t * (delta_t * x).unsqueeze(-1) * B_t.unsqueeze(-2)
    drive = drive + of_l * (delta_l * x).unsqueeze(-1) * B_l.unsqueeze(-2)
    rows = [(max(0, d - width + 1), min(height - 1, d)) for d in range(height + width - 1)]
    order = torch.cat([torch.arange(top, bottom + 1) * (width - 1) + d for d, (top, bottom) in enumerate(rows)])
    sizes = [bottom - top + 1 for top, bottom in rows]
    sheared = [t.flatten(1, 2)[:, order].split(sizes, 1) for t in (a_t, a_l, drive, C.unsqueeze(-1))]
    h = torch.zeros_like(drive[:, 0, :1]).expand(-1, height, -1, -1)  # row i of the diagonal before
    parts = []
    for (top, bottom), of_t, of_l, x_d, C_d in zip(rows, *sheared, strict=True):
        above = functional.pad(h, (0, 0, 0, 0, 1, 0))[:, top : bottom + 1]
        new = x_d + of_t * above + of_l * h[:, top : bottom + 1]
        parts.append((new @ C_d).squeeze(-1))
        h = functional.pad(new, (0, 0, 0, 0, top, height - 1 - bottom))
    return torch.cat(parts, 1)[:, order.argsort()].reshape(x.shape)


def scans_of(scan: str, height: int, width: int) -> dict[str, dict[str, Call]]:
    """What is timed: each competitor's forward, and its forward and backward."""
    inputs = list(make_inputs(scan, (1, height, width, DIM, STATE)).values())
    inputs = inputs[: 5 if scan == "selective" else 8]  # without skip, gate and bias
    if scan == "selective":
        inputs[1] = inputs[1].exp()  # positive steps, without a softplus
    leaves = [t.clone().requires_grad_() for t in inputs]
    grad_out = torch.randn_like(inputs[0])
    operator = selective_scan_2d if scan == "selective" else wavefront_scan_2d

    def native(*tensors: Tensor) -> Tensor:
        return operator(*tensors, backend="native")

    def loop(*tensors: Tensor) -> Tensor:
        if scan == "selective":
            return loops.selective(*tensors, None, None, None, False)
        return plain_wavefront(*tensors)

    def lean(*tensors: Tensor) -> Tensor:
        return operator(*tensors, backend="torch")

    return {
        name: {
            "forward": lambda call=call: call(*inputs),
            "forward + backward": lambda call=call: torch.autograd.grad(call(*leaves), leaves, grad_out),
        }
        for name, call in (("native", native), ("loop", loop), ("torch", lean))
    }


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
    scans = scans_of(scan, size, size)
    rows: list[dict[str, object]] = []
    for k, part in enumerate(("forward", "forward + backward")):
        calls = {name: parts[part] for name, parts in scans.items()}
        taken = medians(calls, {"native": 3 * rounds, "loop": rounds, "torch": rounds})
        floor = OPERATIONS[scan][k] * size * size * DIM * STATE / LANES * seconds_of_one_multiply_add() / threads
        rows.append(
            {
                "scan": scan, "grid": f"{size}×{size}", "part": part, "seconds": round(taken["native"], 5),
                "than_plain_loop": round(taken["loop"] / taken["native"], 1),
                "than_torch": round(taken["torch"] / taken["native"], 1),
                "times_floor": round(taken["native"] / floor, 2),
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
    command = [sys.executable, __file__, "--peak", scan, str(size), "--threads", str(torch.get_num_threads())]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(scan: str, size: int) -> None:
    """What :func:`peak_memory` reads."""
    warm = scans_of(scan, 17, 17)["native"]["forward + backward"]
    warm()
    call = scans_of(scan, size, size)["native"]["forward + backward"]
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free already must not count as free memory
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    call()
    lines = Path("/proc/self/status").read_text().splitlines()
    highest = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    print((highest - before) / 1e6)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="128×128 alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(options.peak[0], int(options.peak[1]))
        return
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
    if options.json:
        result = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": machine, "python": platform.python_version(),
            "torch": torch.__version__, "numba": numba.__version__, "dim": DIM, "state": STATE,
            "against_the_loop": table, "growth": grids, "peak_megabytes": peaks,
        }  # fmt: skip
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
