"""Groups of high and low risk: where the cut comes from, and the numbers against other libraries and by hand."""

import math

import numpy as np
import pytest
from sksurv.compare import compare_survival
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from wsi2d.evaluation.risk_groups import risk_groups


def cohort(count: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Time, event, risk and fold; risks of the second fold lie 10 higher."""
    generator = np.random.default_rng(seed)
    risk, fold = generator.normal(size=count), np.arange(count) % 2
    death, censoring = generator.exponential(20 / np.exp(risk)), generator.exponential(60, count)
    return np.minimum(death, censoring), death <= censoring, risk + 10 * fold, fold


@pytest.mark.parametrize("seed", range(3))
def test_test_and_hazard_ratio_equal_scikit_survival(seed: int) -> None:
    time, event, risk, fold = cohort(seed=seed)
    found = risk_groups(time, event, risk, fold)
    high = (risk - 10 * fold) > np.array([np.median(risk[fold == f] - 10 * f) for f in (0, 1)])[fold]
    truth = Surv.from_arrays(event, time)
    statistic, p_value = compare_survival(truth, high.astype(int))
    assert (found.log_rank, found.p_value) == pytest.approx((statistic, p_value))
    cox = CoxPHSurvivalAnalysis(ties="efron").fit(high[:, None].astype(float), truth)
    assert found.hazard_ratio == pytest.approx(math.exp(cox.coef_[0]), rel=1e-5)
    assert found.hazard_ratio_interval[0] < found.hazard_ratio < found.hazard_ratio_interval[1]
    for group, side in zip(found.groups, (~high, high), strict=True):
        times, survival = kaplan_meier_estimator(event[side], time[side])
        assert group.curve.time[1:] == pytest.approx(tuple(times))
        assert group.curve.survival[1:] == pytest.approx(tuple(survival))
        assert (group.patients, group.events) == (side.sum(), event[side].sum())


def test_where_the_cut_comes_from() -> None:
    time, event, risk, fold = cohort()
    given = risk_groups(time, event, risk, fold, cut=5.0, training_cuts=np.where(fold, 10.3, 0.3))
    assert (given.cut_from, given.cuts) == ("given", (5.0, 5.0))
    assert given.groups[1].patients == (fold == 1).sum(), "all of the fold with the high scale"
    training = risk_groups(time, event, risk, fold, training_cuts=np.where(fold, 10.3, 0.3))
    assert (training.cut_from, training.cuts) == ("training", (0.3, 10.3))
    assert training.groups[1].patients == (risk > np.where(fold, 10.3, 0.3)).sum()
    own = risk_groups(time, event, risk, fold)
    assert own.cut_from == "predictions"
    assert [g.patients for g in own.groups] == [40, 40]


def test_medians_by_hand() -> None:
    time, event = np.array([1.0, 2, 3, 4, 5, 6, 7, 8]), np.ones(8, bool)
    found = risk_groups(time, event, -time, np.zeros(8, int))
    assert [(g.name, g.patients, g.median_time) for g in found.groups] == [("low", 4, 6.0), ("high", 4, 2.0)]
    assert found.groups[1].curve.at_risk == (4, 4, 3, 2, 1)


def test_groups_that_cannot_be_compared() -> None:
    time, risk, fold = np.arange(1.0, 7), np.arange(6.0), np.zeros(6, int)
    for event, cut in ((np.ones(6, bool), 9.0), (np.zeros(6, bool), 2.5), (risk > 2.5, 2.5)):
        found = risk_groups(time, event, risk, fold, cut=cut)
        assert math.isnan(found.hazard_ratio)
        assert "nan" not in found.to_csv()
        assert [g.patients for g in found.groups] == ([6, 0] if cut == 9 else [3, 3])
