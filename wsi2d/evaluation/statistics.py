"""Intervals: the bootstrap over patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def patient_bootstrap(
    cases: Sequence[str],
    strata: Sequence[object],
    statistic: Callable[[NDArray[np.int64]], Mapping[str, float]],
    *,
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of statistics, patients drawn with replacement within strata.

    A patient is drawn with all of its rows, since slides of one patient are not independent. Resamples for which a
    statistic is not defined (NaN) are left out of its interval.

    Args:
        cases: patient of each row ``[N]``.
        strata: of each row ``[N]``; patients are drawn within the stratum of their first row, so that a resample has
            as many of each (folds, say) as the data.
        statistic: from row numbers ``[n]`` to named values.
        resamples: how many.
        confidence: coverage, as 0.95.
        seed: of the draws.

    Returns:
        (low, high) by name; (NaN, NaN) where no resample defined it.

    Source: B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    rows_of: dict[str, list[int]] = {}
    for row, case in enumerate(cases):
        rows_of.setdefault(case, []).append(row)
    groups: dict[object, list[NDArray[np.int64]]] = {}
    for rows in rows_of.values():
        groups.setdefault(strata[rows[0]], []).append(np.array(rows))
    generator = np.random.default_rng(seed)
    values: dict[str, list[float]] = {}
    for _ in range(resamples):
        drawn = [group[i] for group in groups.values() for i in generator.integers(len(group), size=len(group))]
        for name, value in statistic(np.concatenate(drawn)).items():
            values.setdefault(name, []).append(value)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    intervals = {}
    for name, sample in values.items():
        finite = np.array(sample)[np.isfinite(sample)]
        low, high = np.quantile(finite, tails) if len(finite) else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals
