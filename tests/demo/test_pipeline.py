"""The demo end to end, small; and that a model blind to position has nothing to go by."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wsi2d.config import ExtractConfig, PatchConfig
from wsi2d.demo import cohort
from wsi2d.demo.cohort import make_demo_cohort
from wsi2d.demo.painting import CELL_PX, MPP
from wsi2d.demo.pipeline import DemoProgress, run_demo
from wsi2d.errors import SplitError
from wsi2d.features.extract import extract
from wsi2d.features.histology_stats import feature_names
from wsi2d.features.store import feature_path, read_features
from wsi2d.slides.discovery import find_slides


class Told(DemoProgress):
    """What is told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.slides = 0

    def step(self, title: str) -> None:
        self.steps.append(title)

    def slides_made(self) -> None:
        self.slides += 1


@pytest.mark.slow
def test_demo_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "_CELLS_A_SIDE", (8, 9))
    told = Told()
    report = run_demo(tmp_path, slides=16, seed=2, folds=3, progress=told)
    assert told.slides == 16
    assert told.steps[0] == "painting 16 slides"
    assert len([step for step in told.steps if step.startswith("training")]) == 5
    assert [row.run for row in report.rows] == ["mamba2d-mil", "no-scan", "one-row", "abmil", "survival"]
    for row in report.rows:
        assert row.folder == tmp_path / "runs" / row.run
        metrics = json.loads((row.folder / "metrics.json").read_text("utf-8"))
        assert metrics["slides"] == 16
        assert len(row.summary.per_fold) == 3
        assert row.metric == ("c_index" if row.run == "survival" else "auc")
        assert metrics["metrics"][row.metric]["pooled"] == row.summary.pooled
        assert (tmp_path / f"{row.run}.yaml").is_file(), "a configuration that a user can change"
    assert 0.5 < report.arrangement_c_index <= 1
    assert len(report.heatmaps) == 4
    for path in report.heatmaps:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
    truth = pd.read_csv(tmp_path / "cohort.csv").set_index("slide_id")["arrangement"]
    drawn = [path.stem.rpartition("-") for path in report.heatmaps]
    assert [truth[slide_id] for slide_id, _, _ in drawn] == [kind for _, _, kind in drawn]
    assert sorted(kind for _, _, kind in drawn) == ["nest", "nest", "scattered", "scattered"]

    # Again: nothing that is finished is done again, and it says the same.
    files = [p for p in tmp_path.rglob("*") if p.suffix in {".tiff", ".h5", ".safetensors"}]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = run_demo(tmp_path, slides=16, seed=2, folds=3)
    assert again == report
    assert {path: path.stat().st_mtime_ns for path in files} == before

    # Controls are what they say: no scan parameters, one row, no grid at all.
    from wsi2d.training.run import open_run

    models = {run: open_run(tmp_path / "runs" / run).config.model for run in ("mamba2d-mil", "no-scan", "one-row")}
    base = models["mamba2d-mil"]
    assert models["no-scan"] == {**base, "scan": False}
    assert models["one-row"] == {**base, "layout": "row"}


def test_too_many_folds_are_refused_before_the_work(small_slides: None, tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="use fewer folds"):
        run_demo(tmp_path, slides=14, folds=9)
    assert not (tmp_path / "features").exists()


def auc_of(features: np.ndarray, labels: np.ndarray) -> float:
    """AUC of logistic regression, out of fold, over several ways to cut folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    found = []
    for seed in range(5):
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        scores = cross_val_predict(model, features, labels, cv=folds, method="decision_function")
        found.append(roc_auc_score(labels, scores))
    return float(np.mean(found))


@pytest.mark.slow
def test_a_blind_statistic_has_nothing_to_go_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each slide's patches as a heap: mean, spread, extremes, number. Where they lie tells at once."""
    monkeypatch.setattr(cohort, "_CELLS_A_SIDE", (11, 13))
    made = make_demo_cohort(tmp_path, slides=60, seed=201)
    config = ExtractConfig(patch=PatchConfig(patch_px=CELL_PX, mpp=MPP))
    extract(find_slides([made.slides]), tmp_path / "features", config)
    with made.table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # One slide a patient: the second is of the same class, and would be told by its patient.
    rows = [row for row in rows if row["slide_id"].endswith("A")]
    labels = np.array([row["arrangement"] == "nest" for row in rows])
    bags = [read_features(feature_path(tmp_path / "features", row["slide_id"])) for row in rows]
    heaps = {
        "mean": np.array([b.features.mean(0) for b in bags]),
        "spread": np.array([b.features.std(0) for b in bags]),
        "extremes": np.array([np.percentile(b.features, (2, 50, 98), axis=0).ravel() for b in bags]),
        "number": np.array([[len(b.grid), *b.grid.shape] for b in bags]),
    }
    found = {name: auc_of(values, labels) for name, values in heaps.items()}
    assert all(value < 0.7 for value in found.values()), found

    dab = feature_names().index("stain.dab.mean")
    together = []
    for bag in bags:
        grid = np.full(bag.grid.shape, np.nan)
        grid[tuple(bag.grid.index.T)] = bag.features[:, dab]
        middle = np.nanmean(grid)
        pairs = [(grid[1:] - middle) * (grid[:-1] - middle), (grid[:, 1:] - middle) * (grid[:, :-1] - middle)]
        together.append([np.nanmean(np.concatenate([p.ravel() for p in pairs])) / np.nanvar(grid)])
    assert auc_of(np.array(together), labels) > 0.97
