"""A table of predictions as functions of weights: every metric of each fold, their mean, and pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi2d.config import BagUnit, EvaluationConfig
from wsi2d.errors import RunError
from wsi2d.evaluation import counting
from wsi2d.evaluation.curve_columns import Curves, read_curves
from wsi2d.evaluation.metrics import classification_scores
from wsi2d.evaluation.predictions import PROBABILITY, RISK_CUT, PredictionTable
from wsi2d.evaluation.survival import Outcomes, SurvivalTable, survival_scores

Array = NDArray[np.float64]

_MOST_TIMES = 100


@dataclass(frozen=True)
class ScoredTable:
    """What is counted, ready to be scored.

    Attributes:
        rows: one a slide, or one a patient and fold; ``fold`` is a number.
        unit: which of the two, ``slide`` or ``case``.
        folds: their indices.
        names: of the metrics.
        labels, probabilities: ``[N]``, ``[N, classes]`` for classification.
        ordered: the classes are grades.
        patients: for survival.
        training: time and event of each fold's training patients, where they are known.
    """

    rows: pd.DataFrame
    unit: BagUnit
    folds: tuple[int, ...]
    labels: NDArray[np.int64]
    probabilities: Array
    ordered: bool
    patients: SurvivalTable | None
    training: Mapping[int, Outcomes]

    @property
    def fold_of(self) -> NDArray[np.int64]:
        """Fold of each row ``[N]``."""
        return self.rows["fold"].to_numpy()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return tuple(self._scores(np.arange(0), np.ones((1, 0)), None).values)

    def values(self, weights: Array) -> dict[str, Array]:
        """Values ``[B]`` of weights ``[B, N]``: ``fold <k> <metric>``, ``mean <metric>`` over the folds that define it,
        ``pooled <metric>``; for survival ``stratified <metric>``, of the pairs of patients within folds alone; for
        classification ``confusion <i> <j>``, the share of class i predicted as j."""
        every = np.arange(len(self.rows))
        per_fold, pairs = {}, []
        for f in self.folds:
            chosen = every[self.fold_of == f]
            found = self._scores(chosen, weights[:, chosen], self.training.get(f))
            per_fold[f] = found.values
            pairs.append(found.pairs)
        values = {f"fold {f} {name}": value for f, scores in per_fold.items() for name, value in scores.items()}
        for name in self.names:
            values[f"mean {name}"] = _mean(np.stack([scores[name] for scores in per_fold.values()]))
        values |= {f"pooled {name}": value for name, value in self._scores(every, weights, None).values.items()}
        for name in pairs[0]:
            values[f"stratified {name}"] = counting.Pairs.together([p[name] for p in pairs]).share
        if self.patients is None:
            counts = self.confusion(weights)
            rates = counting.ratio(counts, counts.sum(2, keepdims=True))
            cells = np.ndindex(rates.shape[1:])
            values |= {f"confusion {i} {j}": rates[:, i, j] for i, j in cells}
        return values

    def confusion(self, weights: Array) -> Array:
        """Counts ``[B, classes, classes]``, true by predicted."""
        classes = self.probabilities.shape[1]
        return counting.confusion(self.labels, self.probabilities.argmax(1), classes, weights)

    def _scores(self, chosen: NDArray[np.int64], weights: Array, train: Outcomes | None) -> counting.Scores:
        if self.patients is not None:
            return survival_scores(self.patients[chosen], weights, train=train)
        found = classification_scores(self.labels[chosen], self.probabilities[chosen], weights, ordered=self.ordered)
        return counting.Scores(found, {})


def score_table(
    table: PredictionTable,
    config: EvaluationConfig,
    training: Mapping[int, Outcomes] | None = None,
    *,
    until: float = math.inf,
) -> ScoredTable:
    """Make a table ready to be scored.

    Args:
        table: as read.
        config: what the numbers are to be of.
        training: time and event of each fold's training patients; not used unless those of every fold are known.
        until: survival curves are used up to this time at most, so that two tables are scored at the same times.

    Raises:
        RunError: its survival curves cannot be used, or patients are counted whose slides differ in label.
    """
    # an ensemble's predictions bear no fold: they are one
    rows = table.rows.assign(fold=pd.to_numeric(table.rows["fold"], errors="coerce").fillna(0).astype(int))
    folds = tuple(int(f) for f in np.unique(rows["fold"]))
    if table.kind == "classification":
        unit: BagUnit = "case" if table.joined else config.unit
        part = table.subset(rows.reset_index(drop=True) if unit == "slide" else _mean_by_case(rows))
        return ScoredTable(part.rows, unit, folds, part.labels, part.probabilities, config.ordered, None, {})
    known = training if training is not None and set(folds) <= training.keys() else {}
    curves = read_curves(rows)
    patients = rows.groupby(["fold", "case_id"], sort=False)
    kept = {"slide_id": "first", "time": "first", "event": "first", "risk": "mean"}
    kept |= {RISK_CUT: "first"} if RISK_CUT in rows else {}
    cases = patients.agg(kept).reset_index()
    followed = min((float(known[f][0].max()) for f in folds if f in known), default=math.inf)
    scored = _patients(cases, curves, patients.ngroup().to_numpy(), config, until, followed)
    return ScoredTable(cases, "case", folds, np.zeros(0, np.int64), np.zeros((0, 0)), False, scored, known)


def _mean_by_case(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a patient and fold, with the mean of the slides' probabilities."""
    cases = rows.groupby(["fold", "case_id"], sort=False)
    labels = cases["label"].unique()
    unlike = labels[labels.map(len) > 1]
    if len(unlike):
        raise RunError(
            f"predictions: the slides of patient '{unlike.index[0][1]}' are {' and '.join(unlike.iloc[0])}; count "
            "slides (unit slide), or give a patient one label"
        )
    kept = {"slide_id": "first", "label": "first"}
    kept |= {str(name): "mean" for name in rows if str(name).startswith(PROBABILITY)}
    return cases.agg(kept).reset_index()


def _patients(
    cases: pd.DataFrame,
    curves: Curves | None,
    case_of: NDArray[np.integer[Any]],
    config: EvaluationConfig,
    until: float,
    followed: float,
) -> SurvivalTable:
    """Patients' outcomes and predictions; a patient's curve is the mean over slides, as the risk is. The Brier score's
    times end where the follow-up of a fold, or of those trained on (``followed``), ends: no weights are known later."""
    time, risk = cases["time"].to_numpy(float), cases["risk"].to_numpy(float)
    event = cases["event"].to_numpy(float) > 0
    died = np.unique(time[event])
    at = config.at
    if at is None:
        at = float(np.median(time[event])) if len(died) else np.nan
        at = min(at, until if curves is None else min(until, curves.end))
    if curves is None:
        return SurvivalTable(time, event, risk, at, None, np.zeros(0), np.zeros((len(time), 0)))
    last = min(float(cases.groupby("fold")["time"].max().min()), followed)
    grid = died[(died <= min(until, curves.end)) & (died < last)]
    if len(grid) > _MOST_TIMES:
        grid = grid[np.linspace(0, len(grid) - 1, _MOST_TIMES).round().astype(int)]
    survival = curves.at(np.r_[at, grid])
    mean = np.zeros((len(cases), len(grid) + 1))
    np.add.at(mean, case_of, survival)
    mean /= np.bincount(case_of)[:, None]
    return SurvivalTable(time, event, risk, at, mean[:, 0], grid, mean[:, 1:])


def _mean(values: Array) -> Array:
    """The mean over folds ``[folds, B]`` of what is defined."""
    return counting.ratio(np.nansum(values, 0), (~np.isnan(values)).sum(0).astype(float))
