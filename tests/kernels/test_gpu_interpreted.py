"""The scans of the backend `triton` where there is no GPU, in Triton's interpreter: small grids of several tiles.

`TRITON_INTERPRET=1 pytest tests/kernels/test_gpu_interpreted.py`; the interpreter takes some 15 ms for a cell and
8 channels, forward and backward.
"""

import copy
import os
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wsi2d.kernels.scan2d import available_backends, choose_backend

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

Inputs = dict[str, Tensor]
TRITON = "triton"
CPU = torch.device("cpu")
VARIABLE = "WSI2D_SCAN_BACKEND"
HALF = [torch.bfloat16, torch.float16]
OPTIONS: list[tuple[str, ...]] = [
    (), ("D",), ("z",), ("delta_bias",), ("D", "z"), ("D", "delta_bias"), ("z", "delta_bias"), ("D", "z", "delta_bias"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_chosen_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's environment says, `backend=None` is the library's own choice here."""
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def nan_from_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways to get fresh memory give NaN, without asking for deterministic algorithms."""

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **options: Any) -> Tensor:
            fresh = make(*args, **options)
            return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))


# --- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "batch"),
    [((1, 1), 2), ((1, 8), 2), ((8, 1), 2), ((2, 2), 2), ((4, 4), 2), ((5, 7), 1), ((8, 8), 1), ((9, 10), 1)],
    ids=str,
)
def test_sizes(oracle: ModuleType, harness: ModuleType, operator: Any, size: tuple[int, int], batch: int) -> None:
    inputs = harness.make_inputs(size, operator=operator, dtype=torch.float32, batch=batch)
    harness.check(oracle, inputs, backend=TRITON)


@pytest.mark.parametrize(
    ("dim", "state"), [(1, 1), (1, 16), (3, 4), (3, 5), (8, 1), (8, 4), (8, 16), (20, 1), (20, 5), (20, 16)]
)
def test_dims_and_states(oracle: ModuleType, harness: ModuleType, operator: Any, dim: int, state: int) -> None:
    inputs = harness.make_inputs((2, 5), dim, state, operator=operator, dtype=torch.float32, batch=1)
    harness.check(oracle, inputs, backend=TRITON)


def test_a_batch_of_several_tiles_and_channel_blocks(oracle: ModuleType, harness: ModuleType, operator: Any) -> None:
    inputs = harness.make_inputs((5, 5), 9, 5, operator=operator, dtype=torch.float32, batch=2)
    harness.check(oracle, inputs, backend=TRITON)


@pytest.mark.parametrize("softplus", [False, True], ids=["linear", "softplus"])
@pytest.mark.parametrize("optional", OPTIONS, ids=lambda names: "+".join(names) or "none")
def test_options(oracle: ModuleType, harness: ModuleType, optional: tuple[str, ...], softplus: bool) -> None:
    inputs = harness.make_inputs((2, 5), dtype=torch.float32, batch=1, optional=optional, softplus=softplus)
    harness.check(oracle, inputs, softplus=softplus, backend=TRITON)


def test_wavefront_without_D(oracle: ModuleType, harness: ModuleType) -> None:
    inputs = harness.make_inputs((3, 5), operator=harness.WAVEFRONT, dtype=torch.float32, optional=())
    harness.check(oracle, inputs, backend=TRITON)


def test_gradients_of_some_arguments_alone(oracle: ModuleType, harness: ModuleType, operator: Any) -> None:
    inputs = harness.make_inputs((2, 5), operator=operator, dtype=torch.float32, batch=1)
    grad_out = harness.make_grad(inputs)
    _, want = harness.run_oracle(oracle, inputs, grad_out, True)
    for learned in (operator.parameters, (operator.read, "C")):
        leaves = {name: value.detach().requires_grad_(name in learned) for name, value in inputs.items()}
        harness.scan(leaves, True, TRITON).backward(grad_out)
        for name, leaf in leaves.items():
            assert (leaf.grad is not None) == (name in learned), name
            if leaf.grad is not None:
                harness.assert_close(leaf.grad, want[name], harness.TOLERANCE[torch.float32][1], name)


# --- half precision ------------------------------------------------------------------------------------------------


def assert_rounded_once(got: Tensor, want: np.ndarray, what: str) -> None:
    """Each element is off by no more than rounding to the dtype, and float32's own error, may cost."""
    error = np.abs(got.detach().double().numpy() - want)
    # the interpreter cuts bfloat16 off where a GPU rounds to the nearest
    cost = torch.finfo(got.dtype).eps / (1 if got.dtype == torch.bfloat16 else 2)
    limit = cost * np.abs(want) + 1e-5 * np.abs(want).max(initial=0.0)
    assert (error <= limit).all(), f"{what}: {np.count_nonzero(~(error <= limit))} of {error.size} beyond rounding"


@pytest.mark.parametrize("wide", ["none", "parameters", "all but the first"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(
    oracle: ModuleType, harness: ModuleType, operator: Any, dtype: torch.dtype, wide: str
) -> None:
    """Also beside arguments in float32; B and C get gradients from two blocks of channels."""
    inputs = harness.make_inputs((1, 5), 9, operator=operator, dtype=torch.float32, batch=1)
    kept = {"none": (), "parameters": operator.parameters, "all but the first": operator.arguments[1:]}[wide]
    inputs = {name: value if name in kept else value.to(dtype) for name, value in inputs.items()}
    grad_out = harness.make_grad(inputs)
    out, grads = harness.run_scan(inputs, grad_out, True, TRITON)
    want, want_grads = harness.run_oracle(oracle, inputs, grad_out, True)
    assert out.dtype == dtype
    assert_rounded_once(out, want, "output")
    for name, grad in grads.items():
        assert grad.dtype == inputs[name].dtype, f"gradient of {name} is {grad.dtype}"
        assert_rounded_once(grad, want_grads[name], f"gradient of {name}")


# --- layouts -------------------------------------------------------------------------------------------------------


def widened(value: Tensor) -> Tensor:
    """The same values as the middle of a tensor with more channels, NaN around them."""
    nan = torch.full_like(value, torch.nan)
    return torch.cat([nan, value, nan], -1)[..., value.shape[-1] : 2 * value.shape[-1]]


STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "channels first": lambda v: v.movedim(-1, 1).contiguous().movedim(1, -1) if v.ndim == 4 else v.t().clone().t(),
    "transposed grid": lambda v: v.transpose(1, 2).contiguous().transpose(1, 2) if v.ndim == 4 else v,
    "flipped and transposed": lambda v: v.transpose(1, 2).flip(1, 2) if v.ndim == 4 else v,
    "every second element": lambda v: torch.stack([v, torch.full_like(v, torch.nan)], -1)[..., 0],
    "a part of the channels": widened,
    "expanded": lambda v: v[:, :1, :, :1].expand_as(v) if v.ndim == 4 else v[:1].expand_as(v),
    "one number": lambda v: v.flatten()[:1].expand(v.numel()).as_strided(v.shape, (0,) * v.ndim),
}


@pytest.mark.parametrize("kind", STRIDED)
def test_strided_inputs(oracle: ModuleType, harness: ModuleType, operator: Any, kind: str) -> None:
    plain = harness.make_inputs((2, 5), 3, 4, operator=operator, dtype=torch.float32)
    inputs = {name: STRIDED[kind](value) for name, value in plain.items()}
    assert kind == "flipped and transposed" or not inputs[operator.read].is_contiguous()
    harness.check(oracle, inputs, backend=TRITON)


def test_strided_half_inputs(oracle: ModuleType, harness: ModuleType, operator: Any) -> None:
    plain = harness.make_inputs((2, 5), 9, 5, operator=operator, dtype=torch.bfloat16, batch=1)
    inputs = {name: STRIDED["channels first"](value) if value.ndim == 4 else value for name, value in plain.items()}
    harness.check(oracle, inputs, backend=TRITON)


@pytest.mark.parametrize("kind", ["strided", "expanded"])
def test_strided_grad_out(oracle: ModuleType, harness: ModuleType, operator: Any, kind: str) -> None:
    inputs = harness.make_inputs((2, 5), 3, 4, operator=operator, dtype=torch.float32)
    grad_out = harness.make_grad(inputs)
    grad_out = grad_out.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    if kind == "expanded":
        grad_out = grad_out[:1, :1, :1, :1].expand_as(grad_out)
    _, grads = harness.run_scan(inputs, grad_out, True, TRITON)
    _, want = harness.run_oracle(oracle, inputs, grad_out, True)
    for name, grad in grads.items():
        harness.assert_close(grad, want[name], harness.TOLERANCE[torch.float32][1], f"gradient of {name}")


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_empty_batch(harness: ModuleType, operator: Any, dtype: torch.dtype) -> None:
    inputs = harness.make_inputs((5, 7), 3, 4, operator=operator, dtype=dtype, batch=0)
    out, grads = harness.run_scan(inputs, harness.make_grad(inputs), True, TRITON)
    assert out.shape == (0, 5, 7, 3)
    assert out.dtype == dtype
    for name, grad in grads.items():
        assert grad.shape == inputs[name].shape
        assert grad.dtype == inputs[name].dtype
        assert not grad.count_nonzero()


# --- steps and decays of every kind --------------------------------------------------------------------------------


def test_extremes(oracle: ModuleType, harness: ModuleType, operator: Any, extreme: Any) -> None:
    """Every other state is of the extreme kind, the rest ordinary; every state has extreme steps."""
    inputs = harness.make_extreme_inputs(extreme, (3, 5), 3, 6, operator=operator, dtype=torch.float32, batch=1)
    harness.check(oracle, inputs, softplus=False, backend=TRITON)


@pytest.mark.parametrize("range_", [(-14.0, -12.0), (-1.0, 1.0), (15.0, 25.0), (60.0, 80.0)], ids=str)
def test_softplus_of_steps_far_from_zero(oracle: ModuleType, harness: ModuleType, range_: tuple[float, float]) -> None:
    inputs = harness.make_inputs((2, 5), dtype=torch.float32, batch=1)
    inputs["delta"] = harness.between(*range_, inputs["delta"])
    harness.check(oracle, inputs, backend=TRITON)


def test_gates_far_from_zero(oracle: ModuleType, harness: ModuleType) -> None:
    inputs = harness.make_inputs((2, 5), dtype=torch.float32, batch=1)
    inputs["z"] = harness.between(-100.0, 100.0, inputs["z"])
    harness.check(oracle, inputs, backend=TRITON)


def test_wavefront_of_one_row_or_column_needs_nothing_from_the_other_side(harness: ModuleType) -> None:
    """Exactly zero gradients, not missing ones; of one column, all but the corner's drive from the left."""
    top, left = ("delta_t", "A_t", "B_t"), ("delta_l", "A_l", "B_l")
    for size, unused, corner in (((1, 5), top, ()), ((5, 1), left, ("delta_l", "B_l")), ((1, 1), (*top, "A_l"), ())):
        inputs = harness.make_inputs(size, operator=harness.WAVEFRONT, dtype=torch.float32)
        _, grads = harness.run_scan(inputs, harness.make_grad(inputs), True, TRITON)
        for name in unused:
            used = grads[name].clone()
            if name in corner:
                assert used[:, 0, 0].count_nonzero()
                used[:, 0, 0] = 0
            assert not used.count_nonzero(), f"{name} of {size}"


def test_wavefront_reads_nothing_from_above_in_the_first_row_nor_from_the_left_in_the_first_column(
    harness: ModuleType,
) -> None:
    """The gradients there are exactly zero, and NaN there changes no output."""
    inputs = harness.make_inputs((5, 5), operator=harness.WAVEFRONT, dtype=torch.float32, batch=1)
    clean, grads = harness.run_scan(inputs, harness.make_grad(inputs), True, TRITON)
    for names, rows, columns in ((("delta_t", "B_t"), 0, slice(None)), (("delta_l", "B_l"), slice(1, None), 0)):
        for name in names:
            assert not grads[name][:, rows, columns].count_nonzero(), name
            inputs[name][:, rows, columns] = torch.nan
    assert torch.equal(harness.scan(inputs, True, TRITON), clean)


# --- NaN and infinity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "dim", "channel"), [(torch.nan, 9, 8), (-torch.inf, 3, 2)], ids=str)
def test_what_is_not_finite_reaches_only_what_depends_on_it(
    oracle: ModuleType, harness: ModuleType, operator: Any, value: float, dim: int, channel: int
) -> None:
    """In each argument in turn: the oracle says which outputs a NaN there reaches, and beyond them not a bit changes;
    within, a NaN is NaN."""
    inputs = harness.make_inputs((5, 5), dim, 3, operator=operator, dtype=torch.float32, batch=1)
    clean = harness.scan(inputs, True, TRITON)
    options = operator.options(True)
    for name in (n for n, v in inputs.items() if v.ndim == 4):
        position = (0, 2, 3, min(channel, inputs[name].shape[-1] - 1))
        changed, marked = inputs | {name: inputs[name].clone()}, inputs | {name: inputs[name].clone()}
        changed[name][position], marked[name][position] = value, torch.nan
        out = harness.scan(changed, True, TRITON)
        arrays = {n: harness.to_numpy(v) for n, v in marked.items()}
        with np.errstate(invalid="ignore"):
            depends = torch.from_numpy(np.isnan(getattr(oracle, f"{operator.name}_oracle")(**arrays, **options)))
        assert torch.equal(out[~depends], clean[~depends]), f"{value} in {name}"
        if np.isnan(value):
            assert out[depends].isnan().all(), f"{value} in {name}"


@pytest.mark.parametrize("position", [(0, 0), (2, 3), (4, 4)], ids=str)
def test_nan_in_the_input_reaches_the_cells_below_and_right_only(
    harness: ModuleType, operator: Any, position: tuple[int, int]
) -> None:
    """Of its own channel, in its own image."""
    inputs = harness.make_inputs((5, 5), 3, 3, operator=operator, dtype=torch.float32, batch=2)
    row, column = position
    inputs[operator.read][0, row, column, 1] = torch.nan
    want = torch.zeros(2, 5, 5, 3, dtype=torch.bool)
    want[0, row:, column:, 1] = True
    assert torch.equal(harness.scan(inputs, True, TRITON).isnan(), want)


def test_nan_in_grad_out_reaches_the_cells_above_and_left_only(harness: ModuleType, operator: Any) -> None:
    inputs = harness.make_inputs((5, 5), 9, 3, operator=operator, dtype=torch.float32, batch=1)
    grad_out = harness.make_grad(inputs)
    grad_out[0, 2, 3, 8] = torch.nan
    _, grads = harness.run_scan(inputs, grad_out, True, TRITON)
    want = torch.zeros(1, 5, 5, 9, dtype=torch.bool)
    want[0, :3, :4, 8] = True
    assert torch.equal(grads[operator.read].isnan(), want)
    for name in operator.decays:
        assert torch.equal(grads[name].isnan().any(1), torch.arange(9) == 8), name


# --- memory and repeatability --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("restore_determinism")
@pytest.mark.parametrize(("size", "dim"), [((1, 1), 1), ((2, 5), 9)], ids=str)
def test_every_element_is_written(
    oracle: ModuleType,
    harness: ModuleType,
    operator: Any,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    dim: int,
) -> None:
    """`torch.empty` gives NaN, so that an element nobody wrote shows in the result."""
    monkeypatch.setattr("torch.utils.deterministic.fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    inputs = harness.make_inputs(size, dim, 5, operator=operator, dtype=torch.float32, batch=1)
    harness.check(oracle, inputs, backend=TRITON)


@pytest.mark.usefixtures("nan_from_empty")
@pytest.mark.parametrize(("size", "dim"), [((1, 1), 1), ((2, 5), 9)], ids=str)
def test_every_element_is_written_without_deterministic_algorithms(
    oracle: ModuleType, harness: ModuleType, operator: Any, size: tuple[int, int], dim: int
) -> None:
    assert torch.empty(1).isnan()
    inputs = harness.make_inputs(size, dim, 5, operator=operator, dtype=torch.float32, batch=1)
    harness.check(oracle, inputs, backend=TRITON)


@pytest.mark.usefixtures("restore_determinism")
def test_deterministic_algorithms_give_the_same_bits_and_the_numbers_of_the_default(
    harness: ModuleType, operator: Any
) -> None:
    inputs = harness.make_inputs((1, 5), 9, 5, operator=operator, dtype=torch.float32)
    grad_out = harness.make_grad(inputs)
    torch.use_deterministic_algorithms(False)
    default_out, default = harness.run_scan(inputs, grad_out, True, TRITON)
    torch.use_deterministic_algorithms(True)
    out, grads = harness.run_scan(inputs, grad_out, True, TRITON)
    again, grads_again = harness.run_scan(inputs, grad_out, True, TRITON)
    assert torch.equal(again, out)
    harness.assert_close(out, harness.to_numpy(default_out), 1e-6, "output")
    for name, grad in grads.items():
        assert torch.equal(grads_again[name], grad), f"gradient of {name}"
        harness.assert_close(grad, harness.to_numpy(default[name]), 1e-6, f"gradient of {name}")


def test_arguments_are_left_as_they_were(harness: ModuleType, operator: Any) -> None:
    inputs = harness.make_inputs((2, 5), operator=operator, dtype=torch.float32)
    grad_out = harness.make_grad(inputs)
    before = {name: value.clone() for name, value in (inputs | {"grad_out": grad_out}).items()}
    harness.run_scan(inputs, grad_out, True, TRITON)
    for name, value in (inputs | {"grad_out": grad_out}).items():
        assert torch.equal(value, before[name]), name


# --- as an op ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["all", "required", "half", "strided", "empty", "no gradients"])
def test_opcheck(harness: ModuleType, operator: Any, kind: str) -> None:
    """Schema, autograd's registration, fake tensors, and the traced forward and backward against the real ones."""
    inputs = harness.make_inputs(
        (2, 3),
        operator=operator,
        dtype=torch.bfloat16 if kind == "half" else torch.float32,
        batch=0 if kind == "empty" else 1,
        optional=() if kind == "required" else None,
    )
    if kind == "strided":
        inputs = {name: STRIDED["transposed grid"](value) for name, value in inputs.items()}
    if kind != "no gradients":
        inputs = {name: value.requires_grad_() for name, value in inputs.items()}
    op = getattr(torch.ops.wsi2d, operator.name).default
    torch.library.opcheck(op, operator.raw(inputs, True, TRITON))


# --- the choice of backend -----------------------------------------------------------------------------------------


def one_line(caught: pytest.ExceptionInfo[ValueError], *words: str) -> None:
    """The error's message is one line, and each of `words` stands in it by itself."""
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message), f"no '{word}' in: {message}"


def test_triton_is_there_and_takes_tensors_on_the_cpu() -> None:
    assert TRITON in available_backends()
    assert choose_backend(CPU, torch.float32, TRITON)[0] == TRITON


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
def test_triton_is_never_the_default_on_a_cpu(dtype: torch.dtype) -> None:
    assert choose_backend(CPU, dtype)[0] != TRITON


def test_triton_takes_no_float64(harness: ModuleType, operator: Any) -> None:
    with pytest.raises(ValueError) as caught:
        harness.scan(harness.make_inputs((2, 2), operator=operator), True, TRITON)
    one_line(caught, operator.read, "float64", "triton", "torch")


@pytest.mark.parametrize("value", [None, "", "0"], ids=["not set", "empty", "zero"])
def test_without_the_interpreter_triton_takes_no_tensors_on_the_cpu(
    harness: ModuleType, operator: Any, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """Refused for want of a GPU where there is none, else because of the tensor."""
    inputs = harness.make_inputs((2, 2), operator=operator, dtype=torch.float32)
    if value is None:
        monkeypatch.delenv("TRITON_INTERPRET")
    else:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    for gpu, words in ((False, ("backend", "triton", "torch")), (True, (operator.read, "cpu", "GPU", "triton"))):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert (TRITON in available_backends()) == gpu
        with pytest.raises(ValueError) as caught:
            harness.scan(inputs, True, TRITON)
        one_line(caught, *words)


# --- in a model ----------------------------------------------------------------------------------------------------


def test_a_training_step_of_a_block_is_that_of_the_native_backend(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi2d.models.blocks import Mamba2DBlock

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        block = Mamba2DBlock(4, state=4, expand=2, directions=4)
        grid, target = torch.randn(2, 1, 5, 6, 4)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    stepped = {}
    for backend in ("native", TRITON):
        monkeypatch.setenv(VARIABLE, backend)
        trained = copy.deepcopy(block)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.5)
        loss = (trained(grid) - target).square().mean()
        loss.backward()
        optimizer.step()
        step = {name: value - before[name] for name, value in trained.state_dict().items()}
        stepped[backend] = {"loss": loss.detach(), "answer": trained(grid).detach(), **step}
    for name, value in stepped[TRITON].items():
        assert value.count_nonzero(), name
        harness.assert_close(value, harness.to_numpy(stepped["native"][name]), 1e-5, name)
