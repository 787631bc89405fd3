"""Survival metrics, as scikit-survival defines them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi2d.evaluation import counting
from wsi2d.evaluation.counting import Scores

SURVIVAL_METRICS = ("c_index",)
RANKED = ("c_index", "c_index_uno", "auc_at")  # of the order of risks alone
_OF_CURVES = ("brier_integrated", "observed_expected")

Array = NDArray[np.float64]
Outcomes = tuple[Array, NDArray[np.bool_]]
_Weighted = tuple[Array, NDArray[np.bool_], Array]


def survival_metrics(time: Array, event: NDArray[np.bool_], risk: Array) -> dict[str, float]:
    """Harrell's concordance index, better when higher; 0.5 is chance.

    Args:
        time: follow-up ``[N]``, in any unit.
        event: bool ``[N]``, true where the event happened.
        risk: ``[N]``, higher is worse.

    Returns:
        ``c_index``; NaN where no two patients can be compared.

    Source: F. E. Harrell et al., "Multivariable prognostic models", Statistics in Medicine 15 (1996).
    """
    from sksurv.exceptions import NoComparablePairException
    from sksurv.metrics import concordance_index_censored

    if not event.any() or len(time) < 2:
        return {"c_index": math.nan}
    try:
        with np.errstate(invalid="ignore"):  # 0 / 0 where all that can be compared died at the same time
            return {"c_index": float(concordance_index_censored(event.astype(bool), time, risk)[0])}
    except NoComparablePairException:
        return {"c_index": math.nan}


@dataclass(frozen=True)
class SurvivalTable:
    """Patients with outcome and prediction.

    Attributes:
        time, event, risk: ``[N]``; higher risk is worse.
        at: the time at which the area and the calibration are taken.
        at_survival: predicted probability ``[N]`` of no event up to ``at``; None where there are no curves.
        grid: times ``[T]`` over which the Brier score is integrated; fewer than two where there are no curves.
        grid_survival: predicted probability ``[N, T]`` of no event up to each.
    """

    time: Array
    event: NDArray[np.bool_]
    risk: Array
    at: float
    at_survival: Array | None
    grid: Array
    grid_survival: Array

    def __getitem__(self, rows: NDArray[np.int64]) -> SurvivalTable:
        """Some of the patients."""
        at = None if self.at_survival is None else self.at_survival[rows]
        return SurvivalTable(
            self.time[rows], self.event[rows], self.risk[rows], self.at, at, self.grid, self.grid_survival[rows]
        )


def survival_scores(table: SurvivalTable, weights: Array, *, train: Outcomes | None = None) -> Scores:
    """Metrics of many resamples of a table at once.

    Args:
        table: the patients ``[N]``.
        weights: ``[B, N]``, how often each counts.
        train: time and event of the patients trained on, whose censoring distribution weighs; without them it is
            estimated from the patients of each resample.

    Returns:
        By name: ``c_index`` (Harrell), ``c_index_uno`` (up to the earlier of the last follow-ups, of
        those trained on and of the table), ``auc_at`` (cumulative cases against those still at risk, at the table's
        time) are better when higher; ``brier_integrated`` (over the grid) when lower; ``observed_expected``
        (Kaplan-Meier's share of events up to that time over the mean that was predicted) is 1 where predictions are
        calibrated. NaN where the data do not define it; the last two are left out where
        the table has no curves.

    Source: H. Uno et al., "On the C-statistics for evaluating overall adequacy of risk prediction procedures with
    censored survival data", Statistics in Medicine 30 (2011), equation 6; H. Hung and C.-T. Chiang, "Estimation methods
    for time-dependent AUC models with survival data", Canadian Journal of Statistics 38 (2010); E. Graf et al.,
    "Assessment and comparison of prognostic classification schemes for survival data", Statistics in Medicine 18
    (1999), the weighted Brier score.
    """
    time, event, at = table.time, table.event, table.at
    nothing = np.full(len(weights), math.nan)
    if not len(time):
        names = (*RANKED, *_OF_CURVES * (table.at_survival is not None))
        return Scores(dict.fromkeys(names, nothing), {})
    given = (*train, np.ones((1, len(train[0])))) if train is not None else (time, event, weights)
    last = min(time.max(), given[0].max())
    uncensored = counting.censoring_survival(*given, time)
    inverse = np.divide(1.0, uncensored, out=np.zeros_like(uncensored), where=uncensored > 0)
    harrell, uno = counting.concordance(time, event, table.risk, weights, inverse**2 * (time < last))
    cases = weights * inverse * (event & (time <= at))
    known = at < last
    at_risk = weights * (time > at)
    area = counting.roc_pairs(table.risk, cases * known, at_risk)
    pairs = dict(zip(RANKED, (harrell, uno, area), strict=True))
    scores = {name: found.share for name, found in pairs.items()}
    if table.at_survival is not None:
        brier = _integrated_brier(table, weights, inverse, given) if len(table.grid) > 1 else nothing
        calibration = _observed_expected(table, table.at_survival, weights) if at <= time.max() else nothing
        scores |= zip(_OF_CURVES, (brier, calibration), strict=True)
    return Scores(scores, pairs)


def _integrated_brier(table: SurvivalTable, weights: Array, inverse: Array, given: _Weighted) -> Array:
    """Brier scores weighted by the inverse probability of censoring, integrated by trapezes over the grid."""
    time, grid, survival = table.time[:, None], table.grid, table.grid_survival
    dead, alive = (time <= grid) & table.event[:, None], time > grid
    uncensored = counting.censoring_survival(*given, grid)
    of_alive = np.divide(1.0, uncensored, out=np.zeros_like(uncensored), where=uncensored > 0)
    errors = (weights * inverse) @ (dead * survival**2) + (weights @ (alive * (1 - survival) ** 2)) * of_alive
    brier = counting.ratio(errors, weights.sum(1)[:, None])
    shares: Array = np.diff(grid) / (grid[-1] - grid[0])
    mean: Array = (brier[:, 1:] + brier[:, :-1]) / 2 @ shares
    return mean


def _observed_expected(table: SurvivalTable, survival: Array, weights: Array) -> Array:
    observed = 1 - counting.event_free(table.time, table.event, weights, np.array([table.at]))[:, 0]
    expected = counting.ratio(weights @ (1 - survival), weights.sum(1))
    return counting.ratio(observed, expected)
