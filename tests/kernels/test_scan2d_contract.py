"""What a caller of the scans may rely on besides the numbers: layouts, repeatability, the choice of backend, errors."""

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wsi2d.kernels.scan2d import available_backends, selective_scan_2d

Inputs = dict[str, Tensor]
HALF = [torch.bfloat16, torch.float16]
VARIABLE = "WSI2D_SCAN_BACKEND"


@pytest.fixture(autouse=True)
def no_chosen_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's environment says, `backend=None` is the library's own choice here."""
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def nan_in_fresh_memory() -> Iterator[None]:
    """`torch.empty` gives NaN, so that an element nobody wrote shows in the result."""
    if not torch.utils.deterministic.fill_uninitialized_memory:
        pytest.skip("torch.utils.deterministic.fill_uninitialized_memory is off")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """The number of torch's threads is what it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- what a caller may rely on -------------------------------------------------------------------------------------


def strided_inputs(plain: Inputs, kind: str) -> Inputs:
    """The arguments as models hand them over: the same values, other strides."""
    strided = {
        "channels first": lambda v: v.movedim(-1, 1).contiguous().movedim(1, -1) if v.ndim == 4 else v.t().clone().t(),
        "transposed grid": lambda v: v.transpose(1, 2).contiguous().transpose(1, 2) if v.ndim == 4 else v,
        "every second element": lambda v: torch.stack([v, torch.full_like(v, torch.nan)], -1)[..., 0],
        "a part of the channels": lambda v: torch.cat([v, torch.full_like(v, torch.nan)], -1)[..., : v.shape[-1]],
        "expanded": lambda v: v[:, :1, :, :1].expand_as(v) if v.ndim == 4 else v[:1].expand_as(v),
    }[kind]
    return {name: strided(value) for name, value in plain.items()}


@pytest.mark.parametrize(
    "kind", ["channels first", "transposed grid", "every second element", "a part of the channels", "expanded"]
)
def test_strided_inputs(
    oracle: ModuleType, harness: ModuleType, operator: Any, backend: str, widest: torch.dtype, kind: str
) -> None:
    inputs = strided_inputs(harness.make_inputs((5, 7), 4, 4, operator=operator, dtype=widest), kind)
    assert not inputs[operator.read].is_contiguous()
    harness.check(oracle, inputs, backend=backend)


def test_strided_half_inputs(oracle: ModuleType, harness: ModuleType, operator: Any, backend: str) -> None:
    plain = harness.make_inputs((5, 7), 20, 5, operator=operator, dtype=torch.bfloat16)
    harness.check(oracle, strided_inputs(plain, "channels first"), backend=backend)


def test_strided_grad_out(harness: ModuleType, operator: Any, backend: str, widest: torch.dtype) -> None:
    inputs = harness.make_inputs((5, 7), 4, 4, operator=operator, dtype=widest)
    grad_out = harness.make_grad(inputs)
    strided = grad_out.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    _, want = harness.run_scan(inputs, grad_out, True, backend)
    _, got = harness.run_scan(inputs, strided, True, backend)
    for name in inputs:
        harness.assert_close(
            got[name], harness.to_numpy(want[name]), harness.TOLERANCE[widest][1], f"gradient of {name}"
        )


def test_batch_equals_one_at_a_time(harness: ModuleType, operator: Any, backend: str, widest: torch.dtype) -> None:
    inputs = harness.make_inputs((5, 7), 3, 4, operator=operator, dtype=widest, batch=3)
    grad_out = harness.make_grad(inputs)
    out, grads = harness.run_scan(inputs, grad_out, True, backend)
    singles = [
        harness.run_scan(
            {n: v[b : b + 1] if v.ndim == 4 else v for n, v in inputs.items()}, grad_out[b : b + 1], True, backend
        )
        for b in range(3)
    ]
    tolerance, grad_tolerance = harness.TOLERANCE[widest]
    harness.assert_close(out, harness.to_numpy(torch.cat([single for single, _ in singles])), tolerance, "output")
    for name, grad in grads.items():
        parts = [single[name].double() for _, single in singles]
        want = torch.cat(parts) if inputs[name].ndim == 4 else torch.stack(parts).sum(0)
        harness.assert_close(grad, harness.to_numpy(want), grad_tolerance, f"gradient of {name}")


@pytest.mark.parametrize("dtype", [None, *HALF], ids=str)
def test_empty_batch(
    harness: ModuleType, operator: Any, backend: str, widest: torch.dtype, dtype: torch.dtype | None
) -> None:
    inputs = harness.make_inputs((5, 7), 3, 4, operator=operator, dtype=dtype or widest, batch=0)
    out, grads = harness.run_scan(inputs, harness.make_grad(inputs), True, backend)
    assert out.shape == (0, 5, 7, 3)
    assert out.dtype == (dtype or widest)
    for name, grad in grads.items():
        assert grad.shape == inputs[name].shape
        assert grad.dtype == inputs[name].dtype
        assert not grad.count_nonzero()


def assert_same_bits(got: tuple[Tensor, Inputs], want: tuple[Tensor, Inputs]) -> None:
    """Output and gradients alike to the last bit."""
    assert torch.equal(got[0], want[0]), "output"
    assert got[1].keys() == want[1].keys()
    for name, grad in got[1].items():
        assert torch.equal(grad, want[1][name]), f"gradient of {name}"


def test_same_call_twice_gives_the_same_bits(
    harness: ModuleType, operator: Any, backend: str, full: torch.dtype
) -> None:
    inputs = harness.make_inputs((17, 33), 20, 5, operator=operator, dtype=full)
    grad_out = harness.make_grad(inputs)
    first = harness.run_scan(inputs, grad_out, True, backend)
    assert_same_bits(harness.run_scan(inputs, grad_out, True, backend), first)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize(("size", "dim", "batch"), [((17, 33), 20, 2), ((1, 3), 300, 1), ((50, 41), 64, 1)], ids=str)
def test_the_number_of_threads_changes_no_bit_but_of_sums_over_channels(
    harness: ModuleType, operator: Any, size: tuple[int, int], dim: int, batch: int
) -> None:
    """Threads that share an image sum the gradients of its B and C apart; nothing else depends on their number. Of the
    native backend: torch's own loops round otherwise where a thread's share ends."""
    inputs = harness.make_inputs(size, dim, 5, operator=operator, dtype=torch.float32, batch=batch)
    grad_out = harness.make_grad(inputs)
    torch.set_num_threads(1)
    out, grads = harness.run_scan(inputs, grad_out, True, "native")
    summed = (*operator.drives, "C")
    for threads in (2, 3, 1):
        torch.set_num_threads(threads)
        again, grads_again = harness.run_scan(inputs, grad_out, True, "native")
        assert torch.equal(again, out)
        for name, grad in grads.items():
            if name in summed and threads > 1:
                harness.assert_close(grads_again[name], harness.to_numpy(grad), 1e-6, name)
            else:
                assert torch.equal(grads_again[name], grad), name


def test_arguments_are_left_as_they_were(harness: ModuleType, operator: Any, backend: str, widest: torch.dtype) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=widest)
    before = {name: value.clone() for name, value in inputs.items()}
    grad_out = harness.make_grad(inputs)
    grad_before = grad_out.clone()
    harness.run_scan(inputs, grad_out, True, backend)
    for name, value in inputs.items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(grad_out, grad_before)


@pytest.mark.usefixtures("nan_in_fresh_memory")
@pytest.mark.parametrize(("size", "dim"), [((1, 1), 1), ((1, 1), 20), ((5, 7), 16), ((5, 7), 33), ((17, 33), 20)])
def test_every_element_is_written(
    oracle: ModuleType, harness: ModuleType, operator: Any, backend: str, size: tuple[int, int], dim: int
) -> None:
    assert torch.empty(1).isnan()
    harness.check(oracle, harness.make_inputs(size, dim, 5, operator=operator, dtype=torch.float32), backend=backend)


def test_a_large_grid_is_scanned_in_channel_blocks(
    harness: ModuleType, operator: Any, oracle: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all states at once would be too many, none are kept for the backward, and the numbers stay right."""
    inputs = harness.make_inputs((9, 11), 20, 16, operator=operator)
    states_of_six_channels = 6 * 16 * inputs[operator.read][..., 0].numel()
    monkeypatch.setattr("wsi2d.kernels.loops.STATES_AT_ONCE", states_of_six_channels)
    assert_nothing_large_is_saved(harness, inputs, "torch")
    harness.check(oracle, inputs, backend="torch")


def test_states_are_not_kept_for_the_backward(harness: ModuleType, operator: Any) -> None:
    inputs = harness.make_inputs((17, 33), 20, 16, operator=operator, dtype=torch.float32)
    assert_nothing_large_is_saved(harness, inputs, "native")


def assert_nothing_large_is_saved(harness: ModuleType, inputs: Inputs, backend: str) -> None:
    """What autograd keeps is no more than the arguments, one by one and all in all."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        out = harness.scan(leaves, True, backend)
    assert out.grad_fn is not None
    sizes = [value.untyped_storage().nbytes() for value in inputs.values()]
    assert max(saved.values(), default=0) <= max(sizes)
    assert sum(saved.values()) <= sum(sizes) + out.untyped_storage().nbytes()


# --- NaN and infinity ----------------------------------------------------------------------------------------------


def nan_inputs(harness: ModuleType, operator: Any, dtype: torch.dtype, dim: int) -> Inputs:
    inputs: Inputs = harness.make_inputs((5, 7), dim, 3, operator=operator, dtype=dtype, batch=3)
    return inputs


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize(("dim", "channel"), [(3, 1), (20, 0), (20, 15), (20, 16), (20, 19)])
def test_what_is_not_finite_reaches_only_what_depends_on_it(
    oracle: ModuleType,
    harness: ModuleType,
    operator: Any,
    backend: str,
    widest: torch.dtype,
    dim: int,
    channel: int,
    value: float,
) -> None:
    """In the middle of one image, in each argument in turn and in the gradient of the output: the oracle says how far a
    NaN gets, and beyond that not a bit changes; within, a NaN is NaN."""
    inputs = nan_inputs(harness, operator, widest, dim)
    grad_out = harness.make_grad(inputs)
    clean_out, clean_grads = harness.run_scan(inputs, grad_out, True, backend)
    for name in (*(n for n, v in inputs.items() if v.ndim == 4), "grad_out"):
        changed, marked = dict(inputs), dict(inputs)
        changed_grad = marked_grad = grad_out
        position = (1, 2, 3, min(channel, (grad_out if name == "grad_out" else inputs[name]).shape[-1] - 1))
        if name == "grad_out":
            changed_grad, marked_grad = grad_out.clone(), grad_out.clone()
            changed_grad[position], marked_grad[position] = value, torch.nan
        else:
            changed[name], marked[name] = inputs[name].clone(), inputs[name].clone()
            changed[name][position], marked[name][position] = value, torch.nan
        out, grads = harness.run_scan(changed, changed_grad, True, backend)
        with np.errstate(invalid="ignore", over="ignore"):
            reached, reached_grads = harness.run_oracle(oracle, marked, marked_grad, True)
        pairs = {"output": (out, clean_out, reached)}
        pairs |= {f"gradient of {n}": (grads[n], clean_grads[n], reached_grads[n]) for n in inputs}
        for what, (got, clean, mark) in pairs.items():
            depends = torch.from_numpy(np.isnan(mark))
            assert torch.equal(got[~depends], clean[~depends]), f"{what}, {value} in {name}"
            if np.isnan(value):
                assert got[depends].isnan().all(), f"{what}, {value} in {name}"
        assert torch.equal(out[[0, 2]], clean_out[[0, 2]]), f"other images, {value} in {name}"


def test_nan_reaches_the_cells_below_and_right_only(
    harness: ModuleType, operator: Any, backend: str, widest: torch.dtype
) -> None:
    """What the test above leaves to the oracle, said without it."""
    inputs = nan_inputs(harness, operator, widest, 20)
    row, column, channel = 2, 3, 2
    for name in (n for n, v in inputs.items() if v.ndim == 4):
        changed = inputs | {name: inputs[name].clone()}
        changed[name][1, row, column, channel] = torch.nan
        out = harness.scan(changed, True, backend)
        want = torch.zeros(out.shape, dtype=torch.bool)
        below = slice(row, row + 1 if name in ("C", "z") else None)
        right = slice(column, column + 1 if name in ("C", "z") else None)
        every = name in (*operator.drives, "C")  # these serve every channel
        want[1, below, right, slice(None) if every else channel] = True
        assert torch.equal(out.isnan(), want), name


def test_nan_in_grad_out_reaches_the_cells_above_and_left_only(
    harness: ModuleType, operator: Any, backend: str, widest: torch.dtype
) -> None:
    inputs = nan_inputs(harness, operator, widest, 20)
    grad_out = harness.make_grad(inputs)
    grad_out[1, 2, 3, 1] = torch.nan
    _, grads = harness.run_scan(inputs, grad_out, True, backend)
    want = torch.zeros(grad_out.shape, dtype=torch.bool)
    want[1, :3, :4, 1] = True
    assert torch.equal(grads[operator.read].isnan(), want)
    for name in operator.decays:
        assert torch.equal(grads[name].isnan().any(1), torch.arange(20) == 1), name


# --- the choice of backend -----------------------------------------------------------------------------------------


def test_available_backends() -> None:
    names = available_backends()
    assert isinstance(names, tuple)
    assert {"torch", "native"} <= set(names)


@pytest.mark.parametrize(
    ("dtype", "chosen"),
    [(torch.float64, "torch"), (torch.float32, "native"), (torch.bfloat16, "native"), (torch.float16, "native")],
    ids=str,
)
def test_the_best_backend_is_the_default(harness: ModuleType, operator: Any, dtype: torch.dtype, chosen: str) -> None:
    inputs = harness.make_inputs((17, 33), 20, 5, operator=operator, dtype=dtype)
    grad_out = harness.make_grad(inputs)
    default = harness.run_scan(inputs, grad_out, True, None)
    assert_same_bits(default, harness.run_scan(inputs, grad_out, True, chosen))


def test_the_variable_chooses_the_backend(
    harness: ModuleType, operator: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = harness.make_inputs((17, 33), 20, 5, operator=operator, dtype=torch.float32)
    grad_out = harness.make_grad(inputs)
    want = harness.run_scan(inputs, grad_out, True, backend)
    monkeypatch.setenv(VARIABLE, backend)
    assert_same_bits(harness.run_scan(inputs, grad_out, True, None), want)


def test_an_unknown_backend_in_the_variable(
    harness: ModuleType, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "cuda-magic")
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=torch.float32)
    assert_says(bad_input_message(harness, inputs), VARIABLE, "cuda-magic", "torch", "native")
    harness.scan(inputs, True, "torch")  # what the call says goes first


def test_arguments_by_position(harness: ModuleType) -> None:
    inputs = harness.make_inputs((5, 7))
    out = selective_scan_2d(*inputs.values(), True)
    assert not out.requires_grad
    assert torch.equal(out, selective_scan_2d(**inputs, delta_softplus=True))
    inputs = harness.make_inputs((5, 7), operator=harness.WAVEFRONT)
    assert torch.equal(harness.WAVEFRONT.scan(*inputs.values()), harness.WAVEFRONT.scan(**inputs))


# --- bad input -----------------------------------------------------------------------------------------------------


def bad_input_message(harness: ModuleType, inputs: Inputs, backend: str | None = None) -> str:
    """The one line of the ValueError that the call must raise."""
    with pytest.raises(ValueError) as caught:
        harness.scan(inputs, True, backend)
    message = str(caught.value)
    assert message.strip()
    assert "\n" not in message
    return message


def assert_says(message: str, *words: str) -> None:
    """Each of `words` stands in the message, by itself."""
    for word in words:
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message), f"no '{word}' in: {message}"


@pytest.mark.parametrize("name", ["cuda-magic", "", "Torch"])
def test_unknown_backend(harness: ModuleType, operator: Any, name: str) -> None:
    message = bad_input_message(harness, harness.make_inputs((5, 7), operator=operator), backend=name)
    assert_says(message, "backend", "torch", "native")
    assert name in message


@pytest.mark.skipif("triton" in available_backends(), reason="triton is there")
def test_missing_backend(harness: ModuleType, operator: Any) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=torch.float32)
    assert_says(bad_input_message(harness, inputs, backend="triton"), "backend", "triton")


def test_native_takes_no_float64(harness: ModuleType, operator: Any) -> None:
    message = bad_input_message(harness, harness.make_inputs((5, 7), operator=operator), backend="native")
    assert_says(message, operator.read, "float64", "native", "torch")


SIZE_OF_AXIS = {"grid": (2, 5, 7, 3), "states": (2, 5, 7, 4), "channels": (3,), "matrix": (3, 4)}
KIND = {"u": "grid", "x": "grid", "z": "grid", "C": "states", "D": "channels", "delta_bias": "channels"}


def shapes_with_one_axis_wrong() -> Iterator[Any]:
    """Operator, argument, shape, the wrong size and the one expected. The first argument and the first A tell the
    others' shapes, so that only the dim of that A can be wrong."""
    arguments = {
        "selective": ("delta", "A", "B", "C", "D", "z", "delta_bias"),
        "wavefront": ("delta_t", "delta_l", "A_t", "A_l", "B_t", "B_l", "C", "D"),
    }
    kinds = {"delta": "grid", "A": "matrix", "B": "states"}
    for operator, names in arguments.items():
        for name in names:
            right = SIZE_OF_AXIS[KIND.get(name) or kinds[name.partition("_")[0]]]
            for axis, expected in enumerate(right):
                if name in ("A", "A_t") and axis == 1:
                    continue
                for wrong in (11, 1):
                    shape = (*right[:axis], wrong, *right[axis + 1 :])
                    yield pytest.param(operator, name, shape, wrong, expected, id=f"{operator}-{name}-{shape}")


@pytest.mark.parametrize(("kind", "name", "shape", "wrong", "expected"), list(shapes_with_one_axis_wrong()))
def test_wrong_shape(
    harness: ModuleType, kind: str, name: str, shape: tuple[int, ...], wrong: int, expected: int
) -> None:
    operator = getattr(harness, kind.upper())
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=torch.float32)
    assert inputs[name].ndim == len(shape)
    message = bad_input_message(harness, inputs | {name: torch.ones(shape)})
    assert_says(message, name, str(wrong), str(expected))


@pytest.mark.parametrize("more", [False, True], ids=["one axis less", "one axis more"])
def test_wrong_rank(harness: ModuleType, operator: Any, backend: str, widest: torch.dtype, more: bool) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=widest)
    for name, value in inputs.items():
        wrong = value[None] if more else value[0]
        assert_says(bad_input_message(harness, inputs | {name: wrong}, backend), name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_dtype(harness: ModuleType, operator: Any, dtype: torch.dtype) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator)
    for name in operator.arguments[1:]:
        message = bad_input_message(harness, inputs | {name: inputs[name].to(dtype)})
        assert_says(message, name, str(dtype).removeprefix("torch."), "float64")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_dtypes_beside_half_precision(harness: ModuleType, operator: Any, backend: str, dtype: torch.dtype) -> None:
    """Anything may be in float32, but neither in another half precision nor in float64."""
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=torch.bfloat16)
    for name in operator.arguments[1:]:
        changed = inputs | {name: inputs[name].to(dtype)}
        if dtype == torch.float32:
            assert harness.scan(changed, True, backend).dtype == torch.bfloat16
        else:
            message = bad_input_message(harness, changed, backend)
            assert_says(message, name, str(dtype).removeprefix("torch."), "bfloat16")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_dtype_that_is_not_floating(harness: ModuleType, operator: Any, dtype: torch.dtype) -> None:
    inputs = {name: value.to(dtype) for name, value in harness.make_inputs((5, 7), operator=operator).items()}
    assert_says(bad_input_message(harness, inputs), operator.read, str(dtype).removeprefix("torch."))


def test_another_device(harness: ModuleType, operator: Any, backend: str, widest: torch.dtype) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=widest)
    for name in operator.arguments[1:]:
        message = bad_input_message(harness, inputs | {name: inputs[name].to("meta")}, backend)
        assert_says(message, name, "meta", "cpu")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("trained", [False, True], ids=["", "with gradients"])
def test_a_grid_that_fits_in_no_memory(harness: ModuleType, operator: Any, backend: str, trained: bool) -> None:
    """Refused before anything is allocated, in one line with the number of bytes."""
    one = torch.zeros(1, requires_grad=trained)
    height = width = 400_000
    inputs = {
        name: one.expand(value.shape if value.ndim < 4 else (1, height, width, value.shape[-1]))
        for name, value in harness.make_inputs((1, 1), 256, 16, operator=operator).items()
    }
    with pytest.raises((ValueError, MemoryError)) as caught:
        harness.scan(inputs, True, backend)
    message = str(caught.value)
    assert "\n" not in message
    count = re.search(r"(\d[\d,_]*) bytes", message)
    assert count, message
    assert int(re.sub("[,_]", "", count[1])) >= 4 * height * width * 256
