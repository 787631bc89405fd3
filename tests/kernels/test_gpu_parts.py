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
from torch.utils import _pytree as pytree  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from wsi2d.kernels import loops  # noqa: E402
from wsi2d.kernels.check import make_inputs  # noqa: E402
from wsi2d.kernels.gpu import host, tuning  # noqa: E402
from wsi2d.kernels.gpu.tiles import tile_of  # noqa: E402
from wsi2d.kernels.gpu.tuning import Tiling, candidates  # noqa: E402
from wsi2d.kernels.scan2d import selective_scan_2d, wavefront_scan_2d  # noqa: E402

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
    inputs = list(make_inputs(scan, (1, 2, 5, 9, 2)).values())
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


@pytest.mark.parametrize("scan", ["selective", "wavefront"])
@pytest.mark.parametrize(("size", "tiling"), [
    ((1, 1, 18, 5, 3), Tiling(1, 16, 4, 1)), ((2, 1, 18, 5, 3), Tiling(1, 8, 4, 1)),
    ((1, 9, 1, 5, 3), Tiling(8, 4, 8, 1)),
    pytest.param((1, 17, 9, 3, 2), Tiling(16, 8, 2, 1), marks=pytest.mark.slow),
], ids=str)  # fmt: skip
def test_other_tilings_give_the_same(
    scan: str, size: tuple[int, int, int, int, int], tiling: Tiling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one row, of one column, and of large grids."""
    inputs = make_inputs(scan, size)
    tensors = [t.double() for t in inputs.values()]
    grad_out = torch.randn(size[:4])
    monkeypatch.setattr(host, "choose", lambda *arguments: tiling)
    if scan == "selective":
        got = [host.selective_forward(*inputs.values(), True)]
        got += host.selective_backward(grad_out, *inputs.values(), True)
        wanted = [selective_scan_2d(*tensors, delta_softplus=True, backend="torch")]
        wanted += loops.selective_backward(grad_out.double(), *tensors, True)
    else:
        got = [host.wavefront_forward(*inputs.values()), *host.wavefront_backward(grad_out, *inputs.values())]
        wanted = [wavefront_scan_2d(*tensors, backend="torch")]
        wanted += loops.wavefront_backward(grad_out.double(), *tensors)
    for name, a, b in zip(("output", *inputs), got, wanted, strict=True):
        assert a is not None
        assert b is not None
        assert (a.double() - b).norm() <= 5e-6 * b.norm(), name


class Beside(TorchDispatchMode):
    """Counts the bytes of all tensors made within, on a device that holds none."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, address: int, size: int) -> None:
        self.seen.discard(address)
        self.now -= size


def peak(
    scan: str, size: tuple[int, int, int, int], state: int, dtype: torch.dtype, with_gate: bool
) -> tuple[int, int]:
    """The most bytes that a backward holds beside arguments and results, and the bytes of the arguments."""
    with torch.device("meta"):
        grid = lambda count: torch.empty((*size[:3], count), dtype=dtype)  # noqa: E731
        A, line = torch.empty(size[3], state), torch.empty(size[3])
        u, delta, other, B, C, B_l = (grid(n) for n in (size[3], size[3], size[3], state, state, state))
        q = grid(size[3])
    gate = other if with_gate else None
    cells = [t for t in (u, delta, B, C) if t is not None]
    cells += [] if not with_gate and scan == "selective" else [other]
    cells += [B_l] if scan == "wavefront" else []
    with Beside() as beside:
        if scan == "selective":
            tensors: list[torch.Tensor | None] = [u, delta, A, B, C, line, gate, line]
            grads = host.selective_backward(q, *tensors, True)  # type: ignore[arg-type]
        else:
            tensors = [u, delta, other, A, A, B, B_l, C, line]
            grads = host.wavefront_backward(q, *tensors)  # type: ignore[arg-type]
        pairs = zip(grads, tensors, strict=True)
        results = [g.to(t.dtype) for g, t in pairs if g is not None and t is not None]  # as the operator does
        del grads
    return beside.most - sum(t.nbytes for t in results), sum(t.nbytes for t in cells)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 132 multiprocessors and 141 GB, without running anything."""
    monkeypatch.setattr(host, "_most_programs", lambda device, reverse: 132 * (8 if reverse else 12))
    monkeypatch.setattr(host, "_memory", lambda device: 141 * 10**9)
    monkeypatch.setattr(host, "_launch", lambda *arguments: None)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("scan", ["selective", "wavefront"])
@pytest.mark.parametrize("with_gate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("height", [512, 700, 1024])
def test_a_backward_keeps_less_than_a_quarter_of_its_arguments(
    height: int, dtype: torch.dtype, with_gate: bool, scan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor counted that is held at one time, for each tiling that may be chosen."""
    for tiling in candidates("backward", height, height, 16):
        monkeypatch.setattr(host, "choose", lambda *of, tiling=tiling: tiling)
        beside, arguments = peak(scan, (1, height, height, 256), 16, dtype, with_gate)
        assert beside <= arguments / 4 - 2 * 2**20, f"{tiling}: {beside / arguments:.3f}"


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "size", [(1, 200, 200, 256), (1, 256, 256, 256), (64, 56, 56, 256), (1, 1, 40000, 256)], ids=str
)
def test_a_backward_of_a_smaller_grid_takes_no_more_than_is_free_to_it(
    size: tuple[int, int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = []
    chunks = host._chunks

    def watched(*arguments: Any) -> list[host._Cut]:
        cuts[:] = chunks(*arguments)
        return cuts

    monkeypatch.setattr(host, "_chunks", watched)
    for tiling in candidates("backward", size[1], size[2], 16):
        monkeypatch.setattr(host, "choose", lambda *of, tiling=tiling: tiling)
        assert peak("selective", size, 16, dtype, False)[0] <= host._FREELY
        assert len(cuts) == 1 or tiling != candidates("backward", *size[1:3], 16)[0] or size[0] > 1, "one launch"


@pytest.mark.usefixtures("as_on_a_gpu", "restore_determinism")
def test_sums_of_each_block_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(host, "choose", lambda *of: Tiling(8, 4, 4, 1))
    beside, arguments = peak("selective", (1, 1024, 1024, 256), 16, torch.float32, False)
    assert beside <= arguments / 4


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_grid_of_one_row_keeps_nothing_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    empty = host._empty
    monkeypatch.setattr(host, "_empty", lambda *shape, device: shapes.append(shape) or empty(*shape, device=device))
    peak("selective", (1, 1, 4096, 256), 16, torch.float32, False)
    of_columns = [shape for shape in shapes if len(shape) == 5 and 4096 in shape]
    assert of_columns, "borders between tile rows"
    assert all(shape[0] == 0 for shape in of_columns)


@pytest.mark.parametrize("scan", ["selective", "wavefront"])
def test_where_memory_is_short_a_backward_takes_less(scan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = list(make_inputs(scan, (1, 2, 5, 9, 2)).values())
    grad_out = torch.randn_like(inputs[0])
    launch, refused = host._launch, [0]

    def short(*arguments: Any) -> None:
        if arguments[1].carried > 8:
            refused[0] += 1
            raise torch.cuda.OutOfMemoryError
        launch(*arguments)

    def gradients() -> list[torch.Tensor | None]:
        if scan == "selective":
            return host.selective_backward(grad_out, *inputs, True)
        return host.wavefront_backward(grad_out, *inputs)

    want = gradients()
    monkeypatch.setattr(host, "_launch", short)
    for a, b in zip(gradients(), want, strict=True):
        torch.testing.assert_close(a, b)
    assert refused[0] == 3


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
    assert Tiling(8, 8, 4, 1) in candidates("forward", 200, 200, 16)
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
