"""From a table of predictions to numbers with intervals: per fold, mean ± sd, pooled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi2d.config import EvaluationConfig
from wsi2d.errors import RunError
from wsi2d.evaluation.metrics import classification_metrics
from wsi2d.evaluation.predictions import PredictionTable, read_predictions
from wsi2d.evaluation.statistics import patient_bootstrap
from wsi2d.evaluation.survival import survival_metrics
from wsi2d.files import write_text

METRICS_SCHEMA = "wsi2d-metrics/1"
PREDICTIONS_FILE = "predictions.csv"
METRICS_FILE = "metrics.json"
NOTES_FILE = "notes.json"


@dataclass(frozen=True)
class MetricSummary:
    """One metric over a cross-validation; NaN where the data do not define it.

    Attributes:
        per_fold: value in each fold, in the order of the folds.
        mean, sd: over folds (sample standard deviation).
        mean_interval: bootstrap interval of the mean over folds.
        pooled: value over the out-of-fold predictions of all folds together.
        pooled_interval: its bootstrap interval.
    """

    per_fold: tuple[float, ...]
    mean: float
    sd: float
    mean_interval: tuple[float, float] | None
    pooled: float
    pooled_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Evaluation:
    """All metrics of a run.

    Attributes:
        kind: ``classification`` or ``survival``.
        unit: what is counted: ``slide`` for classification, ``case`` (mean risk over a patient's slides) for survival.
        slides, cases: how many.
        folds: indices of the folds.
        metrics: by name.
        bootstrap, confidence: resamples of patients and coverage of the intervals.
        notes: what a reader must know (leaked patients, say).
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

    def to_json(self) -> str:
        """``metrics.json`` (schema in ``docs/formats.md``); what is not defined is null."""
        return json.dumps(_nan_to_null({"schema": METRICS_SCHEMA, **asdict(self)}), indent=2) + "\n"


def evaluate(run: Path | str, config: EvaluationConfig | None = None, *, seed: int = 0) -> Evaluation:
    """Evaluate a run folder (its ``predictions.csv``), and write ``metrics.json`` beside it.

    Args:
        run: the folder.
        config: resamples and coverage.
        seed: of the bootstrap.

    Raises:
        RunError: the folder is no run, not finished, or damaged.
    """
    folder = Path(run)
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        raise RunError(f"run {folder}: no {PREDICTIONS_FILE}; train it to the end first")
    notes = _read_notes(folder / NOTES_FILE)
    evaluation = evaluate_table(read_predictions(path), config, seed=seed, notes=notes)
    write_text(folder / METRICS_FILE, evaluation.to_json())
    return evaluation


def evaluate_table(
    table: PredictionTable, config: EvaluationConfig | None = None, *, seed: int = 0, notes: tuple[str, ...] = ()
) -> Evaluation:
    """Evaluate any table of out-of-fold predictions (see :func:`evaluate`)."""
    config = config or EvaluationConfig()
    slides = len(table.rows)
    # an ensemble's predictions bear no fold: they are one
    rows = table.rows.assign(fold=pd.to_numeric(table.rows["fold"], errors="coerce").fillna(0).astype(int))
    rows = _one_row_a_case(rows) if table.kind == "survival" else rows.reset_index(drop=True)
    table = table.subset(rows)
    fold_of = rows["fold"].to_numpy()
    folds = tuple(int(f) for f in np.unique(fold_of))
    score = _scorer(table)

    def both(chosen: NDArray[np.int64]) -> dict[str, float]:
        per_fold = [score(chosen[fold_of[chosen] == f]) for f in folds]
        means = {f"mean {name}": _mean([values[name] for values in per_fold]) for name in per_fold[0]}
        return {**{f"pooled {name}": value for name, value in score(chosen).items()}, **means}

    everything = np.arange(len(rows))
    per_fold = [score(everything[fold_of == f]) for f in folds]
    pooled = score(everything)
    intervals = patient_bootstrap(
        rows["case_id"].tolist(), fold_of.tolist(), both,
        resamples=config.bootstrap, confidence=config.confidence, seed=seed,
    )  # fmt: skip
    metrics = {}
    for name in pooled:
        values = [fold[name] for fold in per_fold]
        metrics[name] = MetricSummary(
            per_fold=tuple(values),
            mean=_mean(values),
            sd=_sd(values),
            mean_interval=intervals.get(f"mean {name}"),
            pooled=pooled[name],
            pooled_interval=intervals.get(f"pooled {name}"),
        )
    return Evaluation(
        table.kind, "case" if table.kind == "survival" else "slide", slides, rows["case_id"].nunique(), folds,
        metrics, config.bootstrap, config.confidence, notes,
    )  # fmt: skip


def _read_notes(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return ()
    try:
        notes = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        notes = None
    if not (isinstance(notes, list) and all(isinstance(note, str) for note in notes)):
        raise RunError(f"notes {path}: not a JSON list of texts; mend it, or delete it and do without the run's notes")
    return tuple(notes)


def _scorer(table: PredictionTable) -> Callable[[NDArray[np.int64]], dict[str, float]]:
    """A function from row numbers to metrics."""
    if table.kind == "classification":
        labels, probabilities = table.labels, table.probabilities
        return lambda rows: classification_metrics(labels[rows], probabilities[rows])
    time, event, risk = (table.rows[c].to_numpy(float) for c in ("time", "event", "risk"))
    return lambda rows: survival_metrics(time[rows], event[rows] > 0, risk[rows])


def _one_row_a_case(rows: pd.DataFrame) -> pd.DataFrame:
    """A patient's slides as one row: the mean risk; time and event are the patient's anyway."""
    grouped = rows.groupby(["fold", "case_id"], sort=False, as_index=False)
    return grouped.agg({"slide_id": "first", "time": "first", "event": "first", "risk": "mean"})


def _mean(values: list[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return float(np.mean(defined)) if defined else math.nan


def _sd(values: list[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan


def _nan_to_null(value: object) -> object:
    if isinstance(value, dict):
        return {k: _nan_to_null(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_null(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
