"""The CPU kernels' own parts: the functions of their SIMD layer, processors without AVX-512, threads, the cache."""

import math
import os
import platform
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

numba = pytest.importorskip("numba")

from wsi2d.kernels import scan2d  # noqa: E402 - numba may be missing
from wsi2d.kernels.check import make_inputs  # noqa: E402
from wsi2d.kernels.native import functions, simd  # noqa: E402
from wsi2d.kernels.native.cells import sigmoid, softplus  # noqa: E402
from wsi2d.kernels.native.host import _taken, _Threads  # noqa: E402
from wsi2d.kernels.native.jit import cache_folder  # noqa: E402
from wsi2d.kernels.native.results import Results, aligned  # noqa: E402

SPECIAL = [0.0, -0.0, 1e-30, -1e-30, 80.0, -80.0]


def apply(function: Any, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A function of a vector, of many numbers."""

    @numba.njit(error_model="numpy")
    def run(source: int, target: int, count: int) -> None:
        for at in range(0, count, simd.LANES):
            simd.store(target, at, function(simd.load(source, at)))

    count = -(-len(values) // simd.LANES) * simd.LANES
    source, target = aligned(count), aligned(count)
    source[:] = 0
    source[: len(values)] = values
    run(source.ctypes.data, target.ctypes.data, count)
    return target[: len(values)].copy()


@numba.njit
def _softplus(x: Any) -> Any:
    return softplus(x)[0]


@numba.njit
def _slope(x: Any) -> Any:
    return softplus(x)[1]


@numba.njit
def _exp2(x: Any) -> Any:
    return functions.exp2(x, False)


@numba.njit
def _exp2_of_small(x: Any) -> Any:
    return functions.exp2(x, True)


FUNCTIONS = {
    "exp2": (_exp2, np.exp2, 2e-7, (-100, 100)),
    "exp2 of small ones": (_exp2_of_small, np.exp2, 2e-7, (-125, 125)),
    "exp": (functions.exp, np.exp, 3e-7, (-80, 80)),
    "softplus": (_softplus, lambda x: np.logaddexp(0, x), 4e-7, (-80, 80)),
    "slope of softplus": (_slope, lambda x: np.exp(-np.logaddexp(0, -x)), 4e-7, (-80, 80)),
    "sigmoid": (sigmoid, lambda x: np.exp(-np.logaddexp(0, -x)), 4e-7, (-80, 80)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_close_everywhere(name: str) -> None:
    function, want, tolerance, (low, high) = FUNCTIONS[name]
    values = np.concatenate([np.linspace(low, high, 20_001), np.linspace(-1, 1, 2_001), SPECIAL]).astype(np.float32)
    wanted = want(values.astype(np.float64))
    error = np.abs(apply(function, values) - wanted) / wanted
    assert error.max() < tolerance, values[error.argmax()]
    assert np.isnan(apply(function, np.array([1.0, np.nan], np.float32))).tolist() == [False, True]


def test_exp2_at_the_ends() -> None:
    values = np.array([0, 1, -1, 10, 1e4, -1e4, 1e30, -1e30, np.inf, -np.inf], np.float32)
    got = apply(_exp2, values)
    assert got[:4].tolist() == [1.0, 2.0, 0.5, 1024.0]
    assert (got[[4, 6, 8]] > 1e38).all()
    assert (got[[5, 7, 9]] < 2e-38).all()
    assert (got >= 0).all()


def test_a_kernel_that_asks_for_it_aligns_its_stack() -> None:
    @numba.njit("void(int64)")
    def asks(address: int) -> None:
        simd.align_stack()
        simd.store(address, 0, simd.load(address, simd.LANES))

    @numba.njit("void(int64)")
    def does_not(address: int) -> None:
        simd.store(address, 0, simd.load(address, simd.LANES))

    (asked,), (other,) = asks.inspect_llvm().values(), does_not.inspect_llvm().values()
    assert "alignstack(64)" in asked
    assert "alignstack" not in other


WITHOUT_AVX512 = """
from wsi2d.kernels.check import check_backends
from wsi2d.kernels.native import simd
assert simd.INSTRUCTIONS == "AVX2", simd.INSTRUCTIONS
checks = [check for check in check_backends(timed=False) if check.backend == "native"]
assert [check.ok for check in checks] == [True, True], checks
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 is of x86 processors")
def test_a_processor_without_avx512(tmp_path: Path) -> None:
    features = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_AVX512], env=os.environ | features, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("exponent", [-124.9, -125.1, -126.4, -151.0, -1e4, 8.0])
def test_one_large_step_among_small_ones(
    oracle: ModuleType, harness: ModuleType, operator: Any, exponent: float
) -> None:
    inputs = harness.make_inputs((20, 37), 20, 5, dtype=torch.float32, batch=1, operator=operator, softplus=False)
    for steps, decays in zip(operator.steps, operator.decays, strict=True):
        channel, state = divmod(int(inputs[decays].argmin()), 5)
        inputs[steps][0, 3, 35, channel] = exponent * math.log(2) / inputs[decays][channel, state]
    harness.check(oracle, inputs, softplus=False, backend="native")


@pytest.mark.parametrize("dim", [3, 16, 40])
def test_more_threads_than_channel_blocks_share_the_states(
    oracle: ModuleType, harness: ModuleType, operator: Any, dim: int
) -> None:
    inputs = harness.make_inputs((40, 41), dim, 18, dtype=torch.float32, batch=1, operator=operator)
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        harness.check(oracle, inputs, backend="native")
    finally:
        torch.set_num_threads(before)


def test_the_defaults_of_torch_do_not_reach_the_kernels(harness: ModuleType, operator: Any) -> None:
    inputs = harness.make_inputs((5, 7), 20, 5, dtype=torch.float32, operator=operator)
    grad_out = harness.make_grad(inputs)
    want = harness.run_scan(inputs, grad_out, True, "native")
    torch.set_default_dtype(torch.float64)
    try:
        got = harness.run_scan(inputs, grad_out, True, "native")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got[0], want[0])
    for name, grad in got[1].items():
        assert torch.equal(grad, want[1][name]), name


def test_compiled_kernels_are_kept_by_version_and_where_they_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path / "wsi2d")
    assert cache_folder().name.startswith("scan2d-")
    monkeypatch.setattr("numba.core.config.CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if sys.platform == "linux":
        assert cache_folder().parent == tmp_path / "cache" / "wsi2d"
    other = cache_folder()
    monkeypatch.setattr(numba, "__version__", "0.0")
    assert cache_folder() != other


def test_a_pool_that_grows_loses_no_job() -> None:
    """Callers that want more threads replace the pool under those who are about to use it."""
    threads = _Threads()
    done: list[int] = []

    def call(size: int) -> None:
        for _ in range(50):
            threads.run([partial(done.append, size)] * size)

    with ThreadPoolExecutor(8) as callers:
        for ended in [callers.submit(call, size) for size in range(1, 9)]:
            ended.result()
    assert sorted(done) == [size for size in range(1, 9) for _ in range(50 * size)]


def test_threads_take_what_waits_once_each() -> None:
    waiting, taken = deque(range(5000)), deque[int]()
    _Threads().run([lambda: taken.extend(_taken(waiting))] * 4)
    assert sorted(taken) == list(range(5000))


def test_a_thread_ends_where_another_one_took_the_last() -> None:
    class Emptied(deque[int]):
        def popleft(self) -> int:
            self.clear()
            raise IndexError

    assert list(_taken(Emptied([1]))) == []


# --- memory of results ---------------------------------------------------------------------------------------------

MEBIBYTE = 2**18  # floats


def test_memory_of_a_result_is_used_again_when_its_last_tensor_is_gone() -> None:
    results = Results()
    first = results.empty(2, MEBIBYTE)
    address, part = first.data_ptr(), first[1, 7:].numpy()
    del first
    part[:] = 5
    other = results.empty(2, MEBIBYTE)
    assert other.data_ptr() != address  # an array still reads it
    assert (part == 5).all()
    del part
    again = results.empty(MEBIBYTE, 2)
    assert again.data_ptr() == address
    assert again.shape == (MEBIBYTE, 2)
    assert again.is_contiguous()


def test_memory_is_used_for_results_of_about_its_size() -> None:
    results = Results()
    large = results.empty(4 * MEBIBYTE)
    address = large.data_ptr()
    del large
    assert results.empty(2 * MEBIBYTE).data_ptr() != address
    assert results.empty(5 * MEBIBYTE).data_ptr() != address
    assert results.empty(4 * MEBIBYTE - 100).data_ptr() == address


def test_little_memory_is_kept() -> None:
    results = Results(kept=5 * MEBIBYTE)
    held = [results.empty(2 * MEBIBYTE) for _ in range(6)]
    gone = {tensor.data_ptr() for tensor in held}
    held.clear()
    one = results.empty(16 * MEBIBYTE)  # what lies idle is looked through with every request
    assert len(results._idle) == 2
    assert sum(memory.size for memory in results._idle) <= 5 * MEBIBYTE
    assert {memory.ctypes.data for memory in results._idle} < gone
    del one


def test_results_of_many_threads_do_not_share_memory() -> None:
    results = Results()

    def call(number: int) -> bool:
        right = True
        for k in range(100):
            tensor = results.empty(MEBIBYTE).fill_(number + k)
            right &= bool((tensor == number + k).all())
        return right

    with ThreadPoolExecutor(6) as callers:
        assert all(callers.map(call, range(0, 6000, 1000)))


@pytest.mark.parametrize("scan", ["selective", "wavefront"])
def test_a_scan_writes_all_of_a_result_in_used_memory(scan: str, one_thread: None) -> None:
    inputs = [t.requires_grad_() for t in make_inputs(scan, (1, 41, 53, 131, 3)).values()]
    operator = scan2d.wavefront_scan_2d
    if scan == "selective":
        operator = partial(scan2d.selective_scan_2d, delta_softplus=True)

    def run() -> list[torch.Tensor]:
        out = operator(*inputs, backend="native")
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    first = run()
    wanted = [t.clone() for t in first]
    for tensor in first:
        tensor.detach().fill_(torch.nan)
    addresses = {t.data_ptr() for t in first if t.numel() >= MEBIBYTE}
    del first, tensor
    second = run()
    assert addresses & {t.data_ptr() for t in second}
    assert all(torch.equal(a, b) for a, b in zip(second, wanted, strict=True))
