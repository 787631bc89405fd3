"""`benchmarks/models.py`: what it measures, prints and leaves out, on slides of a few patches."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "models.py"

pytestmark = [
    pytest.mark.skipif(not SCRIPT.exists(), reason="the benchmarks are not here: these tests run away from a checkout"),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("benchmark_models", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("patches", "share"), [(2, 0.5), (9, 0.5), (100, 1.0), (50, 0.01)])
def test_slides_hold_the_patches_they_are_asked_for(benchmark: ModuleType, patches: int, share: float) -> None:
    batch = benchmark.make_bag(patches, share, 4)
    assert batch.features.shape == (patches, 4)
    assert len(torch.unique(batch.index, dim=0)) == patches
    side = int(batch.shapes[0, 0])
    assert side * side >= patches
    assert patches / side**2 == pytest.approx(share, rel=0.4, abs=0.3 / patches)


def test_peaks_are_of_the_call_alone(benchmark: ModuleType) -> None:
    before = torch.ones(2**22)
    held = benchmark.peak_megabytes(lambda: torch.ones(2**24).sum() + before.sum())
    assert held == pytest.approx(2**26 / 1e6, rel=0.15)


def options_of(benchmark: ModuleType, *arguments: str) -> Any:
    return benchmark.parse(["--threads", "1", "--rounds", "1", "--in-dim", "6", *arguments])


def test_a_run_measures_each_model_at_each_size(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchmil.models", reason="torchmil is not installed: pip install 'wsi2d[baselines]'")

    def here(name: str, patches: int, options: Any) -> dict[str, Any]:
        given = {"rounds": 1, "share": options.share, "in_dim": options.in_dim, "clock": options.clock}
        row: dict[str, Any] = benchmark.measure(name, patches, **given)
        return row

    monkeypatch.setattr(benchmark, "in_a_process", here)
    names = ["mamba2d-mil", "mean", "torchmil:transmil"]
    result = benchmark.run(options_of(benchmark, "--models", ",".join(names), "--cells", "30,12"))
    assert [(row["patches"], row["model"]) for row in result["measured"]] == [(n, m) for n in (12, 30) for m in names]
    assert all(row["forward_s"] > 0 and row["forward_backward_s"] > 0 for row in result["measured"])
    assert set(result["weights"]) == set(names)
    assert result["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "12 patches on 25 cells" in printed
    assert printed.count("(1.00×)") == 8, "TransMIL's own ratios"
    assert json.loads(json.dumps(result)) == result


def test_what_would_take_too_long_is_left_out(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the growth between the last two sizes: with the square here."""

    def quadratic(name: str, patches: int, options: Any) -> dict[str, Any]:
        seconds = 1e-6 * patches**2
        keys = ("forward_s", "forward_backward_s", "forward_mb", "forward_backward_mb")
        return {"model": name, "patches": patches, "cells": 2 * patches, **dict.fromkeys(keys, seconds)}

    monkeypatch.setattr(benchmark, "in_a_process", quadratic)
    asked = options_of(benchmark, "--models", "mean", "--cells", "1000,2000,4000,20000", "--limit-s", "40")
    assert [row["patches"] for row in benchmark.run(asked)["measured"]] == [1000, 2000, 4000]
    assert "mean: not measured at 20,000 patches, it would take about 800 s" in capsys.readouterr().out


KEYS = ("forward_s", "forward_backward_s", "forward_mb", "forward_backward_mb")


def measured_by(taken: list[tuple[str, int]], value: Callable[[str, int], float]) -> Callable[..., dict[str, Any]]:
    """Stands in for a measurement: each takes what ``value`` says of model and patches, and is noted."""

    def measure(name: str, patches: int, options: Any) -> dict[str, Any]:
        taken.append((name, patches))
        return {"model": name, "patches": patches, "cells": patches, **dict.fromkeys(KEYS, value(name, len(taken)))}

    return measure


def test_models_take_turns_and_the_fastest_counts(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, int]] = []
    monkeypatch.setattr(benchmark, "in_a_process", measured_by(taken, lambda name, number: 1 / number))
    result = benchmark.run(options_of(benchmark, "--models", "mean,max", "--cells", "10,20", "--turns", "2"))
    assert taken == [(name, n) for n in (10, 20) for _ in range(2) for name in ("mean", "max")]
    first = result["measured"][0]
    assert (first["model"], first["turns"]) == ("mean", 2)
    assert (first["forward_s"], first["forward_mb"]) == (1 / 3, 1), "the least of times, the most of memory"


def test_a_run_goes_on_where_its_file_ends(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: list[tuple[str, int]] = []
    given = ["--models", "mean,max", "--cells", "10,20", "--json", str(tmp_path / "a.json")]

    class StoppedError(Exception):
        pass

    def until_the_third(name: str, patches: int, options: Any) -> dict[str, Any]:
        if len(taken) == 3:
            raise StoppedError
        return measured_by(taken, lambda name, number: 1.0)(name, patches, options)

    monkeypatch.setattr(benchmark, "in_a_process", until_the_third)
    with pytest.raises(StoppedError):
        benchmark.run(options_of(benchmark, *given))
    assert len(json.loads((tmp_path / "a.json").read_text("utf-8"))["measured"]) == 3
    monkeypatch.setattr(benchmark, "in_a_process", measured_by(taken, lambda name, number: 1.0))
    result = benchmark.run(options_of(benchmark, *given))
    assert taken == [(name, n) for n in (10, 20) for name in ("mean", "max")]
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == result
    with pytest.raises(SystemExit, match=r"was measured with share 0\.5, not 0\.25; name another"):
        benchmark.run(options_of(benchmark, *given, "--share", "0.25"))


def test_what_needs_too_much_memory_is_left_out_and_said(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By how it grew, or because it asked for more; the others go on."""

    def measure(name: str, patches: int, options: Any) -> dict[str, Any] | None:
        megabytes = 1e-3 * patches**2 if name == "mean" else 1.0
        row = {"model": name, "patches": patches, "cells": patches, **dict.fromkeys(KEYS, 1.0)}
        return None if name == "max" and patches > 1000 else {**row, "forward_backward_mb": megabytes}

    monkeypatch.setattr(benchmark, "in_a_process", measure)
    asked = options_of(benchmark, "--models", "mean,max,abmil", "--cells", "1000,2000,8000", "--turns", "2")
    result = benchmark.run(asked)
    measured = {(row["model"], row["patches"]) for row in result["measured"]}
    assert measured == {("mean", 1000), ("mean", 2000), ("max", 1000)} | {("abmil", n) for n in (1000, 2000, 8000)}
    assert [(left["model"], left["patches"]) for left in result["left_out"]] == [
        ("max", 2000), ("mean", 8000), ("max", 8000),
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "mean: not measured at 8,000 patches, it would need about 64 GB" in printed
    assert "max: not measured at 2,000 patches, it needs more than 12 GB" in printed


@pytest.fixture
def growth(benchmark: ModuleType) -> ModuleType:
    """`benchmarks/growth.py`, which makes a table of what was measured."""
    return importlib.import_module("growth")


def growing(name: str, power: float) -> list[dict[str, Any]]:
    """A model that takes patches^power microseconds, and a second more at 1,000 patches."""
    sizes = (1000, 3000, 10_000, 30_000)
    return [
        {"model": name, "patches": n, **dict.fromkeys(KEYS, 1e-6 * n**power + (n == 1000))} for n in sizes
    ]  # fmt: skip


def test_exponents_are_those_of_growth(growth: ModuleType, tmp_path: Path) -> None:
    rows = growing("mean", 1) + growing("torchmil:transmil", 1.5) + growing("max", 2)[:2]
    result = {"weights": {"mean": 1, "max": 1, "torchmil:transmil": 1}, "yardstick": "torchmil:transmil"}
    result |= {"measured": rows, "left_out": []}
    head, _, *lines = growth.table(result, 3000)
    cells = {line.split(" | ")[0].strip("| `"): line.strip("| ").split(" | ") for line in lines}
    assert len(head.split("|")) == len(lines[0].split("|"))
    assert cells["mean"][6:] == ["n^1.00", "n^1.00"]
    assert cells["torchmil:transmil"][3:] == ["1.00", "5.2", "1.00", "n^1.50", "n^1.50"]
    assert cells["max"][1] == "3,000", "the largest that was measured"
    assert cells["max"][6:] == ["–", "–"], "one size tells no growth"
    assert float(cells["mean"][3]) == pytest.approx(30_000**-0.5, abs=0.005)
    growth.draw(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_names_that_are_not_there(benchmark: ModuleType) -> None:
    with pytest.raises(SystemExit, match="model 'meen' is unknown; there are mamba2d-mil, "):
        benchmark.run(options_of(benchmark, "--models", "meen"))


@pytest.mark.slow
def test_a_process_that_asks_for_too_much_memory(benchmark: ModuleType) -> None:
    assert benchmark.in_a_process("mean", 2_000_000, options_of(benchmark, "--memory-gb", "0.9")) is None


@pytest.mark.slow
def test_a_process_of_its_own(benchmark: ModuleType) -> None:
    row = benchmark.in_a_process("mean", 20, options_of(benchmark))
    assert (row["model"], row["patches"]) == ("mean", 20)
    with pytest.raises(SystemExit, match="meen, 20 patches: ended with 1"):
        benchmark.in_a_process("meen", 20, options_of(benchmark))
