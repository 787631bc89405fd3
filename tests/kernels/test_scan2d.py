"""The numbers of `selective_scan_2d`: its output and every gradient, against the oracle."""

import itertools
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from wsi2d.kernels.scan2d import selective_scan_2d

REQUIRED = ("u", "delta", "A", "B", "C")
OPTIONAL = ("D", "z", "delta_bias")
SIZES = [(1, 1), (1, 8), (8, 1), (2, 2), (5, 7), (16, 16), (17, 33), (63, 65)]
DIMS, STATES = (1, 3, 16, 20), (1, 4, 5, 16)
OPTIONS = [combo for count in range(4) for combo in itertools.combinations(OPTIONAL, count)]
FULL = [torch.float64, torch.float32]
HALF = [torch.bfloat16, torch.float16]


# --- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FULL, ids=str)
@pytest.mark.parametrize(("dim", "state"), [(3, 4), (20, 5)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(
    oracle: ModuleType,
    harness: ModuleType,
    backend: str,
    size: tuple[int, int],
    dim: int,
    state: int,
    dtype: torch.dtype,
) -> None:
    if size == (63, 65):
        dim = min(dim, 4)  # the oracle keeps every state
    harness.check(oracle, harness.make_inputs(size, dim, state, dtype=dtype), softplus=True, backend=backend)


@pytest.mark.parametrize("dtype", FULL, ids=str)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dim", DIMS)
def test_dims_and_states(
    oracle: ModuleType, harness: ModuleType, backend: str, dim: int, state: int, dtype: torch.dtype
) -> None:
    harness.check(oracle, harness.make_inputs((5, 7), dim, state, dtype=dtype), softplus=True, backend=backend)


@pytest.mark.parametrize("dtype", FULL, ids=str)
@pytest.mark.parametrize("softplus", [False, True], ids=["linear", "softplus"])
@pytest.mark.parametrize("optional", OPTIONS, ids=lambda names: "+".join(names) or "none")
def test_options(
    oracle: ModuleType, harness: ModuleType, backend: str, optional: tuple[str, ...], softplus: bool, dtype: torch.dtype
) -> None:
    inputs = harness.make_inputs((5, 7), 3, 4, dtype=dtype, optional=optional, softplus=softplus)
    harness.check(oracle, inputs, softplus=softplus, backend=backend)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    ("size", "dim", "state"), [((1, 1), 3, 4), ((1, 8), 16, 16), ((5, 7), 20, 5), ((17, 33), 3, 4)], ids=str
)
def test_half_precision(
    oracle: ModuleType,
    harness: ModuleType,
    backend: str,
    size: tuple[int, int],
    dim: int,
    state: int,
    dtype: torch.dtype,
) -> None:
    harness.check(oracle, harness.make_inputs(size, dim, state, dtype=dtype), softplus=True, backend=backend)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_computes_in_float32(harness: ModuleType, backend: str, dtype: torch.dtype) -> None:
    inputs = harness.make_inputs((17, 33), 16, 4, dtype=dtype)
    grad_out = harness.make_grad(inputs)
    out, grads = harness.run_scan(inputs, grad_out, True, backend)
    wide = {name: value.float() for name, value in inputs.items()}
    wide_out, wide_grads = harness.run_scan(wide, grad_out.float(), True, backend)
    rounding = torch.finfo(dtype).eps  # twice what rounding the result once may cost
    harness.assert_close(out, harness.to_numpy(wide_out), rounding, "output")
    for name, grad in grads.items():
        harness.assert_close(grad, harness.to_numpy(wide_grads[name]), rounding, f"gradient of {name}")


@pytest.mark.parametrize("dtype", FULL, ids=str)
def test_as_mamba_starts(oracle: ModuleType, harness: ModuleType, backend: str, dtype: torch.dtype) -> None:
    """Steps from 0.001 to 0.1 and A = -1 ... -16: some states remember the whole grid, others three cells."""
    inputs = harness.make_inputs((33, 47), 4, 16, dtype=dtype)
    step = np.exp(np.random.default_rng(2).uniform(np.log(1e-3), np.log(1e-1), size=4))
    inputs["delta_bias"] = torch.from_numpy(np.log(np.expm1(step))).to(dtype)
    inputs["delta"] = (inputs["delta"] + 1.2) * 0.2
    inputs["A"] = -torch.arange(1, 17, dtype=dtype).repeat(4, 1)
    harness.check(oracle, inputs, softplus=True, backend=backend)


@pytest.mark.parametrize("dtype", FULL, ids=str)
def test_decays_that_underflow(oracle: ModuleType, harness: ModuleType, backend: str, dtype: torch.dtype) -> None:
    """Steps of 0 to 100 and A down to -50: exp(Δ·A) is 0 or 1 to the last bit, and nothing becomes NaN or infinite."""
    inputs = harness.make_inputs((5, 7), 16, 4, dtype=dtype, optional=("D", "z"))
    steps = torch.tensor([-100.0, -30.0, 0.0, 30.0, 100.0], dtype=dtype)
    choice = torch.from_numpy(np.random.default_rng(3).integers(0, 5, size=tuple(inputs["u"].shape)))
    inputs["delta"], inputs["A"] = steps[choice], inputs["A"] * 50
    harness.check(oracle, inputs, softplus=True, backend=backend)


@pytest.mark.parametrize("dtype", FULL, ids=str)
def test_decays_above_one(oracle: ModuleType, harness: ModuleType, backend: str, dtype: torch.dtype) -> None:
    """Steps of either sign, without softplus: the equations do not ask for a decay."""
    inputs = harness.make_inputs((5, 7), 16, 4, dtype=dtype, softplus=False)
    inputs["delta"] = (inputs["delta"] - 0.27) * 4
    harness.check(oracle, inputs, softplus=False, backend=backend)


@pytest.mark.parametrize("dtype", [*FULL, torch.bfloat16], ids=str)
def test_without_decay_the_scan_is_an_exact_prefix_sum(backend: str, dtype: torch.dtype) -> None:
    # sums of 63 x 3 ones stay below 2^8, the integers that bfloat16 holds
    u = torch.ones(1, 63, 3, 17, dtype=dtype)
    ones = torch.ones(1, 63, 3, 1, dtype=dtype)
    out = selective_scan_2d(u, torch.ones_like(u), torch.zeros(17, 1, dtype=dtype), ones, ones, backend=backend)
    assert torch.equal(out, u.double().cumsum(1).cumsum(2).to(dtype))


@pytest.mark.parametrize(("height", "width"), [(1, 37), (37, 1)])
def test_one_row_or_column_is_the_1d_scan(harness: ModuleType, backend: str, height: int, width: int) -> None:
    inputs = harness.make_inputs((height, width), 3, 4)
    grad_out = harness.make_grad(inputs)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    want = scan_1d(**{name: v.flatten(1, 2) if v.ndim == 4 else v for name, v in leaves.items()})
    want_grads = torch.autograd.grad(want, list(leaves.values()), grad_out.flatten(1, 2))
    out, grads = harness.run_scan(inputs, grad_out, True, backend)
    harness.assert_close(out.flatten(1, 2), harness.to_numpy(want), 1e-12, "output")
    for (name, grad), want_grad in zip(grads.items(), want_grads, strict=True):
        harness.assert_close(grad, harness.to_numpy(want_grad), 1e-12, f"gradient of {name}")


def scan_1d(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Mamba's selective scan of `[batch, length, dim]` with softplus, gradients by autograd."""
    step = torch.nn.functional.softplus(delta + delta_bias)
    state, outputs = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[1]):
        drive = (step[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        state = torch.exp(step[:, t, :, None] * A) * state + drive
        outputs.append((state * C[:, t, None, :]).sum(-1) + D * u[:, t])
    return torch.stack(outputs, 1) * torch.nn.functional.silu(z)


# --- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optional", "softplus"), [((), False), (OPTIONAL, True)], ids=["plain", "all"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 3)], ids=str)
def test_gradcheck(
    harness: ModuleType, backend: str, size: tuple[int, int], optional: tuple[str, ...], softplus: bool
) -> None:
    inputs = harness.make_inputs(size, 2, 3, optional=optional, softplus=softplus)
    names = list(inputs)

    def scan(*values: Tensor) -> Tensor:
        return selective_scan_2d(**dict(zip(names, values, strict=True)), delta_softplus=softplus, backend=backend)

    assert torch.autograd.gradcheck(scan, [value.requires_grad_() for value in inputs.values()])


@pytest.mark.parametrize("name", [*REQUIRED, *OPTIONAL])
def test_a_gradient_for_one_argument_alone(harness: ModuleType, backend: str, name: str) -> None:
    inputs = harness.make_inputs((5, 7))
    grad_out = harness.make_grad(inputs)
    _, want = harness.run_scan(inputs, grad_out, True, backend)
    leaf = inputs[name].detach().requires_grad_()
    out = selective_scan_2d(**(inputs | {name: leaf}), delta_softplus=True, backend=backend)
    out.backward(grad_out)
    assert leaf.grad is not None
    harness.assert_close(leaf.grad, harness.to_numpy(want[name]), 1e-12, f"gradient of {name}")
    assert all(value.grad is None for other, value in inputs.items() if other != name)


def test_gradient_of_a_plain_sum(oracle: ModuleType, harness: ModuleType, backend: str) -> None:
    """`out.sum()` hands the backward a gradient of stride 0."""
    inputs = harness.make_inputs((5, 7))
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    selective_scan_2d(**leaves, delta_softplus=True, backend=backend).sum().backward()
    arrays = {name: harness.to_numpy(value) for name, value in inputs.items()}
    ones = np.ones(tuple(inputs["u"].shape))
    want = oracle.selective_scan_2d_backward_oracle(ones, **arrays, delta_softplus=True)
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        harness.assert_close(leaf.grad, getattr(want, name), 1e-12, f"gradient of {name}")
