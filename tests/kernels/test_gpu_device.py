"""The scans of the backend `triton` on a GPU: the numbers, and what a caller may rely on besides them there."""

import copy
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wsi2d.kernels.scan2d import available_backends, choose_backend, selective_scan_2d

DEVICE = torch.device("cuda")
TRITON = "triton"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"), reason="TRITON_INTERPRET is set: nothing is compiled"
    ),
]

Inputs = dict[str, Tensor]
Results = dict[str, Tensor]
Arrays = dict[str, NDArray[np.float64]]
OPTIONAL = ("D", "z", "delta_bias")
OPTIONS = [combo for count in range(4) for combo in itertools.combinations(OPTIONAL, count)]
SIZES = [(1, 1), (1, 8), (8, 1), (2, 2), (5, 7), (16, 16), (17, 33), (63, 65)]
DIMS, STATES = (1, 3, 16, 20, 256), (1, 4, 5, 16, 64)
DTYPES = [torch.float32, torch.bfloat16]
# Relative RMS, as the harness takes it, of outputs and of gradients.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@pytest.fixture(autouse=True)
def no_chosen_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's environment says, `backend=None` is the library's own choice here, and no test but that of
    tuning compiles more than one tiling."""
    monkeypatch.delenv("WSI2D_SCAN_BACKEND", raising=False)
    monkeypatch.setenv("WSI2D_SCAN_TUNING", "off")


def on_device(inputs: Inputs) -> Inputs:
    return {name: value.to(DEVICE) for name, value in inputs.items()}


def run(
    harness: ModuleType, inputs: Inputs, grad_out: Tensor, *, softplus: bool = True, backend: str | None = TRITON
) -> Results:
    """The output and every gradient, computed on the GPU and brought back."""
    out, grads = harness.run_scan(on_device(inputs), grad_out.to(DEVICE), softplus, backend)
    return {"output": out.cpu()} | {f"gradient of {name}": grad.cpu() for name, grad in grads.items()}


def run_oracle(harness: ModuleType, oracle: ModuleType, inputs: Inputs, grad_out: Tensor, softplus: bool) -> Arrays:
    """What `run` should give, by the float64 loops."""
    out, grads = harness.run_oracle(oracle, inputs, grad_out, softplus)
    return {"output": out} | {f"gradient of {name}": grad for name, grad in grads.items()}


def run_loops(harness: ModuleType, inputs: Inputs, grad_out: Tensor) -> Arrays:
    """What `run` should give, by the backend `torch` in float64, where the oracle would take too long."""
    wide = {name: value.double() for name, value in inputs.items()}
    results = run(harness, wide, grad_out.double(), backend="torch")
    return {what: harness.to_numpy(value) for what, value in results.items()}


def compare(harness: ModuleType, got: Results, want: Arrays, inputs: Inputs) -> None:
    """Output and gradients have the dtypes of their arguments, and are within the tolerance of these."""
    read = harness.operator_of(inputs).read
    assert got.keys() == want.keys()
    for what, value in got.items():
        dtype = inputs[what.removeprefix("gradient of ") if what != "output" else read].dtype
        assert value.dtype == dtype, f"{what} is {value.dtype}"
        harness.assert_close(value, want[what], TOLERANCE[dtype], what)


def check(harness: ModuleType, oracle: ModuleType, inputs: Inputs, *, softplus: bool = True) -> None:
    """Output and all gradients against the oracle fed with the same rounded values."""
    grad_out = harness.make_grad(inputs)
    got = run(harness, inputs, grad_out, softplus=softplus)
    compare(harness, got, run_oracle(harness, oracle, inputs, grad_out, softplus), inputs)


def make_large(
    harness: ModuleType,
    operator: Any,
    size: tuple[int, int],
    dim: int,
    state: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """Arguments like the harness's, drawn on the GPU."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    inputs = {}
    for name, small in harness.make_inputs((1, 1), dim, state, operator=operator, batch=1, seed=seed).items():
        shape = (batch, *size, small.shape[-1])
        if name in operator.parameters:
            inputs[name] = small.to(DEVICE, dtype)
        elif name in operator.steps and not operator.has_softplus:
            uniform = torch.rand(shape, generator=generator, device=DEVICE, dtype=dtype)
            inputs[name] = uniform.mul_(0.45).add_(0.05)
        else:
            normal = torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype)
            inputs[name] = normal.mul_(0.5).sub_(1.2) if name in operator.steps else normal
    return inputs


def large_grad(like: Tensor) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(99)
    return torch.randn(like.shape, generator=generator, device=DEVICE, dtype=like.dtype)


# --- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dim", "state"), [(3, 4), (20, 5)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(
    oracle: ModuleType,
    harness: ModuleType,
    operator: Any,
    size: tuple[int, int],
    dim: int,
    state: int,
    dtype: torch.dtype,
) -> None:
    check(harness, oracle, harness.make_inputs(size, dim, state, operator=operator, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dim", DIMS)
def test_dims_and_states(
    oracle: ModuleType, harness: ModuleType, operator: Any, dim: int, state: int, dtype: torch.dtype
) -> None:
    check(harness, oracle, harness.make_inputs((5, 7), dim, state, operator=operator, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dim", "state"), [(3, 4), (20, 5), (256, 16), (16, 64)])
def test_a_large_grid(harness: ModuleType, operator: Any, dim: int, state: int, dtype: torch.dtype) -> None:
    inputs = make_large(harness, operator, (200, 200), dim, state, batch=2 if dim < 256 else 1, dtype=dtype)
    grad_out = large_grad(inputs[operator.read])
    compare(harness, run(harness, inputs, grad_out), run_loops(harness, inputs, grad_out), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("side", "dim"), [(14, 192), (56, 64)])
def test_a_batch_of_64(harness: ModuleType, operator: Any, side: int, dim: int, dtype: torch.dtype) -> None:
    inputs = make_large(harness, operator, (side, side), dim, 16, batch=64, dtype=dtype)
    grad_out = large_grad(inputs[operator.read])
    compare(harness, run(harness, inputs, grad_out), run_loops(harness, inputs, grad_out), inputs)


@pytest.mark.parametrize("softplus", [False, True], ids=["linear", "softplus"])
@pytest.mark.parametrize("optional", OPTIONS, ids=lambda names: "+".join(names) or "none")
def test_options(oracle: ModuleType, harness: ModuleType, optional: tuple[str, ...], softplus: bool) -> None:
    inputs = harness.make_inputs((17, 33), 20, 5, dtype=torch.float32, optional=optional, softplus=softplus)
    check(harness, oracle, inputs, softplus=softplus)


def test_wavefront_without_D(oracle: ModuleType, harness: ModuleType) -> None:
    inputs = harness.make_inputs((17, 33), 20, 5, operator=harness.WAVEFRONT, dtype=torch.float32, optional=())
    check(harness, oracle, inputs)


@pytest.mark.parametrize("wide", ["none", "parameters", "all but the first"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(
    oracle: ModuleType, harness: ModuleType, operator: Any, dtype: torch.dtype, wide: str
) -> None:
    """Each element is off by no more than rounding to the nearest, and float32's own error, may cost."""
    inputs = harness.make_inputs((17, 33), 40, 5, operator=operator, dtype=torch.float32)
    kept = {"none": (), "parameters": operator.parameters, "all but the first": operator.arguments[1:]}[wide]
    inputs = {name: value if name in kept else value.to(dtype) for name, value in inputs.items()}
    grad_out = harness.make_grad(inputs)
    got, want = run(harness, inputs, grad_out), run_oracle(harness, oracle, inputs, grad_out, True)
    compare(harness, got, want, inputs)
    for what, value in got.items():
        error, size = np.abs(harness.to_numpy(value) - want[what]), np.abs(want[what])
        beyond = np.count_nonzero(error > torch.finfo(value.dtype).eps / 2 * size + 4 * 2e-5 * size.max())
        assert not beyond, f"{what}: {beyond} of {error.size} beyond rounding"


@pytest.mark.parametrize("kind", ["channels first", "transposed grid", "a part of the channels", "expanded"])
def test_strided_inputs(oracle: ModuleType, harness: ModuleType, operator: Any, kind: str) -> None:
    layouts: dict[str, Callable[[Tensor], Tensor]] = {
        "channels first": lambda v: v.movedim(-1, 1).contiguous().movedim(1, -1) if v.ndim == 4 else v.t().clone().t(),
        "transposed grid": lambda v: v.transpose(1, 2).contiguous().transpose(1, 2) if v.ndim == 4 else v,
        "a part of the channels": lambda v: torch.cat([v, torch.full_like(v, torch.nan)], -1)[..., : v.shape[-1]],
        "expanded": lambda v: v[:, :1, :, :1].expand_as(v) if v.ndim == 4 else v[:1].expand_as(v),
    }
    plain = on_device(harness.make_inputs((17, 33), 20, 5, operator=operator, dtype=torch.float32))
    inputs = {name: layouts[kind](value) for name, value in plain.items()}
    assert not inputs[operator.read].is_contiguous()
    grad_out = harness.make_grad(inputs)
    back = {name: value.cpu() for name, value in inputs.items()}
    compare(harness, run(harness, inputs, grad_out), run_oracle(harness, oracle, back, grad_out, True), inputs)


def test_an_empty_batch(harness: ModuleType, operator: Any) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator, dtype=torch.float32, batch=0)
    for what, value in run(harness, inputs, harness.make_grad(inputs)).items():
        argument = what.removeprefix("gradient of ")
        assert value.shape == inputs[operator.read if what == "output" else argument].shape
        assert not value.count_nonzero(), what


def test_nan_reaches_only_what_depends_on_it(harness: ModuleType, operator: Any) -> None:
    inputs = harness.make_inputs((40, 50), 20, 5, operator=operator, dtype=torch.float32)
    inputs[operator.read][1, 17, 23, 16] = torch.nan
    grad_out = harness.make_grad(inputs)
    grad_out[0, 17, 23, 16] = torch.nan
    got = run(harness, inputs, grad_out)
    below, above = torch.zeros(2, *grad_out.shape, dtype=torch.bool)
    below[1, 17:, 23:, 16] = True
    above[0, :18, :24, 16] = True
    assert torch.equal(got["output"].isnan(), below)
    assert torch.equal(got[f"gradient of {operator.read}"][0].isnan(), above[0])


@pytest.mark.slow
def test_more_elements_than_32_bits_count(harness: ModuleType, operator: Any) -> None:
    """Decays so quick that a cell remembers three others: a corner of the grid is what it is by itself."""
    size, dim, corner, inner = (4200, 4100), 128, 16, 8
    if torch.cuda.mem_get_info()[0] < 80 * 2**30:
        pytest.skip("needs 80 GiB of GPU memory")
    inputs = make_large(harness, operator, size, dim, 4, dtype=torch.bfloat16)
    inputs.pop("z", None)
    assert inputs[operator.read].numel() > 2**31
    for name in operator.decays:
        inputs[name].fill_(-20.0)
    for name in operator.steps:
        inputs[name].uniform_(0.5, 1.0)
    grad_out = torch.ones((), device=DEVICE, dtype=torch.bfloat16).expand_as(inputs[operator.read])
    out, grads = harness.run_scan(inputs, grad_out, True, TRITON)
    ends = {"first": (slice(None, corner), slice(None, inner)), "last": (slice(-corner, None), slice(-inner, None))}
    for end, (around, kept) in ends.items():
        crop = {n: v[:, around, around] if v.ndim == 4 else v for n, v in inputs.items()}
        want, want_grads = harness.run_scan(crop, grad_out[:, around, around], True, TRITON)
        pairs = {"output": (out, want)} | {n: (grads[n], want_grads[n]) for n, v in inputs.items() if v.ndim == 4}
        # the first row and column of a wavefront are unlike the others, and its corner is no corner of the grid
        for what, (whole, part) in pairs.items():
            wanted = harness.to_numpy(part[:, kept, kept].cpu())
            harness.assert_close(whole[:, kept, kept].cpu(), wanted, 1e-2, f"{what} at the {end} cells")


# --- steps and decays of every kind --------------------------------------------------------------------------------


def test_extremes(oracle: ModuleType, harness: ModuleType, operator: Any, extreme: Any) -> None:
    """Every other state is of the extreme kind, the rest ordinary; every state has extreme steps."""
    inputs = harness.make_extreme_inputs(extreme, (16, 19), 20, 5, operator=operator, dtype=torch.float32)
    check(harness, oracle, inputs, softplus=False)


def test_as_mamba_starts(oracle: ModuleType, harness: ModuleType, operator: Any) -> None:
    """Steps from 0.001 to 0.1 and A = -1 ... -16: some states remember the whole grid, others three cells."""
    inputs = harness.make_inputs((33, 47), 20, 16, operator=operator, dtype=torch.float32)
    for name in operator.decays:
        inputs[name] = -torch.arange(1, 17, dtype=torch.float32).repeat(20, 1)
    if operator.has_softplus:
        step = np.exp(np.random.default_rng(2).uniform(np.log(1e-3), np.log(1e-1), size=20))
        inputs["delta_bias"] = torch.from_numpy(np.log(np.expm1(step))).float()
        inputs["delta"] = (inputs["delta"] + 1.2) * 0.2
    else:
        for name in operator.steps:
            inputs[name] = 1e-3 * 100 ** ((inputs[name] - 0.05) / 0.45)
    check(harness, oracle, inputs)


def test_decays_that_underflow(oracle: ModuleType, harness: ModuleType) -> None:
    """Steps of 0 to 100 and A down to -50: exp(Δ·A) is 0 or 1 to the last bit, and nothing becomes NaN or infinite."""
    inputs = harness.make_inputs((17, 33), 20, 5, dtype=torch.float32, optional=("D", "z"))
    steps = torch.tensor([-100.0, -30.0, 0.0, 30.0, 100.0])
    choice = torch.from_numpy(np.random.default_rng(3).integers(0, 5, size=tuple(inputs["u"].shape)))
    inputs["delta"], inputs["A"] = steps[choice], inputs["A"] * 50
    check(harness, oracle, inputs)


def test_decays_above_one(oracle: ModuleType, harness: ModuleType, operator: Any) -> None:
    """Steps of either sign, without softplus: the equations do not ask for a decay."""
    inputs = harness.make_inputs((5, 7), 20, 5, operator=operator, dtype=torch.float32, softplus=False)
    for name in operator.steps:
        inputs[name] = (inputs[name] - 0.27) * 4
    check(harness, oracle, inputs, softplus=False)


@pytest.mark.parametrize("range_", [(-14.0, -12.0), (-1.0, 1.0), (15.0, 25.0), (60.0, 80.0)], ids=str)
def test_softplus_of_steps_far_from_zero(oracle: ModuleType, harness: ModuleType, range_: tuple[float, float]) -> None:
    inputs = harness.make_inputs((17, 33), 20, 5, dtype=torch.float32)
    inputs["delta"] = harness.between(*range_, inputs["delta"])
    check(harness, oracle, inputs)


def test_gates_far_from_zero(oracle: ModuleType, harness: ModuleType) -> None:
    inputs = harness.make_inputs((17, 33), 20, 5, dtype=torch.float32)
    inputs["z"] = harness.between(-100.0, 100.0, inputs["z"])
    check(harness, oracle, inputs)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_what_is_not_finite_reaches_only_what_depends_on_it(
    oracle: ModuleType, harness: ModuleType, operator: Any, value: float
) -> None:
    """In each argument in turn: the oracle says which outputs a NaN there reaches; beyond them not a bit changes."""
    inputs = harness.make_inputs((17, 20), 20, 5, operator=operator, dtype=torch.float32, batch=1)
    clean = harness.scan(on_device(inputs), True, TRITON).cpu()
    for name in (n for n, v in inputs.items() if v.ndim == 4):
        position = (0, 9, 11, inputs[name].shape[-1] - 1)
        changed, marked = inputs | {name: inputs[name].clone()}, inputs | {name: inputs[name].clone()}
        changed[name][position], marked[name][position] = value, torch.nan
        out = harness.scan(on_device(changed), True, TRITON).cpu()
        arrays = {n: harness.to_numpy(v) for n, v in marked.items()}
        with np.errstate(invalid="ignore"):
            reached = getattr(oracle, f"{operator.name}_oracle")(**arrays, **operator.options(True))
        depends = torch.from_numpy(np.isnan(reached))
        assert torch.equal(out[~depends], clean[~depends]), f"{value} in {name}"
        if np.isnan(value):
            assert out[depends].isnan().all(), f"{value} in {name}"


def test_tuning_measures_once_and_changes_no_number(
    oracle: ModuleType, harness: ModuleType, operator: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from wsi2d.kernels.gpu import tuning

    monkeypatch.delenv("WSI2D_SCAN_TUNING")
    monkeypatch.setattr(tuning, "_file", lambda device: tmp_path / "tilings.json")
    tuning._known.cache_clear()
    try:
        for _ in range(2):
            check(harness, oracle, harness.make_inputs((17, 33), 20, 5, operator=operator, dtype=torch.float32))
        assert len(tuning._read(torch.device("cuda", torch.cuda.current_device()))) == 2
    finally:
        tuning._known.cache_clear()


# --- memory and repeatability --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("restore_determinism")
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (17, 33)], ids=str)
def test_every_element_is_written(
    oracle: ModuleType, harness: ModuleType, operator: Any, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """`torch.empty` gives NaN, so that an element nobody wrote shows in the result."""
    monkeypatch.setattr("torch.utils.deterministic.fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1, device=DEVICE).isnan()
    check(harness, oracle, harness.make_inputs(size, 20, 5, operator=operator, dtype=torch.float32))


@pytest.mark.usefixtures("restore_determinism")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "dim", "batch"), [((63, 65), 256, 4), ((14, 14), 192, 64)], ids=str)
def test_deterministic_algorithms_give_the_same_bits_and_the_numbers_of_the_default(
    harness: ModuleType, operator: Any, size: tuple[int, int], dim: int, batch: int, dtype: torch.dtype
) -> None:
    inputs = make_large(harness, operator, size, dim, 16, batch=batch, dtype=dtype)
    grad_out = large_grad(inputs[operator.read])
    torch.use_deterministic_algorithms(False)
    default = run(harness, inputs, grad_out)
    torch.use_deterministic_algorithms(True)
    first = run(harness, inputs, grad_out)
    for _ in range(3):
        for what, value in run(harness, inputs, grad_out).items():
            assert torch.equal(value, first[what]), what
    compare(harness, first, {what: harness.to_numpy(value) for what, value in default.items()}, inputs)


def bytes_of(tensors: Inputs) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def test_little_memory_is_taken_beside_arguments_and_results(harness: ModuleType, operator: Any) -> None:
    """At most a quarter of the arguments' bytes, at any moment of the forward and of the backward."""
    inputs = make_large(harness, operator, (512, 512), 256, 16)
    grad_out = large_grad(inputs[operator.read])
    harness.run_scan(inputs, grad_out, True, TRITON)  # what is compiled or tried out once is not counted
    torch.cuda.empty_cache()

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = harness.scan(inputs, True, TRITON)
    torch.cuda.synchronize()
    beside = torch.cuda.max_memory_allocated() - before - bytes_of({"output": out})
    assert beside <= bytes_of(inputs) // 4, f"forward: {beside} bytes beside {bytes_of(inputs)}"

    del out
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out, grads = harness.run_scan(inputs, grad_out, True, TRITON)
    torch.cuda.synchronize()
    beside = torch.cuda.max_memory_allocated() - before - bytes_of({"output": out} | grads)
    assert beside <= bytes_of(inputs) // 4, f"forward and backward: {beside} bytes beside {bytes_of(inputs)}"


# --- streams and graphs --------------------------------------------------------------------------------------------


def test_another_stream(harness: ModuleType, operator: Any) -> None:
    """What was queued on a stream before the scan is seen by it."""
    plain = make_large(harness, operator, (63, 65), 64, 16)
    grad_out = large_grad(plain[operator.read])
    want = run(harness, plain, grad_out)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = {name: torch.full_like(value, torch.nan) for name, value in plain.items()}
        torch.cuda._sleep(50_000_000)
        for name, value in late.items():
            value.copy_(plain[name])
        got = run(harness, late, grad_out)
    compare(harness, got, {what: harness.to_numpy(value) for what, value in want.items()}, plain)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
@pytest.mark.parametrize(("size", "dim"), [((17, 33), 20), ((300, 310), 256)], ids=str)
def test_a_captured_graph_replays_with_new_values(
    harness: ModuleType, operator: Any, size: tuple[int, int], dim: int, backward: bool
) -> None:
    leaves = {n: v.requires_grad_(backward) for n, v in make_large(harness, operator, size, dim, 16).items()}
    grad_out = large_grad(leaves[operator.read])

    def step() -> Results:
        out = harness.scan(leaves, True, TRITON)
        grads = torch.autograd.grad(out, list(leaves.values()), grad_out) if backward else ()
        return {"output": out.detach()} | {f"gradient of {n}": g for n, g in zip(leaves, grads, strict=False)}

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for seed in (1, 2):
        with torch.no_grad():
            for name, value in make_large(harness, operator, size, dim, 16, seed=seed).items():
                leaves[name].copy_(value)
        graph.replay()
        got = {what: value.cpu() for what, value in results.items()}
        compare(harness, got, {what: harness.to_numpy(value.cpu()) for what, value in step().items()}, leaves)


# --- in torch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "chosen"),
    [(torch.float64, "torch"), (torch.float32, TRITON), (torch.bfloat16, TRITON), (torch.float16, TRITON)],
    ids=str,
)
def test_triton_is_the_default_on_a_gpu(harness: ModuleType, operator: Any, dtype: torch.dtype, chosen: str) -> None:
    assert TRITON in available_backends()
    assert choose_backend(DEVICE, dtype)[0] == chosen
    inputs = on_device(harness.make_inputs((17, 33), 20, 5, operator=operator, dtype=dtype))
    assert torch.equal(harness.scan(inputs, True, None), harness.scan(inputs, True, chosen))


def test_triton_takes_neither_float64_nor_tensors_on_the_cpu(harness: ModuleType, operator: Any) -> None:
    inputs = harness.make_inputs((5, 7), operator=operator)
    with pytest.raises(ValueError, match=f"^{operator.read} is float64.*'triton'"):
        harness.scan(on_device(inputs), True, TRITON)
    with pytest.raises(ValueError, match=f"^{operator.read} is on cpu.*'triton'"):
        harness.scan({name: value.float() for name, value in inputs.items()}, True, TRITON)


def test_arguments_on_two_devices(harness: ModuleType, operator: Any) -> None:
    inputs = on_device(harness.make_inputs((5, 7), operator=operator, dtype=torch.float32))
    for name in operator.arguments[1:]:
        with pytest.raises(ValueError, match=f"^{name} is on cpu"):
            harness.scan(inputs | {name: inputs[name].cpu()}, True, TRITON)


@pytest.mark.parametrize("kind", ["all", "required", "half", "strided", "empty", "no gradients"])
def test_opcheck(harness: ModuleType, operator: Any, kind: str) -> None:
    """Schema, autograd's registration, fake tensors, and the traced forward and backward against the real ones."""
    inputs = on_device(
        harness.make_inputs(
            (3, 5),
            operator=operator,
            dtype=torch.bfloat16 if kind == "half" else torch.float32,
            batch=0 if kind == "empty" else 2,
            optional=() if kind == "required" else None,
        )
    )
    if kind == "strided":
        inputs = {n: v.transpose(1, 2).contiguous().transpose(1, 2) if v.ndim == 4 else v for n, v in inputs.items()}
    if kind != "no gradients":
        inputs = {name: value.requires_grad_() for name, value in inputs.items()}
    op = getattr(torch.ops.wsi2d, operator.name).default
    torch.library.opcheck(op, operator.raw(inputs, True, TRITON))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("scan_backend", [None, TRITON], ids=["default", "triton"])
def test_one_graph_without_breaks(
    harness: ModuleType, operator: Any, scan_backend: str | None, compiler: str, dynamic: bool
) -> None:
    """Two sizes through one compiled function with work before and after the scan: as without."""

    def around(inputs: Inputs) -> Tensor:
        read = operator.read
        out: Tensor = harness.scan(inputs | {read: inputs[read] * 2}, True, scan_backend)
        return out.tanh()

    compiled = torch.compile(around, fullgraph=True, backend=compiler, dynamic=dynamic)
    for size in ((5, 7), (17, 33)):
        inputs = on_device(harness.make_inputs(size, 20, 5, operator=operator, dtype=torch.float32))
        results: list[Results] = []
        for call in (around, compiled):
            leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
            out = call(leaves)
            grads = torch.autograd.grad(out.square().sum(), list(leaves.values()))
            named = zip(leaves, grads, strict=True)
            results.append({"output": out.detach().cpu()} | {f"gradient of {n}": g.cpu() for n, g in named})
        want = {what: harness.to_numpy(value) for what, value in results[0].items()}
        compare(harness, results[1], want, inputs)


# --- in a model ----------------------------------------------------------------------------------------------------

TRAINING_STEPS = 50
LOSS_TOLERANCE = 0.02  # of losses that start near ln 2; bfloat16 holds 8 bits, and 50 updates follow its gradients


def train(model: Any, batch: Any, labels: Tensor, device: torch.device, *, half: bool) -> NDArray[np.float64]:
    """The loss of each step of a copy of the model, in float32 or under autocast in bfloat16."""
    trained, batch, labels = copy.deepcopy(model).to(device), batch.to(device), labels.to(device)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-3)
    losses = []
    for _ in range(TRAINING_STEPS):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            loss = functional.cross_entropy(trained(batch).logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def test_training_in_mixed_precision_goes_as_on_the_cpu_in_float32() -> None:
    for package in ("pydantic", "h5py"):
        pytest.importorskip(package, reason=f"the models need {package}; the test below trains without")
    from wsi2d.data.bags import GridBag, collate
    from wsi2d.models.registry import build_model

    rng = np.random.default_rng(7)
    bags, labels = [], torch.arange(12) % 2
    for k, label in enumerate(labels.tolist()):
        rows, cols = (int(n) for n in rng.integers(5, 20, size=2))
        index = np.argwhere(rng.random((rows, cols)) < 0.8)
        features = rng.normal(size=(len(index), 8)).astype(np.float32)
        features[: len(features) // 3, 0] += 3.0 * label
        bags.append(GridBag(f"bag-{k}", torch.from_numpy(features), torch.from_numpy(index), (rows, cols)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        section = {"name": "mamba2d-mil", "dim": 32, "state": 8, "attention_dim": 16, "dropout": 0.0}
        model = build_model(section | {"standardise": False}, in_dim=8, out_dim=2)
    on_cpu = train(model, collate(bags), labels, torch.device("cpu"), half=False)
    for half in (False, True):
        losses = train(model, collate(bags), labels, DEVICE, half=half)
        assert np.abs(losses - on_cpu).max() <= LOSS_TOLERANCE, f"half: {half}"
        for curve in (losses, on_cpu):
            assert curve[-5:].max() < curve[0] / 2


class SmallModel(nn.Module):
    """Scans of a grid and its mirror image between linear layers; it needs torch and the folder `kernels/` alone."""

    def __init__(self, features: int, dim: int, state: int) -> None:
        super().__init__()
        self.into, self.steps = nn.Linear(features, 2 * dim), nn.Linear(dim, dim)
        self.drives, self.answer = nn.Linear(dim, 2 * state), nn.Linear(dim, 2)
        self.log_A = nn.Parameter(torch.arange(1, state + 1).float().log().repeat(dim, 1))
        self.D = nn.Parameter(torch.ones(dim))

    def forward(self, grid: Tensor) -> Tensor:
        u, z = self.into(grid).chunk(2, -1)
        total = torch.zeros_like(u)
        for axes in ((), (1, 2)):
            read, gate = u.flip(axes), z.flip(axes)
            B, C = self.drives(read).chunk(2, -1)
            A, steps = -self.log_A.exp(), self.steps(read) - 2
            total = total + selective_scan_2d(read, steps, A, B, C, self.D, gate, delta_softplus=True).flip(axes)
        answer: Tensor = self.answer(total.mean((1, 2)))
        return answer


def test_training_without_the_rest_of_the_library_goes_as_on_the_cpu_in_float32() -> None:
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(12) % 2
    grids = torch.randn(12, 6, 9, 8, generator=generator)
    grids[:, :3, :, 0] += 3.0 * labels[:, None, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = SmallModel(8, 16, 4)

    def losses(device: torch.device, *, half: bool) -> NDArray[np.float64]:
        trained, batch, wanted = copy.deepcopy(model).to(device), grids.to(device), labels.to(device)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-3)
        found = []
        for _ in range(TRAINING_STEPS):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                loss = functional.cross_entropy(trained(batch).float(), wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return np.array(found)

    on_cpu = losses(torch.device("cpu"), half=False)
    assert on_cpu[-1] < on_cpu[0] / 2
    for half in (False, True):
        assert np.abs(losses(DEVICE, half=half) - on_cpu).max() <= LOSS_TOLERANCE, f"half: {half}"
