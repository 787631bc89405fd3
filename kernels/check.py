"""Is every backend right on this machine? Each is held against the equations, written cell by cell in float64.

The equations stand in :mod:`wsi2d.kernels.scan2d`; the gradients of the reference are autograd's. This module needs
torch alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from wsi2d.kernels.scan2d import available_backends, selective_scan_2d, wavefront_scan_2d

Inputs = dict[str, Tensor]

SCANS: dict[str, Callable[..., Tensor]] = {
    "selective": partial(selective_scan_2d, delta_softplus=True),
    "wavefront": wavefront_scan_2d,
}
TOLERANCES = {"cpu": (1e-6, 5e-6), "cuda": (2e-5, 2e-5)}  # relative error in float32: the output, each gradient
SIZES = ((1, 1), (1, 8), (8, 1), (5, 7), (17, 18))


@dataclass(frozen=True)
class ScanCheck:
    """How far a backend is from the equations.

    Attributes:
        scan, backend, device: what was checked.
        output, gradient: the largest relative errors over all sizes and arguments; NaN where it failed.
        ok: within the device's tolerance.
        seconds: median time of forward and backward at :data:`TIMED`.
        error: one line, where the call raised.
    """

    scan: str
    backend: str
    device: str
    output: float
    gradient: float
    ok: bool
    seconds: float
    error: str = ""


TIMED = (1, 64, 64, 256, 16)  # batch, height, width, dim, state


def check_backends(device: str = "cpu", *, timed: bool = True) -> list[ScanCheck]:
    """Check both scans on every backend that the device has, in float32 on seeded random arguments.

    Args:
        device: ``cpu`` or ``cuda``.
        timed: also time each at :data:`TIMED`; the plain loop takes some seconds.
    """
    return [_check(scan, backend, device, timed) for scan in SCANS for backend in _backends_of(device)]


def _backends_of(device: str) -> list[str]:
    other = "triton" if device == "cpu" else "native"  # Triton's interpreter is for tests alone
    return [name for name in available_backends() if name != other]


def _check(scan: str, backend: str, device: str, timed: bool) -> ScanCheck:
    output = gradient = seconds = float("nan")
    try:
        errors = [_errors(scan, backend, device, size) for size in SIZES]
        output, gradient = (_largest([pair[k] for pair in errors]) for k in (0, 1))
        if timed:
            seconds = _seconds(scan, backend, device)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is wrong with the backend
        line = " ".join(str(error).split()) or type(error).__name__
        return ScanCheck(scan, backend, device, output, gradient, False, seconds, line)
    allowed = TOLERANCES["cpu" if device == "cpu" else "cuda"]
    return ScanCheck(scan, backend, device, output, gradient, output <= allowed[0] and gradient <= allowed[1], seconds)


def _errors(scan: str, backend: str, device: str, size: tuple[int, int]) -> tuple[float, float]:
    """Relative errors of the output and of the gradient that is furthest off."""
    inputs = make_inputs(scan, (2, *size, 20, 5))
    grad_out = torch.randn(next(iter(inputs.values())).shape, generator=torch.Generator().manual_seed(1))
    want, want_grads = _run(REFERENCES[scan], {k: v.double() for k, v in inputs.items()}, grad_out.double())
    there = {k: v.to(device) for k, v in inputs.items()}
    got, got_grads = _run(lambda **given: SCANS[scan](**given, backend=backend), there, grad_out.to(device))
    gradients = zip(got_grads, want_grads, strict=True)
    return _relative(got, want), _largest([_relative(a, b) for a, b in gradients])


def _seconds(scan: str, backend: str, device: str) -> float:
    inputs = {k: v.to(device) for k, v in make_inputs(scan, TIMED).items()}
    grad_out = torch.ones_like(next(iter(inputs.values())))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        _run(lambda **given: SCANS[scan](**given, backend=backend), inputs, grad_out)
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[1]


def _run(scan: Callable[..., Tensor], inputs: Inputs, grad_out: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    out = scan(**leaves)
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out, allow_unused=True, materialize_grads=True)
    return out.detach(), grads


def _relative(got: Tensor, want: Tensor) -> float:
    """Root mean square of the error over that of what is wanted; of zeros the error itself."""
    error, size = (got.cpu().double() - want).norm(), want.norm()
    return float(error / size if size > 0 else error)


def _largest(values: list[float]) -> float:
    """The largest, NaN if one is."""
    return max(values, key=lambda value: (value != value, value))


# --- arguments and equations ---------------------------------------------------------------------------------------


def make_inputs(scan: str, sizes: tuple[int, int, int, int, int], seed: int = 0) -> Inputs:
    """Random float32 arguments of a scan on the CPU, as models have them: steps about 0.3, decaying states.

    Args:
        scan: ``selective`` or ``wavefront``.
        sizes: batch, height, width, dim, state.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, height, width, dim, state = sizes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def grid(channels: int) -> Tensor:
        return normal(batch, height, width, channels)

    def decay() -> Tensor:
        return -0.05 - torch.rand(dim, state, generator=generator)

    def steps() -> Tensor:
        return 0.05 + 0.5 * grid(dim).sigmoid()

    if scan == "selective":  # its steps go through a softplus
        return {
            "u": grid(dim), "delta": 0.5 * grid(dim) - 1.2, "A": decay(), "B": grid(state), "C": grid(state),
            "D": normal(dim), "z": grid(dim), "delta_bias": 0.3 * normal(dim),
        }  # fmt: skip
    return {
        "x": grid(dim), "delta_t": steps(), "delta_l": steps(), "A_t": decay(), "A_l": decay(), "B_t": grid(state),
        "B_l": grid(state), "C": grid(state), "D": normal(dim),
    }  # fmt: skip


def selective_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The selective scan with softplus, skip and gate, cell by cell; autograd differentiates it."""
    step = torch.log1p(torch.exp(delta + delta_bias))
    g: dict[tuple[int, int], Tensor] = {}
    h: dict[tuple[int, int], Tensor] = {}
    out = []
    for i, j in _cells(u):
        a = torch.exp(step[:, i, j, :, None] * A)
        x = step[:, i, j, :, None] * B[:, i, j, None, :] * u[:, i, j, :, None]
        g[i, j] = a * g[i, j - 1] + x if j > 0 else x
        h[i, j] = a * h[i - 1, j] + g[i, j] if i > 0 else g[i, j]
        y = (C[:, i, j, None, :] * h[i, j]).sum(-1) + D * u[:, i, j]
        out.append(y * z[:, i, j] / (1 + torch.exp(-z[:, i, j])))
    return torch.stack(out, 1).reshape(u.shape)


def wavefront_reference(
    x: Tensor, delta_t: Tensor, delta_l: Tensor, A_t: Tensor, A_l: Tensor,
    B_t: Tensor, B_l: Tensor, C: Tensor, D: Tensor,
) -> Tensor:  # fmt: skip
    """The wavefront scan, cell by cell; autograd differentiates it."""
    h: dict[tuple[int, int], Tensor] = {}
    out = []
    for i, j in _cells(x):
        t, left, cell = delta_t[:, i, j, :, None], delta_l[:, i, j, :, None], x[:, i, j, :, None]
        from_left = left * B_l[:, i, j, None, :] * cell
        from_above = t * B_t[:, i, j, None, :] * cell
        if j > 0:
            from_left = torch.exp(left * A_l) * h[i, j - 1] + from_left
        if i > 0:
            from_above = torch.exp(t * A_t) * h[i - 1, j] + from_above
        h[i, j] = from_left if i == 0 else from_above if j == 0 else 0.5 * (from_above + from_left)
        out.append((C[:, i, j, None, :] * h[i, j]).sum(-1) + D * x[:, i, j])
    return torch.stack(out, 1).reshape(x.shape)


def _cells(grid: Tensor) -> list[tuple[int, int]]:
    return [(i, j) for i in range(grid.shape[1]) for j in range(grid.shape[2])]


REFERENCES: dict[str, Callable[..., Tensor]] = {"selective": selective_reference, "wavefront": wavefront_reference}
