"""What a caller of `selective_scan_2d` may rely on besides the numbers: layouts, repeatability, errors."""

import re
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from wsi2d.kernels.scan2d import available_backends, selective_scan_2d

Inputs = dict[str, Tensor]
REQUIRED = ("u", "delta", "A", "B", "C")
OPTIONAL = ("D", "z", "delta_bias")
FULL = [torch.float64, torch.float32]
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture
def nan_in_fresh_memory() -> Iterator[None]:
    """`torch.empty` gives NaN, so that an element nobody wrote shows in the result."""
    if not torch.utils.deterministic.fill_uninitialized_memory:
        pytest.skip("torch.utils.deterministic.fill_uninitialized_memory is off")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


# --- what a caller may rely on -------------------------------------------------------------------------------------


def strided_inputs(harness: ModuleType, kind: str) -> Inputs:
    """The arguments as models hand them over: the same values, other strides."""
    plain = harness.make_inputs((5, 7), 4, 4)
    strided = {
        "channels first": lambda v: v.movedim(-1, 1).contiguous().movedim(1, -1) if v.ndim == 4 else v.t().clone().t(),
        "transposed grid": lambda v: v.transpose(1, 2).contiguous().transpose(1, 2) if v.ndim == 4 else v,
        "every second element": lambda v: torch.stack([v, torch.full_like(v, torch.nan)], -1)[..., 0],
        "expanded": lambda v: v[:, :1, :, :1].expand_as(v) if v.ndim == 4 else v[:1].expand_as(v),
    }[kind]
    return {name: strided(value) for name, value in plain.items()}


@pytest.mark.parametrize("kind", ["channels first", "transposed grid", "every second element", "expanded"])
def test_strided_inputs(oracle: ModuleType, harness: ModuleType, backend: str, kind: str) -> None:
    inputs = strided_inputs(harness, kind)
    assert not inputs["u"].is_contiguous()
    harness.check(oracle, inputs, softplus=True, backend=backend)


def test_strided_grad_out(harness: ModuleType, backend: str) -> None:
    inputs = harness.make_inputs((5, 7), 4, 4)
    grad_out = harness.make_grad(inputs)
    strided = grad_out.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    _, want = harness.run_scan(inputs, grad_out, True, backend)
    _, got = harness.run_scan(inputs, strided, True, backend)
    for name in inputs:
        harness.assert_close(got[name], harness.to_numpy(want[name]), 1e-12, f"gradient of {name}")


def test_batch_equals_one_at_a_time(harness: ModuleType, backend: str) -> None:
    inputs = harness.make_inputs((5, 7), 3, 4, batch=3)
    grad_out = harness.make_grad(inputs)
    out, grads = harness.run_scan(inputs, grad_out, True, backend)
    singles = [
        harness.run_scan(
            {n: v[b : b + 1] if v.ndim == 4 else v for n, v in inputs.items()}, grad_out[b : b + 1], True, backend
        )
        for b in range(3)
    ]
    harness.assert_close(out, harness.to_numpy(torch.cat([single for single, _ in singles])), 1e-12, "output")
    for name, grad in grads.items():
        parts = [single[name] for _, single in singles]
        want = torch.cat(parts) if inputs[name].ndim == 4 else torch.stack(parts).sum(0)
        harness.assert_close(grad, harness.to_numpy(want), 1e-12, f"gradient of {name}")


@pytest.mark.parametrize("dtype", [*FULL, *HALF], ids=str)
def test_empty_batch(harness: ModuleType, backend: str, dtype: torch.dtype) -> None:
    inputs = harness.make_inputs((5, 7), 3, 4, dtype=dtype, batch=0)
    out, grads = harness.run_scan(inputs, harness.make_grad(inputs), True, backend)
    assert out.shape == (0, 5, 7, 3)
    assert out.dtype == dtype
    for name, grad in grads.items():
        assert grad.shape == inputs[name].shape
        assert not grad.count_nonzero()


@pytest.mark.parametrize("dtype", FULL, ids=str)
def test_same_call_twice_gives_the_same_bits(harness: ModuleType, backend: str, dtype: torch.dtype) -> None:
    inputs = harness.make_inputs((17, 33), 20, 5, dtype=dtype)
    grad_out = harness.make_grad(inputs)
    out, grads = harness.run_scan(inputs, grad_out, True, backend)
    again, grads_again = harness.run_scan(inputs, grad_out, True, backend)
    assert torch.equal(out, again)
    for name, grad in grads.items():
        assert torch.equal(grad, grads_again[name]), f"gradient of {name}"


def test_arguments_are_left_as_they_were(harness: ModuleType, backend: str) -> None:
    inputs = harness.make_inputs((5, 7))
    before = {name: value.clone() for name, value in inputs.items()}
    grad_out = harness.make_grad(inputs)
    grad_before = grad_out.clone()
    harness.run_scan(inputs, grad_out, True, backend)
    for name, value in inputs.items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(grad_out, grad_before)


@pytest.mark.usefixtures("nan_in_fresh_memory")
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (17, 33)], ids=str)
def test_every_element_is_written(oracle: ModuleType, harness: ModuleType, backend: str, size: tuple[int, int]) -> None:
    assert torch.empty(1).isnan()
    harness.check(oracle, harness.make_inputs(size, 20, 5, dtype=torch.float32), softplus=True, backend=backend)


@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "z"])
def test_nan_reaches_the_cells_below_and_right_only(harness: ModuleType, backend: str, name: str) -> None:
    inputs = harness.make_inputs((5, 7))
    row, column, channel = 2, 3, 1
    inputs[name][1, row, column, channel] = torch.nan
    out = selective_scan_2d(**inputs, delta_softplus=True, backend=backend)
    want = torch.zeros(out.shape, dtype=torch.bool)
    below = slice(row, row + 1 if name in ("C", "z") else None)
    right = slice(column, column + 1 if name in ("C", "z") else None)
    want[1, below, right, slice(None) if name in ("B", "C") else channel] = True  # B and C serve every channel
    assert torch.equal(out.isnan(), want)


def test_nan_in_grad_out_reaches_the_cells_above_and_left_only(harness: ModuleType, backend: str) -> None:
    inputs = harness.make_inputs((5, 7))
    grad_out = harness.make_grad(inputs)
    grad_out[1, 2, 3, 1] = torch.nan
    _, grads = harness.run_scan(inputs, grad_out, True, backend)
    want = torch.zeros(grad_out.shape, dtype=torch.bool)
    want[1, :3, :4, 1] = True
    assert torch.equal(grads["u"].isnan(), want)


def test_the_default_backend(oracle: ModuleType, harness: ModuleType) -> None:
    harness.check(oracle, harness.make_inputs((5, 7), 20, 5, dtype=torch.float32), softplus=True, backend=None)
    inputs = harness.make_inputs((5, 7))
    out = selective_scan_2d(*inputs.values(), True)
    assert not out.requires_grad
    assert torch.equal(out, selective_scan_2d(**inputs, delta_softplus=True))


def test_a_large_grid_is_scanned_in_channel_blocks(
    harness: ModuleType, oracle: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all states at once would be too many, none are kept for the backward, and the numbers stay right."""
    inputs = harness.make_inputs((9, 11), 20, 16)
    states_of_six_channels = 6 * 16 * inputs["u"][..., 0].numel()
    monkeypatch.setattr(sys.modules[selective_scan_2d.__module__], "_STATES_AT_ONCE", states_of_six_channels)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        selective_scan_2d(**leaves, delta_softplus=True, backend="torch")
    assert max(saved, default=0) <= max(value.numel() for value in inputs.values())
    harness.check(oracle, inputs, softplus=True, backend="torch")


# --- bad input -----------------------------------------------------------------------------------------------------


def bad_input_message(inputs: Inputs, backend: str | None = None) -> str:
    """The one line of the ValueError that the call must raise."""
    with pytest.raises(ValueError) as caught:
        selective_scan_2d(**inputs, delta_softplus=True, backend=backend)
    message = str(caught.value)
    assert message.strip()
    assert "\n" not in message
    return message


def assert_says(message: str, *words: str) -> None:
    """Each of `words` stands in the message, by itself."""
    for word in words:
        assert re.search(rf"(?<!\w){word}(?!\w)", message), f"no '{word}' in: {message}"


def test_available_backends() -> None:
    names = available_backends()
    assert isinstance(names, tuple | list)
    assert "torch" in names


@pytest.mark.parametrize("name", ["cuda-magic", "", "Torch"])
def test_unknown_backend(harness: ModuleType, name: str) -> None:
    message = bad_input_message(harness.make_inputs((5, 7)), backend=name)
    assert_says(message, "backend", "torch")
    assert name in message


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("delta", (2, 5, 7, 11), "3"),
        ("delta", (2, 5, 11, 3), "7"),
        ("delta", (2, 11, 7, 3), "5"),
        ("delta", (11, 5, 7, 3), "2"),
        ("delta", (2, 1, 7, 3), "5"),
        ("z", (2, 5, 11, 3), "7"),
        ("A", (11, 4), "3"),
        ("B", (2, 5, 7, 11), "4"),
        ("B", (2, 5, 11, 4), "7"),
        ("C", (2, 5, 7, 11), "4"),
        ("C", (2, 11, 7, 4), "5"),
        ("C", (1, 5, 7, 4), "2"),
        ("D", (11,), "3"),
        ("delta_bias", (11,), "3"),
    ],
)
def test_wrong_shape(harness: ModuleType, name: str, shape: tuple[int, ...], expected: str) -> None:
    inputs = harness.make_inputs((5, 7))
    wrong = next(got for got, right in zip(shape, inputs[name].shape, strict=True) if got != right)
    message = bad_input_message(inputs | {name: torch.ones(shape, dtype=torch.float64)})
    assert_says(message, name, str(wrong), expected)


@pytest.mark.parametrize("name", [*REQUIRED, *OPTIONAL])
@pytest.mark.parametrize("more", [False, True], ids=["one axis less", "one axis more"])
def test_wrong_rank(harness: ModuleType, name: str, more: bool) -> None:
    inputs = harness.make_inputs((5, 7))
    wrong = inputs[name][None] if more else inputs[name][0]
    assert_says(bad_input_message(inputs | {name: wrong}), name)


@pytest.mark.parametrize("name", ["delta", "A", "B", "C"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_dtype(harness: ModuleType, name: str, dtype: torch.dtype) -> None:
    inputs = harness.make_inputs((5, 7))
    message = bad_input_message(inputs | {name: inputs[name].to(dtype)})
    assert_says(message, name)
    assert str(dtype).removeprefix("torch.") in message
    assert "float64" in message


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_dtype_that_is_not_floating(harness: ModuleType, dtype: torch.dtype) -> None:
    inputs = {name: value.to(dtype) for name, value in harness.make_inputs((5, 7)).items()}
    message = bad_input_message(inputs)
    assert_says(message, "u")
    assert str(dtype).removeprefix("torch.") in message
