"""The bootstrap over patients, against all resamples there are, and its coverage."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from wsi2d.evaluation.statistics import patient_bootstrap


def mean_of(values: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    return lambda rows: {"mean": float(values[rows].mean())}


def every_resample(cases: Sequence[str], values: np.ndarray) -> np.ndarray:
    """The mean in each of the nⁿ equally likely draws of n patients, in order."""
    of = {case: [v for c, v in zip(cases, values, strict=True) if c == case] for case in cases}
    draws = itertools.product(of.values(), repeat=len(of))
    return np.sort([np.mean([v for patient in draw for v in patient]) for draw in draws])


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_equals_that_of_all_resamples(confidence: float) -> None:
    cases = ["a", "b", "a", "c", "d", "e", "b", "a"]
    values = np.array([1.0, 5.0, 2.5, -3.1, 0.7, 8.3, 4.1, 1.7])
    exact = every_resample(cases, values)
    assert len(exact) == 5**5
    (interval,) = patient_bootstrap(
        cases, [0] * 8, mean_of(values), resamples=8000, confidence=confidence, seed=1
    ).values()
    for end, tail in zip(interval, [(1 - confidence) / 2, (1 + confidence) / 2], strict=True):
        # where that end stands among all resamples: within four standard errors of a share of 8000 draws
        error = 4 * math.sqrt(tail * (1 - tail) / 8000)
        assert np.mean(exact < end - 1e-9) - error <= tail <= np.mean(exact <= end + 1e-9) + error


def test_resampling_slides_instead_of_patients_would_show() -> None:
    # one patient of each kind with many equal slides: rows look as if they were certain
    cases = [c for c in "abcdef" for _ in range(20)]
    values = np.repeat([0.0, 1.0, 0.0, 1.0, 0.0, 1.0], 20)
    low, high = patient_bootstrap(cases, [0] * 120, mean_of(values), resamples=2000, confidence=0.95)["mean"]
    exact = every_resample(cases, values)
    assert (low, high) == pytest.approx(tuple(np.quantile(exact, [0.025, 0.975])), abs=0.01)
    assert high - low > 0.6


def drawn_rows(cases: Sequence[str], strata: Sequence[object], resamples: int = 50) -> list[Counter[int]]:
    """How often each row is in each resample."""
    seen: list[Counter[int]] = []

    def statistic(rows: np.ndarray) -> dict[str, float]:
        seen.append(Counter(rows.tolist()))
        return {"x": 0.0}

    patient_bootstrap(cases, strata, statistic, resamples=resamples, confidence=0.95)
    return seen


def test_all_rows_of_a_patient_are_drawn_together() -> None:
    cases = ["p", "q", "p", "r", "q", "p"]
    draws = drawn_rows(cases, [0] * 6)
    for draw in draws:
        assert draw[0] == draw[2] == draw[5]
        assert draw[1] == draw[4]
        assert draw[0] + draw[1] + draw[3] == 3  # as many patients as there are
    assert len({tuple(sorted(draw.items())) for draw in draws}) > 3


def test_strata_keep_their_patients() -> None:
    cases = [f"c{i}" for i in range(12)]
    strata = [0] * 3 + [1] * 7 + ["x"] * 2
    for draw in drawn_rows(cases, strata):
        counts = Counter()
        for row, times in draw.items():
            counts[strata[row]] += times
        assert counts == {0: 3, 1: 7, "x": 2}


def test_patients_are_drawn_alike_often() -> None:
    total: Counter[int] = Counter()
    for draw in drawn_rows(list("abcde"), [0] * 5, resamples=4000):
        total += draw
    assert all(abs(total[row] / 4000 - 1) < 0.06 for row in range(5))


def test_seeds() -> None:
    values = np.random.default_rng(0).normal(size=30)
    cases = [str(i) for i in range(30)]
    found = [
        patient_bootstrap(cases, [0] * 30, mean_of(values), resamples=200, confidence=0.9, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]


def test_wider_confidence_is_a_wider_interval() -> None:
    values, cases = np.random.default_rng(0).normal(size=30), [str(i) for i in range(30)]
    intervals = [
        patient_bootstrap(cases, [0] * 30, mean_of(values), resamples=500, confidence=c)["mean"]
        for c in (0.99, 0.9, 0.6)
    ]
    assert intervals[0][0] < intervals[1][0] < intervals[2][0] < values.mean()
    assert intervals[0][1] > intervals[1][1] > intervals[2][1] > values.mean()


def test_resamples_that_define_nothing_are_left_out() -> None:
    values = np.array([1.0, 2.0, 3.0])

    def statistic(rows: np.ndarray) -> dict[str, float]:
        mean = float(values[rows].mean())
        return {"some": mean if mean > 1.5 else math.nan, "none": math.nan, "all": mean}

    found = patient_bootstrap(list("abc"), [0] * 3, statistic, resamples=500, confidence=0.95)
    assert found["some"][0] > 1.5
    assert found["all"][0] < 1.5
    assert all(map(math.isnan, found["none"]))


def test_no_resamples_no_intervals() -> None:
    assert patient_bootstrap(["a"], [0], lambda rows: {"x": 1.0}, resamples=0, confidence=0.95) == {}


def test_one_patient_has_no_spread() -> None:
    found = patient_bootstrap(["a", "a"], [0, 0], lambda rows: {"n": len(rows)}, resamples=20, confidence=0.9)
    assert found == {"n": (2.0, 2.0)}


def test_coverage_of_a_mean() -> None:
    """Of 200 simulated cohorts of 40 patients with 1 to 3 slides, the 95 % interval holds the truth in about 190."""
    generator = np.random.default_rng(5)
    held = 0
    for cohort in range(200):
        slides = generator.integers(1, 4, 40)
        cases = [f"c{i}" for i in range(40) for _ in range(slides[i])]
        patient = generator.normal(2.0, 1.0, 40)
        values = np.repeat(patient, slides) + generator.normal(0, 0.2, slides.sum())
        low, high = patient_bootstrap(
            cases, [0] * len(cases), mean_of(values), resamples=200, confidence=0.95, seed=cohort
        )["mean"]
        held += low <= 2.0 <= high
    assert 180 <= held <= 198
