"""Parts of the GPU kernels and their host: the order of tiles, memory that is kept, tilings and what is remembered."""

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET", "0") == "0":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)
triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402 - triton may be missing

from wsi2d.kernels import loops  # noqa: E402
from wsi2d.kernels.check import make_inputs  # noqa: E402
from wsi2d.kernels.gpu import host, tuning  # noqa: E402
from wsi2d.kernels.gpu.tiles import tile_of  # noqa: E402
from wsi2d.kernels.gpu.tuning import Tiling, candidates  # noqa: E402
from wsi2d.kernels.scan2d import selective_scan_2d  # noqa: E402

H200 = torch.device("cuda", 0)


@triton.jit
def _order(out, down, across, REVERSE: tl.constexpr):
    for number in range(down * across):
        row, column = tile_of(number, down, across, REVERSE)
        tl.store(out + number, row * across + column)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("down", "across"), [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (5, 3), (6, 6), (4, 13), (13, 2)])
def test_tiles_come_along_anti_diagonals(down: int, across: int, reverse: bool) -> None:
    out = torch.zeros(down * across, dtype=torch.int32)
    _order[(1,)](out, down, across, reverse)
    wanted = sorted(range(down * across), key=lambda tile: (tile // across + tile % across, tile // across))
    assert out.tolist() == (wanted[::-1] if reverse else wanted)


@pytest.mark.parametrize(("dim", "state"), [(8, 4), (8, 1), (16, 8)])
def test_a_transposed_matrix_of_rates_is_read_right(dim: int, state: int) -> None:
    """Nothing has to be filled up here, and a copy in its own order of memory would be taken for the other one."""
    inputs = make_inputs("selective", (1, 2, 3, dim, state))
    wanted = selective_scan_2d(**inputs, delta_softplus=True, backend="torch")
    inputs["A"] = inputs["A"].t().contiguous().t()
    assert dim == 1 or state == 1 or not inputs["A"].is_contiguous()
    torch.testing.assert_close(selective_scan_2d(**inputs, delta_softplus=True, backend="triton"), wanted)


@pytest.mark.parametrize("scan", ["selective", "wavefront"])
def test_gradients_lie_in_memory_as_the_operator_says(scan: str) -> None:
    inputs = make_inputs(scan, (1, 2, 3, 6, 5))
    tensors = list(inputs.values())
    grad_out = torch.randn_like(tensors[0])
    if scan == "selective":
        grads = host.selective_backward(grad_out, *tensors, True)
    else:
        grads = host.wavefront_backward(grad_out, *tensors)
    for name, tensor, grad in zip(inputs, tensors, grads, strict=True):
        assert grad is not None
        assert grad.is_contiguous(), name
        assert grad.shape == tensor.shape
    places = [grad.untyped_storage().data_ptr() for grad in grads if grad is not None]
    assert len(set(places)) == len(places), "no two share memory"


@pytest.mark.parametrize("scan", ["selective", "wavefront"])
def test_channels_in_several_launches_give_the_same(scan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(scan, (2, 5, 6, 19, 3))
    tensors = [t.double() for t in inputs.values()]
    grad_out = torch.randn(2, 5, 6, 19)
    monkeypatch.setattr(host, "_kept_bytes", lambda *arguments: 1)  # a block of channels each
    if scan == "selective":
        got = host.selective_backward(grad_out, *inputs.values(), True)
        wanted = loops.selective_backward(grad_out.double(), *tensors, True)
    else:
        got = host.wavefront_backward(grad_out, *inputs.values())
        wanted = loops.wavefront_backward(grad_out.double(), *tensors)
    for name, a, b in zip(inputs, got, wanted, strict=True):
        assert a is not None
        assert b is not None
        assert (a.double() - b).norm() < 5e-6 * b.norm(), name


@pytest.mark.parametrize("scan", ["selective", "wavefront"])
def test_borders_of_one_launch_are_gone_before_the_next(scan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = list(make_inputs(scan, (1, 2, 5, 17, 2)).values())
    made: list[weakref.ref[host._Borders]] = []
    alive: list[int] = []
    launch = host._launch

    class Counted(host._Borders):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(weakref.ref(self))

    def counting(*arguments: Any) -> None:
        alive.append(sum(borders() is not None for borders in made))
        launch(*arguments)

    monkeypatch.setattr(host, "_kept_bytes", lambda *arguments: 1)  # a block of channels each
    monkeypatch.setattr(host, "_Borders", Counted)
    monkeypatch.setattr(host, "_launch", counting)
    grad_out = torch.randn_like(inputs[0])
    if scan == "selective":
        host.selective_backward(grad_out, *inputs, True)
    else:
        host.wavefront_backward(grad_out, *inputs)
    assert len(made) == 3
    assert alive == [1] * 6, "two launches each"


@pytest.mark.parametrize(("height", "dtype", "with_gate"), [
    (512, torch.float32, False), (512, torch.float32, True), (1024, torch.float32, False), (1024, torch.bfloat16, True),
])  # fmt: skip
def test_a_backward_keeps_less_than_a_quarter_of_its_arguments(
    height: int, dtype: torch.dtype, with_gate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted for a GPU of 132 multiprocessors."""
    monkeypatch.setattr(host, "_most_programs", lambda device, reverse: 132 * 8)
    size, state = torch.Size((1, height, height, 256)), 16
    with torch.device("meta"):
        grid, of_states = torch.empty(size, dtype=dtype), torch.empty((1, height, height, state), dtype=dtype)
    arguments = [grid] * (3 if with_gate else 2) + [of_states] * 2
    for tiling in candidates("backward", height, height, state):
        kept = host._kept_bytes(arguments, of_states, 2, state, tiling)
        (cut, *_) = host._chunks(size, state, tiling, kept)
        borders = 4 * state * cut.carried * (cut.across * height + cut.down * height)
        scratch = 4 * 132 * 8 * tiling.rows * tiling.columns * tiling.channels * state
        sums = 0 if dtype == torch.float32 else 2 * 4 * of_states.numel()
        assert borders <= kept
        assert borders + scratch + sums <= sum(t.numel() * t.element_size() for t in arguments) / 4


# --- tilings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("state", [1, 4, 16, 64, 256])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4096), (14, 14), (200, 200), (1024, 1024)])
def test_tilings_fit_registers_and_lanes(part: str, state: int, height: int, width: int) -> None:
    for tiling in candidates(part, height, width, state):
        of_thread = max(1, tuning.power_of_two(state) * tiling.channels // (32 * tiling.warps))
        columns, beside = tuning._HELD[part]
        assert of_thread * (columns * tiling.columns + beside) <= tuning._REGISTERS or tiling == tuning._SMALLEST[-1]
        assert tiling.warps == 1, "more warps would each hold all of a small tile"


def test_tilings_suit_the_grid() -> None:
    assert Tiling(8, 8, 8, 1) in candidates("forward", 200, 200, 16)
    assert all(tiling.rows < 8 for tiling in candidates("forward", 2, 2, 16))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where tilings of a GPU that is not here are kept."""
    path = tmp_path / "deep" / "tilings.json"
    monkeypatch.setattr(tuning, "_file", lambda device: path)
    tuning._known.cache_clear()
    yield path
    tuning._known.cache_clear()


def test_what_was_measured_is_remembered_with_what_others_measured(file: Path) -> None:
    known = tuning._known(H200)
    assert known == {}
    known["a"] = Tiling(8, 8, 8, 1)
    tuning._keep(H200, known)
    tuning._known.cache_clear()  # another process
    other = tuning._known(H200)
    assert other == {"a": Tiling(8, 8, 8, 1)}
    other["b"] = Tiling(4, 4, 8, 1)
    tuning._keep(H200, other)
    known["c"] = Tiling(8, 4, 8, 1)
    tuning._keep(H200, known)
    assert set(tuning._read(H200)) == {"a", "b", "c"}
    assert [p.name for p in file.parent.iterdir()] == ["tilings.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 5}', '{"a": [1, 2]}', '{"a": ["x", 1, 1, 1]}'])
def test_a_damaged_memory_is_forgotten(text: str, file: Path) -> None:
    file.parent.mkdir()
    file.write_text(text)
    assert tuning._known(H200) == {}


def test_a_folder_that_cannot_be_written_is_no_error(file: Path) -> None:
    file.parent.write_text("a file")
    tuning._keep(H200, {"a": Tiling(8, 8, 8, 1)})
    assert tuning._known(H200) == {}
