"""Intervals and tests: the bootstrap over patients, folds against folds, and two areas on the same patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]

_CELLS_A_BLOCK = 1_000_000


def patient_weights(
    cases: Sequence[str], strata: Sequence[object], *, resamples: int, seed: int = 0
) -> Iterator[NDArray[np.float64]]:
    """How often each row is in each resample of patients, in blocks ``[resamples of the block, N]``.

    A patient is drawn with all of its rows, since slides of one patient are not independent.

    Args:
        cases: patient of each row ``[N]``.
        strata: of each row ``[N]``; patients are drawn within the stratum of their first row, so that a resample has
            as many of each (folds, say) as the data.
        resamples: how many.
        seed: of the draws.
    """
    patient_of: dict[str, int] = {}
    groups: dict[object, list[int]] = {}
    for case, stratum in zip(cases, strata, strict=True):
        if case not in patient_of:
            patient_of[case] = len(patient_of)
            groups.setdefault(stratum, []).append(patient_of[case])
    patients = np.array([patient_of[case] for case in cases])
    members = [np.array(group) for group in groups.values()]
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS_A_BLOCK // max(1, len(patients)))
    for start in range(0, resamples, block):
        counts = np.zeros((min(block, resamples - start), len(patient_of)))
        for row in counts:
            for group in members:
                row[group] = np.bincount(generator.integers(len(group), size=len(group)), minlength=len(group))
        yield counts[:, patients]


def bootstrap_values(
    cases: Sequence[str], strata: Sequence[object], statistic: Statistic, *, resamples: int, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Values ``[resamples]`` of named statistics over resamples of patients (see :func:`patient_weights`).

    Args:
        cases, strata: patient and stratum of each row ``[N]``.
        statistic: from weights ``[B, N]``, how often each row counts in each of B resamples, to values ``[B]`` by name.
        resamples: how many; none give no names.
        seed: of the draws.
    """
    blocks: dict[str, list[NDArray[np.float64]]] = {}
    for weights in patient_weights(cases, strata, resamples=resamples, seed=seed):
        for name, values in statistic(weights).items():
            blocks.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in blocks.items()}


def percentile_interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """(low, high) of values ``[R]``, those that are not finite left out; (NaN, NaN) where none is finite."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def patient_bootstrap(
    cases: Sequence[str],
    strata: Sequence[object],
    statistic: Statistic,
    *,
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of statistics, patients drawn with replacement within strata.

    Resamples for which a statistic is not defined (NaN) are left out of its interval.

    Args:
        cases, strata, statistic, resamples, seed: as for :func:`bootstrap_values`.
        confidence: coverage, as 0.95.

    Returns:
        (low, high) by name; (NaN, NaN) where no resample defined it.

    Source: B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    values = bootstrap_values(cases, strata, statistic, resamples=resamples, seed=seed)
    return {name: percentile_interval(sample, confidence) for name, sample in values.items()}


def bootstrap_p_value(differences: NDArray[np.float64]) -> float:
    """Two-sided p-value of no difference, from resampled differences ``[R]``: the smallest level whose percentile
    interval leaves 0 out. Never below 2 / (R + 1); NaN where no resample defines a difference.

    Source: A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application", 1997, section 4.4 and 5.
    """
    finite = differences[np.isfinite(differences)]
    if not len(finite):
        return math.nan
    tail = min((finite <= 0).sum(), (finite >= 0).sum())
    return min(1.0, 2 * float(1 + tail) / (len(finite) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for as many tests as there are, so that the chance of one false finding or more stays below
    the level. Those that are NaN stay NaN and count as no test.

    Source: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6
    (1979).
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, least = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = least
    return corrected


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test of a difference.

    Attributes:
        statistic: t or z.
        p_value: NaN where the data do not define it.
        interval: of the difference, None where the test gives none.
    """

    statistic: float
    p_value: float
    interval: tuple[float, float] | None = None


def corrected_t_test(differences: Sequence[float], test_train_ratio: float) -> PairedTest:
    """The corrected resampled t-test over folds: training sides overlap, so the variance of the mean is enlarged.

    Args:
        differences: of a metric between two models, one a fold; those that are NaN are left out.
        test_train_ratio: patients tested over patients trained on, in a fold.

    Source: C. Nadeau and Y. Bengio, "Inference for the Generalization Error", Machine Learning 52 (2003), section 3.
    """
    from scipy import stats

    d = np.array([v for v in differences if math.isfinite(v)])
    if len(d) < 2:
        return PairedTest(math.nan, math.nan)
    error = math.sqrt((1 / len(d) + test_train_ratio) * d.var(ddof=1))
    if error == 0:
        return PairedTest(math.nan, math.nan if d.mean() else 1.0)
    t = float(d.mean() / error)
    return PairedTest(t, float(2 * stats.t.sf(abs(t), len(d) - 1)))


def delong_test(
    positive: NDArray[np.bool_], a: NDArray[np.float64], b: NDArray[np.float64], *, confidence: float = 0.95
) -> PairedTest:
    """DeLong's test of the difference between two correlated areas under the ROC curve, b − a.

    It takes rows as independent; several slides of a patient are not.

    Args:
        positive: bool ``[N]``, the true class.
        a, b: scores of two models on the same rows ``[N]``, higher for the positive class.
        confidence: of the interval.

    Returns:
        z, p-value and interval; NaN where one class has fewer than two rows. p is 1 where both rank alike.

    Source: E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, "Comparing the Areas under Two or More Correlated
    Receiver Operating Characteristic Curves", Biometrics 44 (1988), equations 4 to 8; placements from midranks after
    X. Sun and W. Xu, "Fast Implementation of DeLong's Algorithm", IEEE Signal Processing Letters 21 (2014).
    """
    from scipy import stats

    if min(positive.sum(), (~positive).sum()) < 2:
        return PairedTest(math.nan, math.nan, (math.nan, math.nan))
    placements = [_placements(positive, score) for score in (a, b)]
    of_positives = np.stack([v10 for v10, _ in placements])
    of_negatives = np.stack([v01 for _, v01 in placements])
    difference = float(of_positives[1].mean() - of_positives[0].mean())
    covariance = np.cov(of_positives) / of_positives.shape[1] + np.cov(of_negatives) / of_negatives.shape[1]
    error = math.sqrt(max(0.0, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
    if error < 1e-12:
        return PairedTest(math.nan, 1.0 if abs(difference) < 1e-12 else 0.0, (difference, difference))
    z = difference / error
    half = float(stats.norm.ppf((1 + confidence) / 2)) * error
    return PairedTest(z, float(2 * stats.norm.sf(abs(z))), (difference - half, difference + half))


def _placements(
    positive: NDArray[np.bool_], score: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each positive the share of negatives below it, of each negative the share of positives above it (V10, V01);
    ties count half. Sun & Xu, equation 5: from midranks among all and among its own class."""
    from scipy.stats import rankdata

    every, ups, downs = rankdata(score), rankdata(score[positive]), rankdata(score[~positive])
    return (every[positive] - ups) / len(downs), 1 - (every[~positive] - downs) / len(ups)
