"""Survival curves: from hazards in discrete time, or from a log-risk and a baseline; their means and medians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class SurvivalCurve:
    """The probability of no event up to a time.

    Attributes:
        times: float64 ``[K]``, increasing, in the cohort's unit.
        probabilities: float64 ``[K]``, the curve at these times; it never rises.
        steps: true where the curve is 1 before the first time and keeps a value until the next one (as Breslow's
            estimate does), false where it is a straight line in between.
    """

    times: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    steps: bool

    def at(self, times: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """The curve at any times ``[N]``; past its last time it keeps its last value."""
        asked = np.asarray(times, float)
        found: NDArray[np.float64] = (
            np.append(1.0, self.probabilities)[np.searchsorted(self.times, asked, "right")]
            if self.steps
            else np.interp(asked, self.times, self.probabilities)
        )
        return found

    def median(self) -> float | None:
        """The first time at which the curve is at 0.5 or below, in the cohort's unit; None where it stays above."""
        low = np.flatnonzero(self.probabilities <= 0.5)
        if not len(low):
            return None
        k = int(low[0])
        if self.steps or k == 0:
            return float(self.times[k])
        above, below = self.probabilities[k - 1], self.probabilities[k]
        return float(self.times[k - 1] + (above - 0.5) / (above - below) * (self.times[k] - self.times[k - 1]))


@dataclass(frozen=True)
class Baseline:
    """The cumulative hazard of a patient whose log-risk is 0, after each event time of a training side.

    Attributes:
        times: the different event times, increasing, in the cohort's unit.
        log_hazard: the logarithm of the cumulative hazard from each of them on.
    """

    times: tuple[float, ...]
    log_hazard: tuple[float, ...]

    def curve(self, log_risk: float) -> SurvivalCurve:
        """The curve of a patient: S(t) = exp(−H(t)·exp(log_risk))."""
        exponent = np.minimum(np.asarray(self.log_hazard) + log_risk, _LARGEST_EXPONENT)
        return SurvivalCurve(np.asarray(self.times), np.exp(-np.exp(exponent)), steps=True)


def breslow(time: NDArray[np.float64], event: NDArray[np.bool_], log_risk: NDArray[np.float64]) -> Baseline:
    """Breslow's estimate of the baseline: at each event time it grows by events / Σ exp(log_risk) over those at risk.

    Args:
        time: follow-up of each patient ``[N]``, in any unit.
        event: bool ``[N]``, true where the event happened; at least one.
        log_risk: ``[N]``, higher is worse.

    Source: N. Breslow, discussion of D. R. Cox, "Regression Models and Life-Tables", JRSS B 34 (1972).
    """
    times, deaths = np.unique(time[event], return_counts=True)
    order = np.argsort(-time, kind="stable")
    at_risk = np.logaddexp.accumulate(log_risk[order])[np.searchsorted(-time[order], -times, side="right") - 1]
    log_hazard = np.logaddexp.accumulate(np.log(deaths) - at_risk)
    return Baseline(tuple(times.tolist()), tuple(log_hazard.tolist()))


def discrete_curve(
    hazards: NDArray[np.float64], edges: Sequence[float], last_event: float | None = None
) -> SurvivalCurve:
    """The curve of hazards in discrete time: 1 at time 0, Π (1 − hazard) at the end of each bin, straight in between.

    Args:
        hazards: ``[bins]``.
        edges: inner edges of the bins ``[bins − 1]``, increasing.
        last_event: where the last bin ends, the last event time of the training side; without it, or where it is no
            later than the last edge, the curve ends at that edge.
    """
    survival = np.cumprod(1 - hazards)
    times, probabilities = list(edges), survival[:-1].tolist()
    if times[0] > 0:
        times, probabilities = [0.0, *times], [1.0, *probabilities]
    if last_event is not None and last_event > times[-1]:
        times, probabilities = [*times, last_event], [*probabilities, float(survival[-1])]
    return SurvivalCurve(np.array(times, float), np.array(probabilities, float), steps=False)


def mean_curve(curves: Sequence[SurvivalCurve]) -> SurvivalCurve:
    """The mean of curves of one kind (all steps, or none), exact at every time."""
    times = np.unique(np.concatenate([curve.times for curve in curves]))
    return SurvivalCurve(times, np.mean([curve.at(times) for curve in curves], 0), curves[0].steps)
