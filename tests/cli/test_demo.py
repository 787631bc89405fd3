"""`wsi2d demo`: what it asks of the pipeline and what it prints; the pipeline itself has tests of its own."""

import math
from pathlib import Path
from typing import Any

import pytest

from wsi2d.demo import pipeline
from wsi2d.demo.pipeline import DemoProgress, DemoReport, DemoRow
from wsi2d.evaluation.evaluate import MetricSummary
from wsi2d.features.outcomes import SlideOutcome


def test_table(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fake(out: Path, *, slides: int, seed: int, progress: DemoProgress) -> DemoReport:
        asked.update(out=out, slides=slides, seed=seed)
        progress.step(f"painting {slides} slides")
        progress.slides_made()
        progress.step("tissue, patches, features")
        extraction = progress.extraction()
        extraction.slide_started("a", 3)
        extraction.patches_done(3)
        extraction.slide_finished(SlideOutcome("a", Path("a"), "done", 3))
        for name in ("one", "two"):
            progress.step(f"training {name}")
            training = progress.training()
            training.run_started("2 slides [of] 2 patients", 2, 1)
            training.epoch_done(0, {"epoch": 1, "train_loss": 0.5, "val_loss": 0.25})
            training.fold_done(0)
        summaries = [
            MetricSummary((0.9876, 1.0), 0.9938, 0.0088, (0.9, 1.0), 0.9812, (0.91, 0.99)),
            MetricSummary((math.nan, 0.5), 0.5, math.nan, None, 0.4321, (0.25, 0.75)),
        ]
        rows = [DemoRow(n, "what", "auc", s, out) for n, s in zip(("mamba2d-mil", "abmil"), summaries, strict=True)]
        return DemoReport(tuple(rows), 0.7071, (out / "heatmaps" / "P001.png",))

    monkeypatch.setattr(pipeline, "run_demo", fake)
    result = cli("demo --slides 33 --seed 9 --out", tmp_path / "d")
    assert result.code == 0, result.err
    assert asked == {"out": tmp_path / "d", "slides": 33, "seed": 9}
    assert "painting 33 slides" in result.err
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert any(line.startswith("mamba2d-mil 0.99 1.00 0.994 ± 0.009 0.981 [0.910, 0.990]") for line in lines), lines
    assert any(line.startswith("abmil – 0.50 0.500 ± – 0.432 [0.250, 0.750]") for line in lines), lines
    assert "33 slides, seed 9, 2 folds" in result.out
    assert "0.707" in result.out
    assert f"heatmap → {tmp_path / 'd' / 'heatmaps' / 'P001.png'}" in result.out
    assert lines[-1].startswith("done in ")
    too_long = [line for line in result.out.splitlines() if len(line.rstrip()) > 80 and "→" not in line]
    assert not too_long


def test_defaults(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fake(out: Path, **options: Any) -> DemoReport:
        asked.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_demo", fake)
    assert cli("demo --out", tmp_path).code == 130
    assert (asked["slides"], asked["seed"]) == (60, 0)


def test_mistakes(fails: Any, tmp_path: Path) -> None:
    assert "the demo needs at least" in fails("demo --slides 3 --out", tmp_path / "d")
    (tmp_path / "thesis.docx").write_text("years of work")
    assert "is not empty; give another --out" in fails("demo --out", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]
