"""The bootstrap over patients, against all resamples there are, and its coverage."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from wsi2d.evaluation import statistics
from wsi2d.evaluation.statistics import (
    bootstrap_p_value,
    corrected_t_test,
    delong_test,
    patient_bootstrap,
    patient_weights,
)


def mean_of(values: np.ndarray) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return lambda weights: {"mean": weights @ values / weights.sum(1)}


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
    blocks = list(patient_weights(cases, strata, resamples=resamples))
    assert sum(map(len, blocks)) == resamples
    return [Counter({row: int(n) for row, n in enumerate(w) if n}) for block in blocks for w in block]


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

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        mean = weights @ values / weights.sum(1)
        return {"some": np.where(mean > 1.5, mean, math.nan), "none": np.full(len(mean), math.nan), "all": mean}

    found = patient_bootstrap(list("abc"), [0] * 3, statistic, resamples=500, confidence=0.95)
    assert found["some"][0] > 1.5
    assert found["all"][0] < 1.5
    assert all(map(math.isnan, found["none"]))


def test_no_resamples_no_intervals() -> None:
    assert patient_bootstrap(["a"], [0], lambda weights: {"x": weights[:, 0]}, resamples=0, confidence=0.95) == {}


def test_one_patient_has_no_spread() -> None:
    found = patient_bootstrap(["a", "a"], [0, 0], lambda weights: {"n": weights.sum(1)}, resamples=20, confidence=0.9)
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


@pytest.mark.parametrize("block", [1, 7, 10**6])
def test_blocks_do_not_change_the_draws(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cases, strata = [f"c{i // 2}" for i in range(20)], [i // 10 for i in range(20)]
    whole = np.concatenate(list(patient_weights(cases, strata, resamples=30, seed=3)))
    monkeypatch.setattr(statistics, "_CELLS_A_BLOCK", block * 20)
    blocks = list(patient_weights(cases, strata, resamples=30, seed=3))
    assert len(blocks[0]) == min(block, 30)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


# --- two models


def test_bootstrap_p_value_by_hand() -> None:
    assert bootstrap_p_value(np.array([1.0, 2, 3, -1, 4, 5, 6, 7, 8])) == pytest.approx(2 * 2 / 10)
    assert bootstrap_p_value(np.arange(1.0, 1000)) == pytest.approx(2 / 1000)
    assert bootstrap_p_value(np.zeros(50)) == 1
    assert bootstrap_p_value(np.array([math.nan, 1.0])) == 1
    assert math.isnan(bootstrap_p_value(np.array([math.nan])))


def test_corrected_t_test_by_hand() -> None:
    """Ten folds, t = mean / √((1/10 + 1/9) · variance), with 9 degrees of freedom."""
    differences = [0.02, 0.01, 0.03, -0.01, 0.02, 0.04, 0.00, 0.01, 0.03, 0.02]
    found = corrected_t_test(differences, 1 / 9)
    assert found.statistic == pytest.approx(0.017 / math.sqrt((0.1 + 1 / 9) * 0.00201 / 9), rel=1e-9)
    uncorrected = stats.ttest_1samp(differences, 0)
    assert found.statistic == pytest.approx(uncorrected.statistic / math.sqrt(1 + 10 / 9))
    assert corrected_t_test(differences, 0).p_value == pytest.approx(uncorrected.pvalue)


@pytest.mark.parametrize("differences", [[], [0.1], [math.nan, 0.1], [0.1, 0.1]])
def test_the_t_test_needs_folds_that_differ(differences: list[float]) -> None:
    assert math.isnan(corrected_t_test(differences, 0.25).p_value)


def test_the_t_test_of_a_model_with_itself() -> None:
    assert corrected_t_test([0.0, 0.0, 0.0], 0.5).p_value == 1


def delong_by_pairs(positive: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[Fraction, Fraction]:
    """Difference b − a and its variance, exactly: DeLong et al., equations 4 to 6, pair by pair."""
    m, n = int(positive.sum()), int((~positive).sum())
    theta, of_positives, of_negatives = [], [], []
    for score in (a, b):
        psi = [[Fraction(int(np.sign(x - y)) + 1, 2) for y in score[~positive]] for x in score[positive]]
        theta.append(sum(map(sum, psi)) / (m * n))
        of_positives.append([sum(row) / n for row in psi])
        of_negatives.append([sum(column) / m for column in zip(*psi, strict=True)])

    def covariance(components: list[list[Fraction]], r: int, s: int) -> Fraction:
        products = [(x - theta[r]) * (y - theta[s]) for x, y in zip(components[r], components[s], strict=True)]
        return sum(products) / (len(products) - 1)

    def total(r: int, s: int) -> Fraction:
        return covariance(of_positives, r, s) / m + covariance(of_negatives, r, s) / n

    return theta[1] - theta[0], total(0, 0) + total(1, 1) - 2 * total(0, 1)


@pytest.mark.parametrize("digits", [6, 1], ids=["fine", "ties"])
@pytest.mark.parametrize("seed", range(3))
def test_delong_equals_its_equations_pair_by_pair(seed: int, digits: int) -> None:
    generator = np.random.default_rng(seed)
    positive = generator.random(37) < 0.4
    a, b = (np.round(generator.normal(size=37) + k * positive, digits) for k in (0.5, 1.2))
    difference, variance = delong_by_pairs(positive, a, b)
    found = delong_test(positive, a, b)
    z = math.copysign(math.sqrt(difference**2 / variance), difference)
    assert found.statistic == pytest.approx(z, rel=1e-12)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-11)
    half = 1.959963984540054 * math.sqrt(variance)
    assert found.interval == pytest.approx((difference - half, difference + half), rel=1e-11)


def test_delong_of_one_marker_is_its_known_variance() -> None:
    """Against a marker that ranks all alike (area ½, no variance): 4 positives, 4 negatives, by hand.

    Placements of the positives 3/4, 1, 1, 1 and of the negatives 1, 1, 1, 3/4: area 15/16, variances 1/64 each.
    """
    positive = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    score = np.array([4.0, 6, 7, 8, 1, 2, 3, 5])
    found = delong_test(positive, np.zeros(8), score)
    assert found.statistic == pytest.approx((15 / 16 - 1 / 2) / math.sqrt(1 / 64 / 4 + 1 / 64 / 4))


def test_delong_of_a_model_with_itself() -> None:
    positive = np.array([0, 1, 0, 1, 1], bool)
    score = np.array([0.1, 0.4, 0.5, 0.8, 0.3])
    assert delong_test(positive, score, score**3).p_value == 1
    assert math.isnan(delong_test(positive[[0, 1, 3]], score[:3], score[:3]).p_value)


@pytest.mark.slow
def test_delong_keeps_its_level() -> None:
    """Of 1000 pairs of equally good models, 5 % differ at the level of 5 %."""
    generator = np.random.default_rng(3)
    positive = np.arange(80) < 40
    found = 0
    for _ in range(1000):
        shared = generator.normal(size=80) + positive
        a, b = (shared + generator.normal(size=80) for _ in range(2))
        found += delong_test(positive, a, b).p_value < 0.05
    assert 30 <= found <= 75
