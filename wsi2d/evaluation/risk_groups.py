"""High against low risk: Kaplan-Meier curves, log-rank test and hazard ratio, with the cut from the training side."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]

_TO_THE_END = {"precision": 1e-16, "r_precision": 1e-16}


@dataclass(frozen=True)
class KaplanMeier:
    """A curve by steps, each ``[K]`` and from time 0: times, probability of no event up to them, its interval, and how
    many patients are followed up to them or longer."""

    time: tuple[float, ...]
    survival: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    at_risk: tuple[int, ...]


@dataclass(frozen=True)
class RiskGroup:
    """Patients on one side of the cut.

    Attributes:
        name: ``low`` or ``high``.
        patients, events: how many.
        median_time: when half have had the event, NaN where fewer have.
        median_interval: of it; an end is NaN where the data do not reach it.
        curve: their Kaplan-Meier curve.
    """

    name: str
    patients: int
    events: int
    median_time: float
    median_interval: tuple[float, float]
    curve: KaplanMeier


@dataclass(frozen=True)
class StratifiedTest:
    """How far two groups are apart within the folds, each of which has its own baseline hazard.

    Attributes:
        log_rank, p_value: observed minus expected events and their variances, summed over folds: chi-squared with one
            degree of freedom, and its p-value; NaN where no fold has anyone to compare.
        hazard_ratio, hazard_ratio_interval: high over low, by Cox's model with a stratum a fold; NaN where it has no
            finite estimate.
    """

    log_rank: float
    p_value: float
    hazard_ratio: float
    hazard_ratio_interval: tuple[float, float]


@dataclass(frozen=True)
class RiskGroups:
    """Two groups and how far they are apart.

    Attributes:
        cut_from: ``given``, ``training`` (the median risk of each fold's training patients) or ``predictions`` (the
            median of each fold's own patients, since nothing else is known).
        cuts: of each fold, in the order of the folds; a patient with a higher risk is in the high group.
        groups: low, high.
        log_rank, p_value: chi-squared with one degree of freedom, and its p-value; NaN where a group is empty.
        hazard_ratio, hazard_ratio_interval: high over low, by Cox's model; NaN where it has no finite estimate.
        stratified: both of patients of the same fold alone; None where there is one fold.
    """

    cut_from: str
    cuts: tuple[float, ...]
    groups: tuple[RiskGroup, ...]
    log_rank: float
    p_value: float
    hazard_ratio: float
    hazard_ratio_interval: tuple[float, float]
    stratified: StratifiedTest | None

    def to_csv(self) -> str:
        """A row a group, then what sets them apart, as in ``risk_groups.csv``."""
        table = io.StringIO()
        rows = [
            {
                "group": g.name,
                "patients": g.patients,
                "events": g.events,
                "median_time": g.median_time,
                "median_low": g.median_interval[0],
                "median_high": g.median_interval[1],
                **_test_columns(self, g.name, ""),
                **(_test_columns(self.stratified, g.name, "stratified_") if self.stratified is not None else {}),
            }
            for g in self.groups
        ]
        pd.DataFrame(rows).to_csv(table, index=False, lineterminator="\n")
        return table.getvalue()


def _test_columns(test: RiskGroups | StratifiedTest, group: str, prefix: str) -> dict[str, float]:
    """What sets a group apart from the low one."""
    high = group == "high"
    low_end, high_end = test.hazard_ratio_interval if high else (math.nan, math.nan)
    columns = {
        "hazard_ratio": test.hazard_ratio if high else 1.0,
        "hazard_ratio_low": low_end,
        "hazard_ratio_high": high_end,
        "log_rank": test.log_rank,
        "p_value": test.p_value,
    }
    return {prefix + name: value for name, value in columns.items()}


def risk_groups(
    time: Array,
    event: NDArray[np.bool_],
    risk: Array,
    fold: NDArray[np.int64],
    *,
    cut: float | None = None,
    training_cuts: Array | None = None,
    confidence: float = 0.95,
) -> RiskGroups:
    """Part patients by their risk, and compare what became of them.

    Args:
        time, event, risk: ``[N]``, one row a patient; higher risk is worse.
        fold: ``[N]``; each fold has its own cut, for its model has its own scale.
        cut: the one cut for all.
        training_cuts: ``[N]``, the median risk among the patients that each row's model was trained on.
        confidence: of all intervals.

    Source: E. L. Kaplan and P. Meier, JASA 53 (1958); N. Mantel, Cancer Chemotherapy Reports 50 (1966); D. R. Cox,
    JRSS B 34 (1972); all as in lifelines (intervals of curves log(-log), of the hazard ratio Wald's). Strata: J. D.
    Kalbfleisch and R. L. Prentice, "The Statistical Analysis of Failure Time Data", 2nd ed. 2002, section 4.4; the
    sums of the log-rank test are scikit-survival's.
    """
    folds = np.unique(fold)
    if cut is not None:
        cut_from, cuts = "given", np.full(len(folds), cut)
    elif training_cuts is not None:
        cut_from, cuts = "training", np.array([training_cuts[fold == f][0] for f in folds])
    else:
        cut_from, cuts = "predictions", np.array([np.median(risk[fold == f]) for f in folds])
    high = risk > cuts[np.searchsorted(folds, fold)]
    groups = tuple(_group(name, time[side], event[side], confidence) for name, side in (("low", ~high), ("high", high)))
    tests = (*_log_rank(time, event, high), *_hazard_ratio(time, event, high, confidence))
    stratified = None
    if len(folds) > 1:
        ratio, interval = _hazard_ratio(time, event, high, confidence, fold)
        stratified = StratifiedTest(*_stratified_log_rank(time, event, high, fold), ratio, interval)
    return RiskGroups(cut_from, tuple(map(float, cuts)), groups, *tests, stratified)


def kaplan_meier(time: Array, event: NDArray[np.bool_], confidence: float) -> KaplanMeier:
    """The curve of patients ``[N]`` with its interval; it stays at 1 where there is no patient."""
    from lifelines import KaplanMeierFitter

    if not len(time):
        return KaplanMeier((0.0,), (1.0,), (1.0,), (1.0,), (0,))
    fitted = KaplanMeierFitter(alpha=1 - confidence).fit(time, event)
    bands = fitted.confidence_interval_survival_function_.to_numpy()
    steps = fitted.survival_function_
    values = np.column_stack([steps.index.to_numpy(float), steps.to_numpy()[:, 0], bands])
    times, survival, low, high = (tuple(map(float, column)) for column in values.T)
    return KaplanMeier(times, survival, low, high, tuple(int((time >= t).sum()) for t in times))


def _group(name: str, time: Array, event: NDArray[np.bool_], confidence: float) -> RiskGroup:
    curve = kaplan_meier(time, event, confidence)
    median = _first_below_half(curve.time, curve.survival)
    interval = _first_below_half(curve.time, curve.low), _first_below_half(curve.time, curve.high)
    return RiskGroup(name, len(time), int(event.sum()), median, interval, curve)


def _first_below_half(time: tuple[float, ...], survival: tuple[float, ...]) -> float:
    return next((t for t, s in zip(time, survival, strict=True) if s <= 0.5), math.nan)


def _log_rank(time: Array, event: NDArray[np.bool_], high: NDArray[np.bool_]) -> tuple[float, float]:
    from lifelines.statistics import logrank_test

    if high.all() or not high.any() or not event.any():
        return math.nan, math.nan
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = logrank_test(time[high], time[~high], event[high], event[~high])
    return float(found.test_statistic), float(found.p_value)


def _stratified_log_rank(
    time: Array, event: NDArray[np.bool_], high: NDArray[np.bool_], fold: NDArray[np.int64]
) -> tuple[float, float]:
    from scipy.stats import chi2
    from sksurv.compare import compare_survival
    from sksurv.util import Surv

    excess, variance = 0.0, 0.0
    for f in np.unique(fold):
        chosen = fold == f
        if _informative(time[chosen], event[chosen], high[chosen]):
            truth = Surv.from_arrays(event[chosen], time[chosen])
            _, _, found, covariance = compare_survival(truth, high[chosen].astype(int), return_stats=True)
            excess, variance = excess + float(found["statistic"].iloc[1]), variance + float(covariance[1, 1])
    if variance <= 0:
        return math.nan, math.nan
    return excess**2 / variance, float(chi2.sf(excess**2 / variance, 1))


def _informative(time: Array, event: NDArray[np.bool_], high: NDArray[np.bool_]) -> bool:
    """Whether at some time patients of both groups are followed, and some of them, not all, have the event."""
    if high.all() or not high.any():
        return False
    last = min(time[high].max(), time[~high].max())  # up to then both are
    spared = (time > last) | ((time == last) & ~event)
    return bool((event & (time < last)).any() or ((event & (time == last)).any() and spared.any()))


def _bounded(time: Array, event: NDArray[np.bool_], high: NDArray[np.bool_], fold: NDArray[np.int64]) -> bool:
    """Whether the hazard ratio has a finite estimate: one of each group has the event while, in the same fold, one of
    the other is followed."""

    def outlived(group: NDArray[np.bool_], f: np.int64) -> bool:
        died, others = time[event & group & (fold == f)], time[~group & (fold == f)]
        return bool(len(died) and len(others) and died.min() <= others.max())

    return all(any(outlived(group, f) for f in np.unique(fold)) for group in (high, ~high))


def _hazard_ratio(
    time: Array,
    event: NDArray[np.bool_],
    high: NDArray[np.bool_],
    confidence: float,
    fold: NDArray[np.int64] | None = None,
) -> tuple[float, tuple[float, float]]:
    """Not defined where the estimate would be 0 or infinite, as it is where a group has no event."""
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError

    nothing = math.nan, (math.nan, math.nan)
    strata = np.zeros(len(time), int) if fold is None else fold
    if not _bounded(time, event, high, strata):
        return nothing
    table = pd.DataFrame({"time": time, "event": event, "high": high.astype(float), "fold": strata})
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            fitted = CoxPHFitter(alpha=1 - confidence).fit(
                table, "time", "event", strata=["fold"], fit_options=_TO_THE_END
            )
    except (ConvergenceError, ValueError, ArithmeticError):
        return nothing
    with np.errstate(over="ignore"):
        low, high_end = np.exp(fitted.confidence_intervals_.to_numpy()[0])
        ratio = float(np.exp(fitted.params_.to_numpy()[0]))
    # Almost apart: the likelihood is so flat that an end of the interval is none that can be told.
    return (ratio, (float(low), float(high_end))) if math.isfinite(high_end) and low > 0 else nothing
