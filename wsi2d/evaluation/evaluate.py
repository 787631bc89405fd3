"""From a table of predictions to numbers with intervals: per fold, mean ± sd, pooled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi2d.config import EvaluationConfig
from wsi2d.errors import RunError
from wsi2d.evaluation import counting
from wsi2d.evaluation.predictions import PredictionTable, read_predictions
from wsi2d.evaluation.scoring import ScoredTable, score_table
from wsi2d.evaluation.statistics import bootstrap_values, percentile_interval
from wsi2d.evaluation.survival import Outcomes
from wsi2d.evaluation.survival_details import SurvivalDetails, survival_details
from wsi2d.evaluation.training_side import training_outcomes
from wsi2d.files import write_text

METRICS_SCHEMA = "wsi2d-metrics/1"
PREDICTIONS_FILE = "predictions.csv"
METRICS_FILE = "metrics.json"
NOTES_FILE = "notes.json"
RISK_GROUPS_FILE = "risk_groups.csv"
LEAK = "patients leak between its sides"  # in the note of a fold that was trained although they do


@dataclass(frozen=True)
class MetricSummary:
    """One metric over a cross-validation; NaN where the data do not define it.

    Attributes:
        per_fold: value in each fold, in the order of the folds.
        mean, sd: over folds (sample standard deviation).
        mean_interval: bootstrap interval of the mean over folds.
        pooled: value over the out-of-fold predictions of all folds together.
        pooled_interval: its bootstrap interval.
        stratified: for ranks of survival, over all folds' pairs of patients of one fold; None for other metrics.
        stratified_interval: its bootstrap interval.
    """

    per_fold: tuple[float, ...]
    mean: float
    sd: float
    mean_interval: tuple[float, float] | None
    pooled: float
    pooled_interval: tuple[float, float] | None
    stratified: float | None = None
    stratified_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Confusion:
    """Slides (or patients) of all folds by true class (rows) and predicted class (columns).

    Attributes:
        classes: names of rows and columns.
        counts: slides, or patients.
        rates: counts over their row's sum; NaN where a class has none.
        intervals: bootstrap intervals of the rates; None without a bootstrap.
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    rates: tuple[tuple[float, ...], ...]
    intervals: tuple[tuple[tuple[float, float], ...], ...] | None


@dataclass(frozen=True)
class Evaluation:
    """All metrics of a run.

    Attributes:
        kind: ``classification`` or ``survival``.
        unit: what is counted: ``slide``, or ``case`` for survival (mean risk over a patient's slides), for patients
            whose slides are joined, and where it is asked for.
        slides, cases: how many.
        folds: indices of the folds.
        metrics: by name.
        bootstrap, confidence: resamples of patients and coverage of the intervals.
        notes: what a reader must know (leaked patients, say).
        confusion: for classification.
        survival: for survival: time points, calibration, risk groups.
    """

    kind: str
    unit: str
    slides: int
    cases: int
    folds: tuple[int, ...]
    metrics: dict[str, MetricSummary]
    bootstrap: int
    confidence: float
    notes: tuple[str, ...] = ()
    confusion: Confusion | None = None
    survival: SurvivalDetails | None = None

    def to_json(self) -> str:
        """``metrics.json`` (schema in ``docs/formats.md``); what is not defined is null."""
        return json.dumps(nan_to_null({"schema": METRICS_SCHEMA, **asdict(self)}), indent=2) + "\n"


def evaluate(run: Path | str, config: EvaluationConfig | None = None, *, seed: int = 0) -> Evaluation:
    """Evaluate a run folder, and write ``metrics.json`` (and for survival ``risk_groups.csv``) into it; or a table.

    Args:
        run: the folder, with its ``predictions.csv``; or such a table alone (``docs/predictions.md``), beside which
            nothing is written.
        config: resamples, coverage, and what the numbers are to be of.
        seed: of the bootstrap.

    Raises:
        RunError: the folder is no run, not finished, or damaged; the table cannot be evaluated.
    """
    folder = Path(run)
    if is_table(folder):
        return evaluate_table(read_predictions(folder), config, seed=seed, notes=read_notes(notes_beside(folder)))
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        raise RunError(f"run {folder}: no {PREDICTIONS_FILE}; train it to the end first")
    notes = read_notes(folder / NOTES_FILE)
    table = read_predictions(path)
    training = training_outcomes(folder) if table.kind == "survival" else {}
    evaluation = evaluate_table(table, config, seed=seed, notes=notes, training=training)
    if evaluation.survival is not None:
        write_text(folder / RISK_GROUPS_FILE, evaluation.survival.risk_groups.to_csv())
    write_text(folder / METRICS_FILE, evaluation.to_json())
    return evaluation


def notes_beside(table: Path) -> Path:
    """Where the notes of a table that stands alone lie, if it has any."""
    return table.with_suffix(".notes.json")


def is_table(run: Path) -> bool:
    """Whether a path is a table of predictions, ``*.csv``, rather than a run folder."""
    return run.suffix.lower() == ".csv" and not run.is_dir()


def evaluate_table(
    table: PredictionTable,
    config: EvaluationConfig | None = None,
    *,
    seed: int = 0,
    notes: tuple[str, ...] = (),
    training: Mapping[int, Outcomes] | None = None,
) -> Evaluation:
    """Evaluate any table of out-of-fold predictions (see :func:`evaluate`).

    Args:
        table, config, seed: the table, and how.
        notes: what a reader of the numbers must know.
        training: time and event of each fold's training patients, where they are known.
    """
    config = config or EvaluationConfig()
    scored = score_table(table, config, training)
    rows = scored.rows
    everyone = np.ones((1, len(rows)))
    values = scored.values(everyone)
    samples = bootstrap_values(
        rows["case_id"].tolist(), scored.fold_of.tolist(), scored.values, resamples=config.bootstrap, seed=seed
    )
    intervals = {name: percentile_interval(sample, config.confidence) for name, sample in samples.items()}
    metrics = {}
    for name in scored.names:
        per_fold = tuple(float(values[f"fold {f} {name}"][0]) for f in scored.folds)
        metrics[name] = MetricSummary(
            per_fold=per_fold,
            mean=float(values[f"mean {name}"][0]),
            sd=_sd(per_fold),
            mean_interval=intervals.get(f"mean {name}"),
            pooled=float(values[f"pooled {name}"][0]),
            pooled_interval=intervals.get(f"pooled {name}"),
            stratified=float(values[f"stratified {name}"][0]) if f"stratified {name}" in values else None,
            stratified_interval=intervals.get(f"stratified {name}"),
        )
    confusion = _confusion(table.classes, scored, everyone, intervals) if table.kind == "classification" else None
    survival = None
    if scored.patients is not None:
        survival = survival_details(scored.patients, rows, config, trained=bool(scored.training))
        notes += _held_out_twice(rows)
    return Evaluation(
        table.kind, scored.unit, sum(map(len, table.slide_ids())), rows["case_id"].nunique(),
        scored.folds, metrics, config.bootstrap, config.confidence, notes, confusion, survival,
    )  # fmt: skip


def _held_out_twice(rows: pd.DataFrame) -> tuple[str, ...]:
    twice = rows["case_id"][rows["case_id"].duplicated()].nunique()
    if not twice:
        return ()
    return (f"{twice} patients are predicted by several folds: risk groups and their tests count them in each",)


def read_notes(path: Path) -> tuple[str, ...]:
    """What a reader of a run's numbers must know; nothing where the file is absent.

    Raises:
        RunError: the file is something else.
    """
    if not path.exists():
        return ()
    try:
        notes = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        notes = None
    if not (isinstance(notes, list) and all(isinstance(note, str) for note in notes)):
        raise RunError(f"notes {path}: not a JSON list of texts; mend it, or delete it and do without the run's notes")
    return tuple(notes)


def _confusion(
    classes: tuple[str, ...],
    scored: ScoredTable,
    everyone: NDArray[np.float64],
    intervals: Mapping[str, tuple[float, float]],
) -> Confusion:
    cells = range(len(classes))
    counts = scored.confusion(everyone)[0]
    rates = counting.ratio(counts, counts.sum(1, keepdims=True))
    names = [[f"confusion {i} {j}" for j in cells] for i in cells]
    return Confusion(
        classes,
        tuple(tuple(int(n) for n in row) for row in counts),
        tuple(tuple(float(r) for r in row) for row in rates),
        tuple(tuple(intervals[name] for name in row) for row in names) if intervals else None,
    )


def _sd(values: Sequence[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan


def nan_to_null(value: object) -> object:
    """A value for JSON, which has neither NaN nor infinity: what is not finite becomes None."""
    if isinstance(value, dict):
        return {k: nan_to_null(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_null(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
