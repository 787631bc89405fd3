"""The whole pipeline on the demo's cohort: extract, split, train, evaluate, draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from wsi2d.config import ClassificationTask, ExtractConfig, PatchConfig, SurvivalTask
from wsi2d.config_files import load_run_config
from wsi2d.data.cohort import load_cohort
from wsi2d.data.splits import make_splits, write_splits
from wsi2d.demo.cohort import ARRANGEMENTS, DemoCohort, make_demo_cohort
from wsi2d.demo.painting import CELL_PX, MPP
from wsi2d.evaluation.evaluate import Evaluation, MetricSummary
from wsi2d.explain.heatmap import heatmap
from wsi2d.features.extract import extract
from wsi2d.features.outcomes import ExtractProgress
from wsi2d.files import write_text
from wsi2d.slides.discovery import find_slides
from wsi2d.training.crossval import TrainProgress, train

FOLDS = 5
_CLASS_TASK = ClassificationTask(label="arrangement", classes=ARRANGEMENTS)
_SURVIVAL_TASK = SurvivalTask(time="months", event="status=dead", bins=4)
# Name of the run, what it is, and its model on top of the preset.
_CLASS_RUNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("mamba2d-mil", "scans the grid in 2D", {}),
    ("no-scan", "control: no scan, convolution only", {"scan": False}),
    ("one-row", "control: the grid flattened to one row", {"layout": "row"}),
    ("abmil", "attention pooling, blind to position", {"name": "abmil", "dim": 64}),
)
_SURVIVAL_RUN = "survival"


@dataclass(frozen=True)
class DemoRow:
    """One line of the demo's table."""

    run: str
    what: str
    metric: str
    summary: MetricSummary
    folder: Path


@dataclass(frozen=True)
class DemoReport:
    """What the demo found.

    Attributes:
        rows: one a run: four classifiers, then survival.
        arrangement_c_index: C-index of knowing the arrangement alone.
        heatmaps: the four pictures.
    """

    rows: tuple[DemoRow, ...]
    arrangement_c_index: float
    heatmaps: tuple[Path, ...]


class DemoProgress:
    """Told what happens; the base class says nothing."""

    def step(self, title: str) -> None:
        """A new part of the pipeline begins."""

    def slides_made(self) -> None:
        """One more slide of the cohort is written."""

    def extraction(self) -> ExtractProgress:
        """Whom the extraction tells."""
        return ExtractProgress()

    def training(self) -> TrainProgress:
        """Whom a training tells."""
        return TrainProgress()


def run_demo(
    out: Path | str, *, slides: int = 60, seed: int = 0, folds: int = FOLDS, progress: DemoProgress | None = None
) -> DemoReport:
    """Make the demo's cohort and take it through everything; what is finished is not done again.

    Args:
        out: folder; gets ``slides/``, ``cohort.csv``, ``features/``, ``splits/``, a configuration and a run folder a
            model, and ``heatmaps/``.
        slides: how many, at least 14.
        seed: of the cohort, the splits and the trainings.
        folds: of the cross-validations.
        progress: told what happens.

    Raises:
        ConfigError: too few slides.
        SplitError: too few patients for that many folds.
        Wsi2dError: the folder holds something else.
    """
    out, progress = Path(out), progress or DemoProgress()
    progress.step(f"painting {slides} slides")
    cohort = make_demo_cohort(out, slides=slides, seed=seed, on_slide=progress.slides_made)
    for task in (_CLASS_TASK, _SURVIVAL_TASK):
        folder = out / "splits" / task.kind
        write_splits(make_splits(load_cohort(cohort.table, task), folds=folds, seed=seed), folder)
    progress.step("tissue, patches, features")
    config = ExtractConfig(patch=PatchConfig(patch_px=CELL_PX, mpp=MPP))
    extract(find_slides([cohort.slides]), out / "features", config, progress=progress.extraction())
    rows = []
    for name, what, model in _CLASS_RUNS:
        progress.step(f"training {name} ({what})")
        rows.append(_run(out, name, what, _CLASS_TASK, model, seed, progress))
    progress.step("training mamba2d-mil on survival")
    rows.append(_run(out, _SURVIVAL_RUN, "mamba2d-mil on survival", _SURVIVAL_TASK, {}, seed, progress))
    progress.step("heatmaps")
    return DemoReport(tuple(rows), cohort.arrangement_c_index, _heatmaps(out, cohort))


def _run(
    out: Path,
    name: str,
    what: str,
    task: ClassificationTask | SurvivalTask,
    model: dict[str, Any],
    seed: int,
    progress: DemoProgress,
) -> DemoRow:
    """Write a configuration as a user would, and train it."""
    values = {
        "preset": "demo",
        "out": f"runs/{name}",
        "seed": seed,
        "data": {
            "cohort": "cohort.csv",
            "features": "features",
            "splits": f"splits/{task.kind}",
            "slides": "slides",
        },
        "task": task.model_dump(mode="json"),
        "model": model,
    }
    path = out / f"{name}.yaml"
    write_text(path, yaml.safe_dump(values, sort_keys=False))
    evaluation: Evaluation = train(load_run_config(path), progress=progress.training())
    metric = next(iter(evaluation.metrics))
    return DemoRow(name, what, metric, evaluation.metrics[metric], out / "runs" / name)


def _heatmaps(out: Path, cohort: DemoCohort) -> tuple[Path, ...]:
    """Two slides of each arrangement, by the fold that did not see them."""
    table = pd.read_csv(cohort.table, dtype=str)
    pictures = []
    for arrangement in ARRANGEMENTS:
        for slide_id in _first_slides(table, arrangement):
            path = out / "heatmaps" / f"{slide_id}-{arrangement}.png"
            heatmap(out / "runs" / _CLASS_RUNS[0][0], slide_id, path)
            pictures.append(path)
    return tuple(pictures)


def _first_slides(table: pd.DataFrame, arrangement: str) -> Sequence[str]:
    return table.loc[table["arrangement"] == arrangement, "slide_id"].tolist()[:2]
