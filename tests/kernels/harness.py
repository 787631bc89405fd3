"""What the tests of the scans share: random arguments, one call with all gradients, the comparison with the oracle."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi2d.kernels.scan2d import selective_scan_2d, wavefront_scan_2d

Array = NDArray[np.float64]
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Operator:
    """One of the scans.

    Attributes:
        name: what it is called, as a function, as an op and before ``_oracle``.
        scan: the function itself.
        required, optional: its tensor arguments in their order. The first one is read along the grid and gives the
            output its shape and dtype.
        steps, decays, drives: the arguments among them that play the parts of Δ, A and B.
        parameters: those without a batch, which may be wider than the others.
        has_softplus: whether there is the option ``delta_softplus``.
    """

    name: str
    scan: Callable[..., Tensor]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    steps: tuple[str, ...]
    decays: tuple[str, ...]
    drives: tuple[str, ...]
    parameters: tuple[str, ...]
    has_softplus: bool

    @property
    def arguments(self) -> tuple[str, ...]:
        """All tensor arguments in their order."""
        return self.required + self.optional

    @property
    def read(self) -> str:
        """The argument that is read: ``u`` or ``x``."""
        return self.required[0]

    def options(self, softplus: bool) -> dict[str, Any]:
        """The arguments that are not tensors."""
        return {"delta_softplus": softplus} if self.has_softplus else {}

    def raw(self, inputs: Inputs, softplus: bool, backend: str) -> tuple[object, ...]:
        """The arguments of the op `torch.ops.wsi2d.<name>`."""
        return (*(inputs.get(name) for name in self.arguments), *self.options(softplus).values(), backend)


SELECTIVE = Operator(
    "selective_scan_2d",
    selective_scan_2d,
    required=("u", "delta", "A", "B", "C"),
    optional=("D", "z", "delta_bias"),
    steps=("delta",),
    decays=("A",),
    drives=("B",),
    parameters=("A", "D", "delta_bias"),
    has_softplus=True,
)
WAVEFRONT = Operator(
    "wavefront_scan_2d",
    wavefront_scan_2d,
    required=("x", "delta_t", "delta_l", "A_t", "A_l", "B_t", "B_l", "C"),
    optional=("D",),
    steps=("delta_t", "delta_l"),
    decays=("A_t", "A_l"),
    drives=("B_t", "B_l"),
    parameters=("A_t", "A_l", "D"),
    has_softplus=False,
)

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
    operator: Operator = SELECTIVE,
    dtype: torch.dtype = torch.float64,
    batch: int = 2,
    optional: tuple[str, ...] | None = None,
    softplus: bool = True,
    seed: int = 0,
) -> Inputs:
    """Random arguments rounded to `dtype`, with all optional ones unless told. Steps are positive with and without
    softplus, so that every decay is below 1, and about 0.3, so that a cell remembers some ten cells."""
    rng = np.random.default_rng([seed, *size, dim, state])
    grid = (batch, *size)
    softplus = softplus and operator.has_softplus
    arrays = {}
    for name in operator.arguments:
        if name in operator.steps:
            shape = (*grid, dim)
            arrays[name] = rng.normal(-1.2, 0.5, size=shape) if softplus else rng.uniform(0.05, 0.5, size=shape)
        elif name in operator.decays:
            arrays[name] = -rng.uniform(0.05, 1.0, size=(dim, state))
        elif name == "delta_bias":
            arrays[name] = rng.normal(0.0, 0.3, size=dim) if softplus else rng.uniform(0.0, 0.1, size=dim)
        elif name == "D":
            arrays[name] = rng.normal(size=dim)
        else:
            arrays[name] = rng.normal(size=(*grid, state if name in (*operator.drives, "C") else dim))
    names = operator.required + (operator.optional if optional is None else optional)
    return {name: torch.from_numpy(arrays[name]).to(dtype) for name in names}


def between(low: float, high: float, values: Tensor) -> Tensor:
    """The same values, spread from `low` to `high`."""
    return low + (values - values.min()) / (values.max() - values.min()) * (high - low)


def make_extreme_inputs(
    extreme: tuple[tuple[float, float], tuple[float, float]],
    size: tuple[int, int],
    dim: int,
    state: int,
    *,
    operator: Operator,
    dtype: torch.dtype,
    batch: int = 2,
) -> Inputs:
    """Arguments with steps in the first range and every other state's decays in the second; without softplus."""
    steps, decays = extreme
    inputs = make_inputs(size, dim, state, operator=operator, dtype=dtype, batch=batch, softplus=False, optional=("D",))
    for name in operator.steps:
        inputs[name] = between(*steps, inputs[name])
    for name in operator.decays:
        inputs[name][:, ::2] = between(*decays, inputs[name][:, ::2])
    return inputs


def operator_of(inputs: Inputs) -> Operator:
    """The scan that takes these arguments."""
    return SELECTIVE if SELECTIVE.read in inputs else WAVEFRONT


def make_grad(inputs: Inputs, seed: int = 1) -> Tensor:
    """A random ∂L/∂out in the dtype of `u` or `x`."""
    read = inputs[operator_of(inputs).read]
    return torch.from_numpy(np.random.default_rng(seed).normal(size=tuple(read.shape))).to(read.dtype)


def scan(inputs: Inputs, softplus: bool, backend: str | None) -> Tensor:
    """The output of the scan that takes these arguments; `softplus` is for the selective one."""
    operator = operator_of(inputs)
    return operator.scan(**inputs, **operator.options(softplus), backend=backend)


def run_scan(inputs: Inputs, grad_out: Tensor, softplus: bool, backend: str | None) -> tuple[Tensor, Inputs]:
    """The output, and the gradient of every argument by its name; strides of the arguments are kept."""
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    out = scan(leaves, softplus, backend)
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out)
    return out.detach(), dict(zip(leaves, grads, strict=True))


def to_numpy(tensor: Tensor) -> Array:
    """The values in float64."""
    array: Array = tensor.detach().double().numpy()
    return array


def run_oracle(oracle: ModuleType, inputs: Inputs, grad_out: Tensor, softplus: bool) -> tuple[Array, dict[str, Array]]:
    """What `run_scan` should give, of the same values in float64."""
    operator = operator_of(inputs)
    arrays = {name: to_numpy(value) for name, value in inputs.items()}
    options = operator.options(softplus)
    out = getattr(oracle, f"{operator.name}_oracle")(**arrays, **options)
    grads = getattr(oracle, f"{operator.name}_backward_oracle")(to_numpy(grad_out), **arrays, **options)
    return out, {name: getattr(grads, name) for name in inputs}


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


def check(oracle: ModuleType, inputs: Inputs, *, softplus: bool = True, backend: str | None) -> None:
    """Output and all gradients against the oracle fed with the same rounded values; dtypes those of the arguments."""
    grad_out = make_grad(inputs)
    out, grads = run_scan(inputs, grad_out, softplus, backend)
    want, want_grads = run_oracle(oracle, inputs, grad_out, softplus)
    dtype = inputs[operator_of(inputs).read].dtype
    assert out.dtype == dtype, f"output is {out.dtype}"
    assert_close(out, want, TOLERANCE[dtype][0], "output")
    for name, grad in grads.items():
        assert grad.dtype == inputs[name].dtype, f"gradient of {name} is {grad.dtype}"
        assert_close(grad, want_grads[name], TOLERANCE[grad.dtype][1], f"gradient of {name}")
