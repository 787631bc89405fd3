"""Two runs on the same patients and folds: differences with intervals, and three tests."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi2d.config import EvaluationConfig
from wsi2d.errors import RunError
from wsi2d.evaluation.alignment import aligned, other_slides
from wsi2d.evaluation.curve_columns import read_curves
from wsi2d.evaluation.evaluate import NOTES_FILE, PREDICTIONS_FILE, nan_to_null, read_notes
from wsi2d.evaluation.predictions import read_predictions
from wsi2d.evaluation.scoring import ScoredTable, score_table
from wsi2d.evaluation.statistics import (
    PairedTest,
    bootstrap_p_value,
    bootstrap_values,
    corrected_t_test,
    delong_test,
    percentile_interval,
)
from wsi2d.evaluation.training_side import training_outcomes

COMPARISON_SCHEMA = "wsi2d-comparison/1"


@dataclass(frozen=True)
class Difference:
    """A metric of two runs; a difference is the second's minus the first's. NaN where the data do not define it.

    Attributes:
        first, second: means over folds.
        mean, mean_interval, mean_p: their difference, its bootstrap interval and two-sided p-value.
        t_test: the corrected resampled t-test over folds; NaN where fewer than two folds define the metric.
        pooled, pooled_interval, pooled_p: the same of all folds' predictions together.
        stratified, stratified_interval, stratified_p: for ranks of survival, the same over all folds' pairs of patients
            of one fold; None and NaN for other metrics.
        delong: DeLong's test of the pooled area; None but for ``auc`` of two classes.
    """

    first: float
    second: float
    mean: float
    mean_interval: tuple[float, float] | None
    mean_p: float
    t_test: PairedTest
    pooled: float
    pooled_interval: tuple[float, float] | None
    pooled_p: float
    stratified: float | None
    stratified_interval: tuple[float, float] | None
    stratified_p: float
    delong: PairedTest | None


@dataclass(frozen=True)
class Comparison:
    """Two runs, paired.

    Attributes:
        first, second: their names, as given.
        kind: ``classification`` or ``survival``.
        unit: what is counted, ``slide`` or ``case``.
        slides, cases, folds: what the first holds; the second has the same patients and folds, and the same slides
            where these are counted.
        metrics: by name.
        bootstrap, confidence: resamples of patients, and coverage of the intervals.
        notes: what a reader must know.
    """

    first: str
    second: str
    kind: str
    unit: str
    slides: int
    cases: int
    folds: tuple[int, ...]
    metrics: dict[str, Difference]
    bootstrap: int
    confidence: float
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """What ``wsi2d compare --json`` prints; what is not defined is null."""
        return json.dumps(nan_to_null({"schema": COMPARISON_SCHEMA, **asdict(self)}), indent=2) + "\n"


@dataclass(frozen=True)
class _Change:
    """A difference with its bootstrap interval and p-value."""

    value: float
    interval: tuple[float, float] | None
    p_value: float


class _Changes:
    """Differences of two scored tables of the same rows, from resamples of patients that both share."""

    def __init__(self, first: ScoredTable, second: ScoredTable, config: EvaluationConfig, seed: int) -> None:
        self._first, self._second, self._confidence = first, second, config.confidence
        everyone = np.ones((1, len(first.rows)))
        self._before, self._after = first.values(everyone), second.values(everyone)
        self._found = self._change(everyone)
        cases, folds = first.rows["case_id"].tolist(), first.fold_of.tolist()
        self._samples = bootstrap_values(cases, folds, self._change, resamples=config.bootstrap, seed=seed)

    def differences(self) -> dict[str, Difference]:
        """Of each metric that both define."""
        return {name: self._difference(name) for name in self._first.names if f"mean {name}" in self._found}

    def _change(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        before, after = self._first.values(weights), self._second.values(weights)
        return {name: after[name] - before[name] for name in before if name in after}

    def _of(self, key: str) -> _Change:
        value, sample = float(self._found[key][0]), self._samples.get(key)
        if sample is None:
            return _Change(value, None, math.nan)
        return _Change(value, percentile_interval(sample, self._confidence), bootstrap_p_value(sample))

    def _difference(self, name: str) -> Difference:
        mean, pooled = self._of(f"mean {name}"), self._of(f"pooled {name}")
        pairs = self._of(f"stratified {name}") if f"stratified {name}" in self._found else None
        by_fold = [float(self._found[f"fold {f} {name}"][0]) for f in self._first.folds]
        return Difference(
            first=float(self._before[f"mean {name}"][0]),
            second=float(self._after[f"mean {name}"][0]),
            mean=mean.value,
            mean_interval=mean.interval,
            mean_p=mean.p_value,
            t_test=corrected_t_test(by_fold, _test_train_ratio(self._first)),
            pooled=pooled.value,
            pooled_interval=pooled.interval,
            pooled_p=pooled.p_value,
            stratified=None if pairs is None else pairs.value,
            stratified_interval=None if pairs is None else pairs.interval,
            stratified_p=math.nan if pairs is None else pairs.p_value,
            delong=None,
        )


def compare(
    first: Path | str, second: Path | str, config: EvaluationConfig | None = None, *, seed: int = 0
) -> Comparison:
    """Compare two runs on the same slides, patients, folds and truth.

    Patients are counted where it is asked for, and where one of the runs joins their slides; the slides need not be the
    same then.

    Args:
        first, second: run folders, or tables of predictions (``docs/predictions.md``).
        config: resamples, coverage, and what the numbers are to be of.
        seed: of the bootstrap; both runs are scored on the same resamples of patients.

    Raises:
        RunError: a table cannot be read, the two differ in what they predict (the line names the first difference), or
            patients are counted whose slides differ in label.
    """
    config = config or EvaluationConfig()
    paths = [_table_path(Path(run)) for run in (first, second)]
    tables = [read_predictions(path) for path in paths]
    if any(table.joined for table in tables):
        config = config.model_copy(update={"unit": "case"})
    tables[1] = aligned(tables[0], tables[1], (str(first), str(second)), config.unit)
    survival = tables[0].kind == "survival"
    curves = [read_curves(table.rows) for table in tables if survival]
    until = min((c.end for c in curves if c is not None), default=math.inf)
    training = training_outcomes(paths[0].parent) if survival and Path(first).is_dir() else {}
    a, b = (score_table(table, config, training, until=until) for table in tables)
    cases = a.rows["case_id"]
    metrics = _Changes(a, b, config, seed).differences()
    notes = _notes_of(Path(first), Path(second))
    if a.unit == "case" and (others := other_slides(*tables)):
        notes.append(f"{others} patients are predicted from other slides in the second than in the first")
    if tables[0].kind == "classification" and len(tables[0].classes) == 2:
        scores = a.probabilities[:, 1], b.probabilities[:, 1]
        delong = delong_test(a.labels == 1, *scores, confidence=config.confidence)
        metrics["auc"] = replace(metrics["auc"], delong=delong)
        if cases.duplicated().any():
            several = "slides" if a.unit == "slide" else "folds"
            notes.append(
                f"some patients have several {several}: DeLong's test takes them as independent, prefer the others"
            )
    return Comparison(
        str(first), str(second), tables[0].kind, a.unit, sum(map(len, tables[0].slide_ids())), cases.nunique(),
        a.folds, metrics, config.bootstrap, config.confidence, tuple(notes),
    )  # fmt: skip


def _table_path(run: Path) -> Path:
    if not run.is_dir():
        return run
    if not (run / PREDICTIONS_FILE).exists():
        raise RunError(f"run {run}: no {PREDICTIONS_FILE}; train it to the end first, or give a table of predictions")
    return run / PREDICTIONS_FILE


def _notes_of(first: Path, second: Path) -> list[str]:
    """What run folders say of themselves: once where both say it, else with the run's letter."""
    a, b = (read_notes(run / NOTES_FILE) if run.is_dir() else () for run in (first, second))
    both = [note for note in a if note in b]
    return [*both, *(f"{run}: {n}" for run, notes in (("A", a), ("B", b)) for n in notes if n not in both)]


def _test_train_ratio(scored: ScoredTable) -> float:
    """Patients of a fold over all others, each of whom counts once in however many folds; the mean over folds."""
    patients = scored.rows.groupby("fold")["case_id"].nunique().to_numpy(float)
    others = scored.rows["case_id"].nunique() - patients
    return float(np.mean(patients / others)) if others.all() else math.nan
