"""The numbers of the scans: output and every gradient of each, against the oracle."""

import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wsi2d.kernels.scan2d import selective_scan_2d

OPTIONAL = ("D", "z", "delta_bias")
SIZES = [(1, 1), (1, 8), (8, 1), (2, 2), (5, 7), (16, 16), (17, 33), (63, 65)]
DIMS, STATES = (1, 3, 16, 20, 256), (1, 4, 5, 16, 64)
# All pairs of ordinary ones, and the extremes with something of each.
DIMS_AND_STATES = [*itertools.product(DIMS[:-1], STATES[:-1]), (256, 1), (256, 5), (1, 64), (20, 64), (256, 64)]
OPTIONS = [combo for count in range(4) for combo in itertools.combinations(OPTIONAL, count)]
HALF = [torch.bfloat16, torch.float16]


# --- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "state"), [(3, 4), (20, 5)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(
    oracle: ModuleType,
    harness: ModuleType,
    operator: Any,
    backend: str,
    full: torch.dtype,
    size: tuple[int, int],
    dim: int,
    state: int,
) -> None:
    if size == (63, 65):
        dim = min(dim, 4)  # the oracle keeps every state
    harness.check(oracle, harness.make_inputs(size, dim, state, operator=operator, dtype=full), backend=backend)


@pytest.mark.parametrize(("dim", "state"), DIMS_AND_STATES)
def test_dims_and_states(
    oracle: ModuleType, harness: ModuleType, operator: Any, backend: str, full: torch.dtype, dim: int, state: int
) -> None:
    harness.check(oracle, harness.make_inputs((5, 7), dim, state, operator=operator, dtype=full), backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "state"), [(256, 16), (20, 64)])
def test_many_channels_and_states_on_a_large_grid(
    oracle: ModuleType, harness: ModuleType, operator: Any, backend: str, full: torch.dtype, dim: int, state: int
) -> None:
    inputs = harness.make_inputs((63, 65), dim, state, operator=operator, dtype=full, batch=1)
    harness.check(oracle, inputs, backend=backend)


@pytest.mark.parametrize("softplus", [False, True], ids=["linear", "softplus"])
@pytest.mark.parametrize("optional", OPTIONS, ids=lambda names: "+".join(names) or "none")
def test_options(
    oracle: ModuleType, harness: ModuleType, backend: str, full: torch.dtype, optional: tuple[str, ...], softplus: bool
) -> None:
    inputs = harness.make_inputs((5, 7), 3, 4, dtype=full, optional=optional, softplus=softplus)
    harness.check(oracle, inputs, softplus=softplus, backend=backend)


def test_wavefront_without_D(oracle: ModuleType, harness: ModuleType, backend: str, full: torch.dtype) -> None:
    inputs = harness.make_inputs((5, 7), operator=harness.WAVEFRONT, dtype=full, optional=())
    harness.check(oracle, inputs, backend=backend)


@pytest.mark.parametrize("wide_parameters", [False, True], ids=["all half", "parameters in float32"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    ("size", "dim", "state"), [((1, 1), 3, 4), ((1, 8), 16, 16), ((5, 7), 20, 5), ((17, 33), 3, 4)], ids=str
)
def test_half_precision(
    oracle: ModuleType,
    harness: ModuleType,
    operator: Any,
    backend: str,
    size: tuple[int, int],
    dim: int,
    state: int,
    dtype: torch.dtype,
    wide_parameters: bool,
) -> None:
    inputs = harness.make_inputs(size, dim, state, operator=operator, dtype=torch.float32)
    keep = operator.parameters if wide_parameters else ()
    inputs = {name: value if name in keep else value.to(dtype) for name, value in inputs.items()}
    harness.check(oracle, inputs, backend=backend)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_computes_in_float32(
    harness: ModuleType, operator: Any, backend: str, dtype: torch.dtype
) -> None:
    inputs = harness.make_inputs((17, 33), 16, 4, operator=operator, dtype=dtype)
    grad_out = harness.make_grad(inputs)
    out, grads = harness.run_scan(inputs, grad_out, True, backend)
    wide = {name: value.float() for name, value in inputs.items()}
    wide_out, wide_grads = harness.run_scan(wide, grad_out.float(), True, backend)
    rounding = torch.finfo(dtype).eps  # twice what rounding the result once may cost
    harness.assert_close(out, harness.to_numpy(wide_out), rounding, "output")
    for name, grad in grads.items():
        harness.assert_close(grad, harness.to_numpy(wide_grads[name]), rounding, f"gradient of {name}")


# --- steps and decays of every kind --------------------------------------------------------------------------------


def test_as_mamba_starts(oracle: ModuleType, harness: ModuleType, backend: str, full: torch.dtype) -> None:
    """Steps from 0.001 to 0.1 and A = -1 ... -16: some states remember the whole grid, others three cells."""
    inputs = harness.make_inputs((33, 47), 4, 16, dtype=full)
    step = np.exp(np.random.default_rng(2).uniform(np.log(1e-3), np.log(1e-1), size=4))
    inputs["delta_bias"] = torch.from_numpy(np.log(np.expm1(step))).to(full)
    inputs["delta"] = (inputs["delta"] + 1.2) * 0.2
    inputs["A"] = -torch.arange(1, 17, dtype=full).repeat(4, 1)
    harness.check(oracle, inputs, backend=backend)


def test_wavefront_as_mamba_starts(oracle: ModuleType, harness: ModuleType, backend: str, full: torch.dtype) -> None:
    inputs = harness.make_inputs((33, 47), 4, 16, operator=harness.WAVEFRONT, dtype=full)
    for name in ("delta_t", "delta_l"):
        inputs[name] = 1e-3 * 100 ** ((inputs[name] - 0.05) / 0.45)
    inputs["A_t"] = inputs["A_l"] = -torch.arange(1, 17, dtype=full).repeat(4, 1)
    harness.check(oracle, inputs, backend=backend)


def test_decays_that_underflow(oracle: ModuleType, harness: ModuleType, backend: str, full: torch.dtype) -> None:
    """Steps of 0 to 100 and A down to -50: exp(Δ·A) is 0 or 1 to the last bit, and nothing becomes NaN or infinite."""
    inputs = harness.make_inputs((5, 7), 16, 4, dtype=full, optional=("D", "z"))
    steps = torch.tensor([-100.0, -30.0, 0.0, 30.0, 100.0], dtype=full)
    choice = torch.from_numpy(np.random.default_rng(3).integers(0, 5, size=tuple(inputs["u"].shape)))
    inputs["delta"], inputs["A"] = steps[choice], inputs["A"] * 50
    harness.check(oracle, inputs, backend=backend)


def test_decays_above_one(
    oracle: ModuleType, harness: ModuleType, operator: Any, backend: str, full: torch.dtype
) -> None:
    """Steps of either sign, without softplus: the equations do not ask for a decay."""
    inputs = harness.make_inputs((5, 7), 16, 4, operator=operator, dtype=full, softplus=False)
    for name in operator.steps:
        inputs[name] = (inputs[name] - 0.27) * 4
    harness.check(oracle, inputs, softplus=False, backend=backend)


def test_extremes(
    oracle: ModuleType, harness: ModuleType, operator: Any, backend: str, full: torch.dtype, extreme: Any
) -> None:
    """Every other state is of the extreme kind, the rest ordinary; every state has extreme steps."""
    inputs = harness.make_extreme_inputs(extreme, (16, 19), 5, 6, operator=operator, dtype=full)
    harness.check(oracle, inputs, softplus=False, backend=backend)


def test_softplus_of_steps_far_from_zero(
    oracle: ModuleType, harness: ModuleType, backend: str, full: torch.dtype
) -> None:
    """Steps of e^-14 to 80: each stage of softplus, to relative accuracy in both tails."""
    inputs = harness.make_inputs((5, 7), 20, 4, dtype=full)
    for low, high in ((-14.0, -12.0), (-1.0, 1.0), (15.0, 25.0), (60.0, 80.0)):
        inputs["delta"] = harness.between(low, high, inputs["delta"])
        harness.check(oracle, inputs, backend=backend)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["full", "half"])
def test_without_decay_the_scan_is_an_exact_prefix_sum(
    backend: str, widest: torch.dtype, dtype: torch.dtype | None
) -> None:
    # sums of 63 x 3 ones stay below 2^8, the integers that bfloat16 holds
    dtype = dtype or widest
    u = torch.ones(1, 63, 3, 17, dtype=dtype)
    ones = torch.ones(1, 63, 3, 1, dtype=dtype)
    out = selective_scan_2d(u, torch.ones_like(u), torch.zeros(17, 1, dtype=dtype), ones, ones, backend=backend)
    assert torch.equal(out, u.double().cumsum(1).cumsum(2).to(dtype))


@pytest.mark.parametrize(("height", "width"), [(1, 37), (37, 1)])
def test_one_row_or_column_is_the_1d_scan(
    harness: ModuleType, backend: str, widest: torch.dtype, height: int, width: int
) -> None:
    inputs = harness.make_inputs((height, width), 3, 4, dtype=widest)
    grad_out = harness.make_grad(inputs)
    leaves = {name: value.double().requires_grad_() for name, value in inputs.items()}
    want = scan_1d(**{name: v.flatten(1, 2) if v.ndim == 4 else v for name, v in leaves.items()})
    want_grads = torch.autograd.grad(want, list(leaves.values()), grad_out.double().flatten(1, 2))
    out, grads = harness.run_scan(inputs, grad_out, True, backend)
    tolerance, grad_tolerance = harness.TOLERANCE[widest]
    harness.assert_close(out.flatten(1, 2), harness.to_numpy(want), tolerance, "output")
    for (name, grad), want_grad in zip(grads.items(), want_grads, strict=True):
        harness.assert_close(grad, harness.to_numpy(want_grad), grad_tolerance, f"gradient of {name}")


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
    harness: ModuleType, operator: Any, size: tuple[int, int], optional: tuple[str, ...], softplus: bool
) -> None:
    optional = tuple(name for name in optional if name in operator.optional)
    inputs = harness.make_inputs(size, 2, 3, operator=operator, optional=optional, softplus=softplus)

    def scan(*values: Tensor) -> Tensor:
        out: Tensor = harness.scan(dict(zip(inputs, values, strict=True)), softplus, "torch")
        return out

    assert torch.autograd.gradcheck(scan, [value.requires_grad_() for value in inputs.values()])


def test_a_gradient_for_one_argument_alone(
    harness: ModuleType, operator: Any, backend: str, widest: torch.dtype
) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=widest)
    grad_out = harness.make_grad(inputs)
    _, want = harness.run_scan(inputs, grad_out, True, backend)
    for name in operator.arguments:
        leaf = inputs[name].detach().requires_grad_()
        harness.scan(inputs | {name: leaf}, True, backend).backward(grad_out)
        assert leaf.grad is not None, name
        harness.assert_close(
            leaf.grad, harness.to_numpy(want[name]), harness.TOLERANCE[widest][1], f"gradient of {name}"
        )
    assert all(value.grad is None for value in inputs.values())


def test_gradient_of_a_plain_sum(
    oracle: ModuleType, harness: ModuleType, operator: Any, backend: str, widest: torch.dtype
) -> None:
    """`out.sum()` hands the backward a gradient of stride 0."""
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=widest)
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    harness.scan(leaves, True, backend).sum().backward()
    _, want = harness.run_oracle(oracle, inputs, torch.ones_like(inputs[operator.read]), True)
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        harness.assert_close(leaf.grad, want[name], harness.TOLERANCE[widest][1], f"gradient of {name}")


# --- what only the wavefront has -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["full", "half"])
def test_wavefront_without_decay_counts_steps_from_the_corner(
    harness: ModuleType, backend: str, widest: torch.dtype, dtype: torch.dtype | None
) -> None:
    """Drives of 1 all over: an average of the two neighbours' counts and one more, exact in half precision too."""
    dtype = dtype or widest
    ones, drive = torch.ones(2, 40, 21, 17, dtype=dtype), torch.ones(2, 40, 21, 1, dtype=dtype)
    zeros = torch.zeros(17, 1, dtype=dtype)
    out = harness.WAVEFRONT.scan(ones, ones, ones, zeros, zeros, drive, drive, drive, backend=backend)
    count = 1 + torch.arange(40)[:, None] + torch.arange(21)
    assert torch.equal(out, count[..., None].to(dtype).expand_as(out))


def test_wavefront_of_one_row_needs_nothing_from_the_top(
    harness: ModuleType, backend: str, widest: torch.dtype
) -> None:
    """Exactly zero gradients, not missing ones; and of one column, from the left but for the corner's drive."""
    top, left = ("delta_t", "A_t", "B_t"), ("delta_l", "A_l", "B_l")
    for size, unused, corner in (((1, 7), top, ()), ((7, 1), left, ("delta_l", "B_l")), ((1, 1), (*top, "A_l"), ())):
        inputs = harness.make_inputs(size, operator=harness.WAVEFRONT, dtype=widest)
        _, grads = harness.run_scan(inputs, harness.make_grad(inputs), True, backend)
        for name in unused:
            used = grads[name].clone()
            if name in corner:
                assert used[:, 0, 0].count_nonzero()
                used[:, 0, 0] = 0
            assert not used.count_nonzero(), f"{name} of {size}"


def test_wavefront_is_the_same_with_top_and_left_exchanged(
    harness: ModuleType, backend: str, widest: torch.dtype
) -> None:
    """But for the corner, which is driven from the left alone and so must have equal drives here."""
    inputs = harness.make_inputs((5, 9), operator=harness.WAVEFRONT, dtype=widest)
    for left, top in (("delta_l", "delta_t"), ("B_l", "B_t")):
        inputs[top][:, 0, 0] = inputs[left][:, 0, 0]
    other = {"t": "l", "l": "t"}
    exchanged = {
        (f"{name[:-1]}{other[name[-1]]}" if "_" in name else name): v.transpose(1, 2) if v.ndim == 4 else v
        for name, v in inputs.items()
    }
    out = harness.scan(inputs, True, backend)
    again = harness.scan(exchanged, True, backend).transpose(1, 2)
    harness.assert_close(again, harness.to_numpy(out), harness.TOLERANCE[widest][0], "output")
