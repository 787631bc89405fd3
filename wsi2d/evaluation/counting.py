"""Metrics by counting: each row of a table counts as often as a weight says, for many sets of weights at once.

Weights are ``[B, N]``: N rows of predictions, B resamples of them. The values ``[B]`` are those of the library that
each function names, computed on rows repeated as often as they count; NaN where the rows do not define them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def ratio(above: Array, below: Array) -> Array:
    """``above / below``, NaN where ``below`` is 0."""
    undefined: Array = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    np.divide(above, below, out=undefined, where=below != 0)
    return undefined


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows that a score puts in order, of many resamples.

    Attributes:
        right: weight ``[B]`` of those in the right order, ties counted half.
        compared: weight ``[B]`` of all.
    """

    right: Array
    compared: Array

    @property
    def share(self) -> Array:
        """How many are right, ``[B]``; NaN where there are none."""
        return ratio(self.right, self.compared)

    @staticmethod
    def together(parts: Sequence[Pairs]) -> Pairs:
        """The pairs of several tables: none of a row of one with a row of another."""
        right, compared = (np.sum([getattr(p, name) for p in parts], 0) for name in ("right", "compared"))
        return Pairs(right, compared)


@dataclass(frozen=True)
class Scores:
    """Metrics of many resamples.

    Attributes:
        values: ``[B]`` by name.
        pairs: what those of them count that are shares of pairs, and can be put together over tables.
    """

    values: dict[str, Array]
    pairs: dict[str, Pairs]


def confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int, weights: Array) -> Array:
    """Counts ``[B, classes, classes]``, true by predicted, as ``sklearn.metrics.confusion_matrix``."""
    cells = np.eye(classes * classes)[labels * classes + predicted]
    counts: Array = weights @ cells
    return counts.reshape(-1, classes, classes)


def roc_auc(score: Array, positive: Array, negative: Array) -> Array:
    """Area under the ROC curve, ties counted half, as ``sklearn.metrics.roc_auc_score``; arguments as of
    :func:`roc_pairs`."""
    return roc_pairs(score, positive, negative).share


def roc_pairs(score: Array, positive: Array, negative: Array) -> Pairs:
    """Each positive with each negative.

    Args:
        score: ``[N]``.
        positive, negative: ``[B, N]``, what each row counts as a positive and as a negative.
    """
    order, starts = _tied_groups(score)
    ups = np.add.reduceat(positive[:, order], starts, axis=1)
    downs = np.add.reduceat(negative[:, order], starts, axis=1)
    below = downs.cumsum(1) - downs / 2
    return Pairs((ups * below).sum(1), positive.sum(1) * negative.sum(1))


def average_precision(score: Array, positive: Array, negative: Array) -> Array:
    """Area under the precision-recall curve by steps, as ``sklearn.metrics.average_precision_score``."""
    order, starts = _tied_groups(-score)
    ups = np.add.reduceat(positive[:, order], starts, axis=1)
    downs = np.add.reduceat(negative[:, order], starts, axis=1)
    precision = np.nan_to_num(ratio(ups.cumsum(1), (ups + downs).cumsum(1)))
    return ratio((ups * precision).sum(1), ups.sum(1))


def calibration_error(confidence: Array, correct: NDArray[np.bool_], weights: Array, *, bins: int = 10) -> Array:
    """Expected calibration error: mean over rows of |share correct − mean confidence| in their bin of equal width.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = weights @ (np.eye(bins)[bin_of] * (correct - confidence)[:, None])
    return ratio(np.abs(gap).sum(1), weights.sum(1))


def quadratic_kappa(counts: Array) -> Array:
    """Cohen's kappa with quadratic weights of ``[B, classes, classes]``, as ``sklearn.metrics.cohen_kappa_score``."""
    grade = np.arange(counts.shape[1])
    distance = (grade[:, None] - grade[None, :]) ** 2
    chance = counts.sum(2)[:, :, None] * counts.sum(1)[:, None, :]
    expected = ratio((chance * distance).sum((1, 2)), counts.sum((1, 2)))
    return 1 - ratio((counts * distance).sum((1, 2)), expected)


def censoring_survival(time: Array, event: NDArray[np.bool_], weights: Array, at: Array) -> Array:
    """Probability ``[B, T]`` of being uncensored after each time ``at`` ``[T]``, by Kaplan-Meier with events and
    censorings exchanged; at equal times events come first. As scikit-survival's ``CensoringDistributionEstimator``."""
    return _kaplan_meier(time, event, weights, at, censoring=True)


def event_free(time: Array, event: NDArray[np.bool_], weights: Array, at: Array) -> Array:
    """Kaplan-Meier's probability ``[B, T]`` of no event up to each time ``at`` ``[T]``."""
    return _kaplan_meier(time, event, weights, at, censoring=False)


def _kaplan_meier(time: Array, event: NDArray[np.bool_], weights: Array, at: Array, *, censoring: bool) -> Array:
    order, starts = _tied_groups(time)
    counts, events = weights[:, order], (weights * event)[:, order]
    counts, events = np.add.reduceat(counts, starts, axis=1), np.add.reduceat(events, starts, axis=1)
    at_risk = counts[:, ::-1].cumsum(1)[:, ::-1]
    leaving = counts - events if censoring else events
    staying = at_risk - events if censoring else at_risk
    share = np.divide(leaving, staying, out=np.zeros_like(leaving), where=leaving > 0)
    steps = np.concatenate([np.ones((len(weights), 1)), (1 - share).cumprod(1)], 1)
    return steps[:, np.searchsorted(time[order][starts], at, side="right")]


_RISKS_TIE = 1e-8  # as scikit-survival has it
_PAIRS_A_BLOCK = 4_000_000


def concordance(
    time: Array, event: NDArray[np.bool_], risk: Array, weights: Array, pair_weights: Array | None = None
) -> tuple[Pairs, Pairs]:
    """The pairs of Harrell's concordance index, and the same with each weighted by the one who died first.

    Args:
        time, event, risk: ``[N]``; higher risk is worse.
        weights: ``[B, N]``.
        pair_weights: ``[B, N]`` or ``[1, N]``; Uno's index takes 1 / G(time)² up to its horizon.

    Returns:
        Their shares are the indices of scikit-survival's ``concordance_index_censored`` and
        ``concordance_index_ipcw``; there are none of the second kind where there are no pair weights.
    """
    plain, weighted = np.zeros((2, len(weights))), np.zeros((2, len(weights)))
    died = np.flatnonzero(event)
    block = max(1, _PAIRS_A_BLOCK // max(1, len(time)))
    for start in range(0, len(died), block):
        i = died[start : start + block]
        comparable = (time[i, None] < time) | ((time[i, None] == time) & ~event)
        tied = np.abs(risk[i, None] - risk) <= _RISKS_TIE
        agree = comparable * np.where(tied, 0.5, risk[i, None] > risk)
        for k, pairs in enumerate((agree, comparable.astype(float))):
            each = weights[:, i] * (weights @ pairs.T)
            plain[k] += each.sum(1)
            if pair_weights is not None:
                weighted[k] += (each * pair_weights[:, i]).sum(1)
    return Pairs(*plain), Pairs(*weighted)


def _tied_groups(values: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An order that sorts values, and where in it each group of equal ones begins."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    return order, np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
