"""What the tests of the scans share: random arguments, one call with all gradients, the comparison with the oracle."""

from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi2d.kernels.scan2d import selective_scan_2d

Array = NDArray[np.float64]
Inputs = dict[str, Tensor]

REQUIRED = ("u", "delta", "A", "B", "C")
OPTIONAL = ("D", "z", "delta_bias")

# Relative RMS of the output and of the gradients. The largest error may be MAX_OVER_RMS times that share of the
# largest value: one wrong cell among thousands hardly moves the RMS.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-6, 5e-6),
    torch.bfloat16: (1e-2, 1e-2),
    torch.float16: (1e-2, 1e-2),
}
MAX_OVER_RMS = 4.0


def make_inputs(
    size: tuple[int, int],
    dim: int = 3,
    state: int = 4,
    *,
    dtype: torch.dtype = torch.float64,
    batch: int = 2,
    optional: tuple[str, ...] = OPTIONAL,
    softplus: bool = True,
    seed: int = 0,
) -> Inputs:
    """Random arguments rounded to `dtype`. Steps are positive with and without softplus, so that every decay is below
    1, and about 0.3, so that a cell remembers some ten cells."""
    rng = np.random.default_rng([seed, *size, dim, state])
    grid = (batch, *size)
    arrays = {
        "u": rng.normal(size=(*grid, dim)),
        "delta": rng.normal(-1.2, 0.5, size=(*grid, dim)) if softplus else rng.uniform(0.05, 0.5, size=(*grid, dim)),
        "A": -rng.uniform(0.05, 1.0, size=(dim, state)),
        "B": rng.normal(size=(*grid, state)),
        "C": rng.normal(size=(*grid, state)),
        "D": rng.normal(size=dim),
        "z": rng.normal(size=(*grid, dim)),
        "delta_bias": rng.normal(0.0, 0.3, size=dim) if softplus else rng.uniform(0.0, 0.1, size=dim),
    }
    return {name: torch.from_numpy(arrays[name]).to(dtype) for name in (*REQUIRED, *optional)}


def make_grad(inputs: Inputs, seed: int = 1) -> Tensor:
    """A random ∂L/∂out in the dtype of `u`."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=tuple(inputs["u"].shape))).to(inputs["u"].dtype)


def run_scan(inputs: Inputs, grad_out: Tensor, softplus: bool, backend: str | None) -> tuple[Tensor, Inputs]:
    """The output, and the gradient of every argument by its name; strides of the arguments are kept."""
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    out = selective_scan_2d(**leaves, delta_softplus=softplus, backend=backend)
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out)
    return out.detach(), dict(zip(leaves, grads, strict=True))


def to_numpy(tensor: Tensor) -> Array:
    """The values in float64."""
    array: Array = tensor.detach().double().numpy()
    return array


def assert_close(got: Tensor, want: Array, tolerance: float, what: str) -> None:
    """Relative RMS error and largest error within tolerance; where all of `want` is zero, so is all of `got`."""
    assert tuple(got.shape) == want.shape, f"{what}: shape {tuple(got.shape)}, expected {want.shape}"
    error = to_numpy(got) - want
    assert np.isfinite(error).all(), f"{what}: {np.count_nonzero(~np.isfinite(error))} of {error.size} not finite"
    rms = float(np.sqrt(np.mean(error**2)))
    rms_limit = tolerance * float(np.sqrt(np.mean(want**2)))
    assert rms <= rms_limit, f"{what}: RMS error {rms:.3g} over {rms_limit:.3g}"
    largest, limit = float(np.abs(error).max()), MAX_OVER_RMS * tolerance * float(np.abs(want).max())
    assert largest <= limit, f"{what}: largest error {largest:.3g} over {limit:.3g}"


def check(oracle: ModuleType, inputs: Inputs, *, softplus: bool, backend: str | None) -> None:
    """Output and all gradients against the oracle fed with the same rounded values; dtypes those of the arguments."""
    grad_out = make_grad(inputs)
    out, grads = run_scan(inputs, grad_out, softplus, backend)
    arrays = {name: to_numpy(value) for name, value in inputs.items()}
    want = oracle.selective_scan_2d_oracle(**arrays, delta_softplus=softplus)
    want_grads = oracle.selective_scan_2d_backward_oracle(to_numpy(grad_out), **arrays, delta_softplus=softplus)
    out_tolerance, grad_tolerance = TOLERANCE[inputs["u"].dtype]
    assert out.dtype == inputs["u"].dtype, f"output is {out.dtype}"
    assert_close(out, want, out_tolerance, "output")
    for name, grad in grads.items():
        assert grad.dtype == inputs[name].dtype, f"gradient of {name} is {grad.dtype}"
        assert_close(grad, getattr(want_grads, name), grad_tolerance, f"gradient of {name}")
