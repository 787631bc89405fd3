"""What the fits of `benchmarks/spatial.py` say: accuracies, paired differences, intervals, as a Markdown table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi2d.evaluation.statistics import bootstrap_values, corrected_t_test, percentile_interval

CONFIDENCE = 0.95
RESAMPLES = 2000

Fits = Mapping[tuple[int, int], NDArray[np.bool_]]
"""By (seed, fold): whether each test item was right."""


@dataclass(frozen=True)
class Row:
    """A model's line.

    Attributes:
        accuracy, sd: mean and standard deviation over fits.
        interval: of the accuracy, over items.
        difference: the reference's accuracy less this one's, NaN for the reference itself.
        difference_interval: likewise, over items, both models' fits kept together.
        p_value: of no difference, over fits (t-test corrected for training sides that overlap).
    """

    accuracy: float
    sd: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    p_value: float


def complete_seeds(found: Mapping[str, Fits], seeds: Sequence[int], folds: int) -> list[int]:
    """Seeds of which every model has every fold."""
    return [s for s in seeds if all((s, k) in fits for fits in found.values() for k in range(folds))]


def score(
    found: Mapping[str, Fits],
    tested: Mapping[tuple[int, int], NDArray[np.int64]],
    *,
    reference: str,
    cases: Sequence[int],
    strata: Sequence[int],
    seed: int = 0,
) -> dict[str, Row]:
    """Accuracies of models, and how far the reference is ahead of each.

    An item's accuracy is the mean over the seeds in which it was tested; items that belong together are drawn together,
    so that neither seeds nor pairs count as independent.

    Args:
        found: right or wrong, by model and fit; every model has the fits of ``tested``.
        tested: items of each fit's test side, every item once a seed.
        reference: the model that others are compared with.
        cases: of each item ``[N]``, what it belongs to and is drawn with.
        strata: of each item ``[N]``; items are drawn within them.
        seed: of the draws.
    """
    rates = {name: _item_rates(fits, tested, len(cases)) for name, fits in found.items()}
    names, table = list(rates), np.stack(list(rates.values()))

    def means(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return dict(zip(names, table @ weights.T / weights.sum(1), strict=True))

    drawn = bootstrap_values([str(c) for c in cases], list(strata), means, resamples=RESAMPLES, seed=seed)
    ratio = 1 / (len({fold for _, fold in tested}) - 1)
    ours = _fit_rates(found[reference], tested)
    rows = {}
    for name in names:
        each = _fit_rates(found[name], tested)
        apart = ours - each
        itself = name == reference
        rows[name] = Row(
            accuracy=float(rates[name].mean()),
            sd=float(each.std(ddof=1)),
            interval=percentile_interval(drawn[name], CONFIDENCE),
            difference=math.nan if itself else float(rates[reference].mean() - rates[name].mean()),
            difference_interval=percentile_interval(drawn[reference] - drawn[name], CONFIDENCE),
            p_value=math.nan if itself else corrected_t_test(apart.tolist(), ratio).p_value,
        )
    return rows


def _item_rates(fits: Fits, tested: Mapping[tuple[int, int], NDArray[np.int64]], items: int) -> NDArray[np.float64]:
    """Of each item the share of seeds in which it was right."""
    right, count = np.zeros(items), np.zeros(items)
    for fit, places in tested.items():
        right[places] += fits[fit]
        count[places] += 1
    if not (count == len({seed for seed, _ in tested})).all():
        raise ValueError("tested: every item should be tested once a seed")
    return right / count


def _fit_rates(fits: Fits, tested: Mapping[tuple[int, int], NDArray[np.int64]]) -> NDArray[np.float64]:
    return np.array([fits[fit].mean() for fit in tested])


def markdown(rows: Mapping[str, Row], details: Mapping[str, tuple[str, int, float, float]], reference: str) -> str:
    """The table, best first.

    Args:
        rows: by model.
        details: by model, what it is, its weights, its rate, and the mean CPU seconds of a fit.
        reference: as of :func:`score`.
    """
    lines = [
        f"| model | what reads the grid | accuracy ± sd of fits [95 %] | {reference} is ahead by [95 %] | p | weights "
        "| rate | CPU s a fit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(rows, key=lambda name: -rows[name].accuracy):
        row, (about, weights, lr, seconds) = rows[name], details[name]
        low, high = row.interval
        accuracy = f"{row.accuracy:.4f} ± {row.sd:.4f} [{low:.4f}, {high:.4f}]"
        ahead, p = "–", "–"
        if not math.isnan(row.difference):
            ahead = f"{row.difference:+.4f} [{row.difference_interval[0]:+.4f}, {row.difference_interval[1]:+.4f}]"
            p = "–" if math.isnan(row.p_value) else f"{row.p_value:.1g}"
        bold = "**" if name == reference else ""
        lines.append(
            f"| {bold}`{name}`{bold} | {about} | {accuracy} | {ahead} | {p} | {weights:,} | {lr:g} | {seconds:.1f} |"
        )
    return "\n".join(lines)
