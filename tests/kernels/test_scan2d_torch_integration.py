"""The scans as ops of torch: its own checks of them, compiled graphs, autocast, checkpoints."""

import shutil
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.functional import linear, softplus
from torch.utils.checkpoint import checkpoint

Inputs = dict[str, Tensor]


@pytest.fixture(autouse=True)
def no_chosen_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's environment says, `backend=None` is the library's own choice here."""
    monkeypatch.delenv("WSI2D_SCAN_BACKEND", raising=False)


def assert_alike(harness: ModuleType, got: Inputs, want: Inputs, dtype: torch.dtype) -> None:
    assert got.keys() == want.keys()
    for name, value in got.items():
        assert value.dtype == want[name].dtype, name
        harness.assert_close(value, harness.to_numpy(want[name]), harness.TOLERANCE[dtype][1], name)


def op(operator: Any) -> Any:
    """The op as torch has it."""
    return getattr(torch.ops.wsi2d, operator.name).default


# --- as an op ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["all", "required", "half", "strided", "empty", "some gradients", "no gradients"])
def test_opcheck(harness: ModuleType, operator: Any, backend: str, kind: str) -> None:
    """Schema, autograd's registration, fake tensors, and the traced forward and backward against the real ones."""
    inputs = harness.make_inputs(
        (3, 5),
        operator=operator,
        dtype=torch.bfloat16 if kind == "half" else torch.float32,
        batch=0 if kind == "empty" else 2,
        optional=() if kind == "required" else None,
    )
    if kind == "strided":
        inputs = {n: v.transpose(1, 2).contiguous().transpose(1, 2) if v.ndim == 4 else v for n, v in inputs.items()}
    learned = {"no gradients": (), "some gradients": (*operator.parameters, "C")}.get(kind, inputs)
    for name in learned:
        inputs[name].requires_grad_()
    torch.library.opcheck(op(operator), operator.raw(inputs, True, backend))


def test_the_op_is_what_the_function_calls(harness: ModuleType, operator: Any, backend: str) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=torch.float32)
    out = op(operator)(*operator.raw(inputs, True, backend))
    assert torch.equal(out, harness.scan(inputs, True, backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_tensors_lie_as_the_real_ones_do(
    harness: ModuleType, operator: Any, backend: str, dtype: torch.dtype
) -> None:
    """Shape, dtype and strides of the output and of each gradient; the output is contiguous however the input lies."""
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=dtype)
    inputs[operator.read] = inputs[operator.read].transpose(1, 2).contiguous().transpose(1, 2)
    grad_out = harness.make_grad(inputs).contiguous()
    out, grads = harness.run_scan(inputs, grad_out, True, backend)
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(value) for name, value in inputs.items()}
        fake_out, fake_grads = harness.run_scan(fakes, mode.from_tensor(grad_out), True, backend)
    assert out.is_contiguous()
    for name, real, fake in [("output", out, fake_out), *((n, grads[n], fake_grads[n]) for n in inputs)]:
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride()), name


def test_no_second_derivatives(harness: ModuleType, operator: Any, backend: str) -> None:
    """There are none, and nobody gets zeros instead."""
    inputs = harness.make_inputs((3, 3), operator=operator, dtype=torch.float32)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    out = harness.scan(leaves, True, backend)
    (grad,) = torch.autograd.grad(out.square().sum(), leaves["C"], create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


# --- compiled ------------------------------------------------------------------------------------------------------


def assert_compiles(
    harness: ModuleType, operator: Any, dtype: torch.dtype, scan_backend: str | None, **options: Any
) -> None:
    """Two sizes through one compiled function with work before and after the scan: outputs and gradients as without."""

    def around(inputs: Inputs) -> Tensor:
        read = operator.read
        out: Tensor = harness.scan(inputs | {read: inputs[read] * 2}, True, scan_backend)
        return out.tanh()

    compiled = torch.compile(around, fullgraph=True, **options)
    for size in ((5, 7), (4, 9)):
        inputs = harness.make_inputs(size, operator=operator, dtype=dtype)
        results = []
        for call in (around, compiled):
            leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
            out = call(leaves)
            grads = torch.autograd.grad(out.square().sum(), list(leaves.values()))
            results.append({"output": out.detach(), **dict(zip(leaves, grads, strict=True))})
        assert_alike(harness, results[1], results[0], dtype)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_one_graph_without_breaks(
    harness: ModuleType, operator: Any, backend: str, widest: torch.dtype, dynamic: bool
) -> None:
    assert_compiles(harness, operator, widest, backend, backend="aot_eager", dynamic=dynamic)


@pytest.mark.usefixtures("fresh_compiler")
def test_one_graph_with_the_default_backend(
    harness: ModuleType, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_compiles(harness, operator, torch.float32, None, backend="aot_eager")
    torch._dynamo.reset()
    monkeypatch.setenv("WSI2D_SCAN_BACKEND", "torch")
    assert_compiles(harness, operator, torch.float32, None, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
@pytest.mark.usefixtures("fresh_compiler")
def test_inductor(harness: ModuleType, operator: Any, backend: str) -> None:
    assert_compiles(harness, operator, torch.float32, backend)


@pytest.mark.usefixtures("fresh_compiler")
def test_wrong_shapes_are_named_while_compiling(harness: ModuleType, operator: Any) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=torch.float32)
    inputs["C"] = inputs["C"][:, :-1]
    compiled = torch.compile(lambda v: harness.scan(v, True, "native"), backend="aot_eager")
    with pytest.raises(Exception, match=r"\bC\b.*\b4\b"):
        compiled(inputs)


# --- autocast ------------------------------------------------------------------------------------------------------


def project(operator: Any, patches: Tensor, weights: Inputs) -> Inputs:
    """The scan's arguments as a model makes them of patches: linear maps, which autocast runs in half precision, and
    parameters in float32."""
    inputs = {}
    for name in operator.arguments:
        if name in operator.parameters:
            inputs[name] = -weights[name].exp() if name in operator.decays else weights[name]
        else:
            value = linear(patches, weights[name])
            inputs[name] = softplus(value) if name in operator.steps and not operator.has_softplus else value
    return inputs


def make_weights(harness: ModuleType, operator: Any) -> tuple[Tensor, Inputs]:
    generator = torch.Generator().manual_seed(3)
    sizes = {name: value.shape for name, value in harness.make_inputs((1, 1), operator=operator).items()}
    weights = {
        name: torch.randn(size if len(size) < 4 else (size[-1], 8), generator=generator) / 3
        for name, size in sizes.items()
    }
    return torch.randn(2, 5, 7, 8, generator=generator), weights


def test_a_model_under_autocast(harness: ModuleType, operator: Any, backend: str) -> None:
    patches, weights = make_weights(harness, operator)
    results = []
    for enabled in (False, True):
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            inputs = project(operator, patches, leaves)
            out = harness.scan(inputs, True, backend)
        assert out.dtype == inputs[operator.read].dtype == (torch.bfloat16 if enabled else torch.float32)
        grads = torch.autograd.grad(out.float().square().sum(), list(leaves.values()))
        results.append({"output": out.detach().float(), **dict(zip(leaves, grads, strict=True))})
    want, got = results
    for name, value in got.items():
        assert value.dtype == torch.float32, name
        # bfloat16 holds 8 bits, and what is rounded here is rounded several times before it is summed
        harness.assert_close(value, harness.to_numpy(want[name]), 5e-2, name)


@pytest.mark.parametrize("half", [False, True], ids=["all float32", "drives in half"])
def test_arguments_of_several_dtypes_under_autocast(
    harness: ModuleType, operator: Any, backend: str, half: bool
) -> None:
    """What autocast hands over depends on the ops before: some results come in half precision, some in float32."""
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=torch.float32)
    want = harness.scan(inputs, True, backend)
    if half:
        inputs |= {name: inputs[name].bfloat16() for name in (*operator.drives, "C")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, grads = harness.run_scan(inputs, torch.ones_like(want), True, backend)
    assert out.dtype in (torch.float32, torch.bfloat16)
    harness.assert_close(out, harness.to_numpy(want), 1e-2, "output")
    assert {name: grad.dtype for name, grad in grads.items()} == {name: v.dtype for name, v in inputs.items()}
    assert all(grad.isfinite().all() for grad in grads.values())


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_under_a_checkpoint(
    harness: ModuleType, operator: Any, backend: str, widest: torch.dtype, use_reentrant: bool
) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=widest)
    grad_out = harness.make_grad(inputs)
    out, grads = harness.run_scan(inputs, grad_out, True, backend)
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}

    def scan(*values: Tensor) -> Tensor:
        result: Tensor = harness.scan(dict(zip(leaves, values, strict=True)), True, backend)
        return result

    again = checkpoint(scan, *leaves.values(), use_reentrant=use_reentrant)
    again.backward(grad_out)
    assert torch.equal(again, out)
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        assert torch.equal(leaf.grad, grads[name]), name


def test_no_graph_where_none_is_asked_for(harness: ModuleType, operator: Any, backend: str) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=torch.float32)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            out = harness.scan(leaves, True, backend)
        assert not out.requires_grad
    assert harness.scan(leaves, True, backend).requires_grad
