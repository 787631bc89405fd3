"""The benchmarks' own parts: rivals compute what we compute, and a run prints all its lines.

Triton runs in its interpreter here; what it times then means nothing.
"""

import os
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from wsi2d.kernels.check import make_inputs

if os.environ.get("TRITON_INTERPRET", "0") == "0":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """``scan_cuda`` and ``scan_rivals``."""
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("scan_cuda", "scan_rivals"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import scan_cuda  # type: ignore[import-not-found]
    import scan_rivals  # type: ignore[import-not-found]

    return scan_cuda, scan_rivals


def positive_inputs(size: tuple[int, int, int, int, int]) -> list[torch.Tensor]:
    u, delta, A, B, C, *_ = make_inputs("selective", size).values()
    return [u, delta.exp(), A, B, C]


@pytest.mark.parametrize("size", [(1, 3, 5, 2, 4), (2, 7, 4, 3, 2), (1, 4, 4, 2, 1)])
def test_the_published_structure_computes_the_scan(
    size: tuple[int, int, int, int, int], modules: tuple[ModuleType, ModuleType]
) -> None:
    from wsi2d.kernels.scan2d import selective_scan_2d

    u, delta, A, B, C = positive_inputs(size)
    first = [t.permute(0, 3, 1, 2).contiguous() for t in (u, delta, B, C)]
    got = modules[1].published(first[0], first[1], A, first[2], first[3], rows=4, columns=4).permute(0, 2, 3, 1)
    torch.testing.assert_close(got, selective_scan_2d(u, delta, A, B, C, backend="torch"), rtol=1e-5, atol=1e-5)


def test_the_sequence_computes_the_scan_of_one_row(modules: tuple[ModuleType, ModuleType]) -> None:
    from wsi2d.kernels.scan2d import selective_scan_2d

    u, delta, A, B, C = positive_inputs((2, 1, 9, 11, 4))
    got = modules[1].sequence(u[:, 0], delta[:, 0], A, B[:, 0], C[:, 0])
    torch.testing.assert_close(got, selective_scan_2d(u, delta, A, B, C, backend="torch")[:, 0], rtol=1e-5, atol=1e-5)


def test_a_run_measures_and_prints_every_case(
    modules: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU and with tiny grids: what needs a GPU to be timed takes a second each."""
    cuda, rivals = modules
    published = rivals.published
    monkeypatch.setattr(rivals, "published", lambda *tensors: published(*tensors, rows=4, columns=4))
    for name, value in {"DEVICE": "cpu", "DIM": 8, "STATE": 2, "SIZES": (3, 512), "BATCHES": ((2, 3),)}.items():
        monkeypatch.setattr(cuda, name, value)
    original = cuda.Scan
    monkeypatch.setattr(cuda, "Scan", lambda scan, batch, size, dtype: original(scan, batch, min(size, 5), dtype))

    def second(call: cuda.Call, rounds: int) -> float:  # type: ignore[name-defined]
        call()
        return 1.0

    monkeypatch.setattr(cuda, "seconds", second)
    monkeypatch.setattr(cuda, "replayed", second)
    monkeypatch.setattr(cuda, "measure", lambda rounds: cuda.Machine(1e6, 1e3))
    monkeypatch.setattr(original, "memory", lambda self: 0.2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    measured = cuda.run(Namespace(rounds=1, quick=False))
    assert len(measured["times"]) == 3 * 2 * 2 * 2
    assert {row["part"] for row in measured["times"]} == {"forward", "forward + backward"}
    assert len(measured["memory"]) == 4
    assert [rival["than_published"] for rival in measured["against_rivals"]] == [1.0] * 4
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith(("selective", "wavefront"))]) == 24 + 4 + 4
