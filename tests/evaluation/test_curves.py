"""Survival curves against scikit-survival's and lifelines' estimates, and by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from sksurv.datasets import load_whas500
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.linear_model.coxph import BreslowEstimator

from wsi2d.evaluation.curves import SurvivalCurve, breslow, discrete_curve, mean_curve


def tied(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times with many ties, events and log-risks."""
    generator = np.random.default_rng(seed)
    return (
        generator.integers(0, 12, count).astype(float),
        generator.random(count) < 0.6,
        generator.normal(0, 1.5, count),
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_baseline_is_scikit_survivals(seed: int) -> None:
    time, event, log_risk = tied(60, seed)
    theirs = BreslowEstimator().fit(log_risk, event, time)
    found = breslow(time, event, log_risk)
    np.testing.assert_array_equal(found.times, np.unique(time[event]))
    np.testing.assert_allclose(np.exp(found.log_hazard), theirs.cum_baseline_hazard_(found.times), rtol=1e-10)
    asked = np.arange(time.min(), time.max() + 1)
    for curve, risk in zip(theirs.get_survival_function(log_risk[:9]), log_risk, strict=False):
        np.testing.assert_allclose(found.curve(risk).at(asked), curve(asked), rtol=1e-10, atol=1e-12)


def test_curves_and_medians_of_a_cox_model_are_theirs() -> None:
    table, outcome = load_whas500()
    x = table[["age", "hr", "bmi"]].to_numpy(float)
    x = (x - x.mean(0)) / x.std(0)
    time, event = np.array(outcome["lenfol"]), np.array(outcome["fstat"])
    frame = pd.DataFrame(x).assign(time=time, event=event)
    fitted = CoxPHFitter().fit(frame, "time", "event")
    log_risk = x @ fitted.params_.to_numpy()
    found = breslow(time, event, log_risk)
    asked = np.unique(time)[::20]  # between observed times lifelines draws lines
    theirs = fitted.predict_survival_function(frame, asked).to_numpy()
    np.testing.assert_allclose([found.curve(r).at(asked) for r in log_risk], theirs.T, rtol=1e-6)
    medians = [found.curve(r).median() for r in log_risk]
    expected = fitted.predict_median(frame).to_numpy()
    assert [math.inf if m is None else m for m in medians] == expected.tolist()
    assert None in medians
    assert min(m for m in medians if m is not None) < 100
    model = CoxPHSurvivalAnalysis(ties="efron").fit(x, outcome)
    curves = model.predict_survival_function(x[:20])
    for risk, curve in zip(log_risk, curves, strict=False):
        np.testing.assert_allclose(found.curve(risk).at(asked), curve(asked), rtol=1e-4)


def test_breslow_by_hand() -> None:
    """Relative risks 1, 2, 3; the second dies at 2, the first and the third at 5."""
    found = breslow(np.array([5.0, 2.0, 5.0]), np.ones(3, bool), np.log([1.0, 2.0, 3.0]))
    assert found.times == (2.0, 5.0)
    assert np.exp(found.log_hazard) == pytest.approx([1 / 6, 1 / 6 + 2 / 4])
    curve = found.curve(math.log(3))
    assert curve.at([0, 1.99, 2, 4.99, 5, 99]) == pytest.approx([1, 1, *[math.exp(-0.5)] * 2, *[math.exp(-2)] * 2])
    assert curve.median() == 5.0
    assert found.curve(math.log(0.1)).median() is None
    assert found.curve(math.log(6)).median() == 2.0


def test_log_risks_of_any_size_make_curves_from_one_to_zero() -> None:
    time, event, log_risk = tied(60, 0)
    found = breslow(time, event, log_risk * 1000)
    for risk in (-1e6, -1e3, 0.0, 1e3, 1e6):
        curve = found.curve(risk)
        assert np.isfinite(curve.probabilities).all()
        assert ((curve.probabilities >= 0) & (curve.probabilities <= 1)).all()
        assert (np.diff(curve.probabilities) <= 0).all()


def test_a_constant_added_to_all_log_risks_changes_no_curve() -> None:
    time, event, log_risk = tied(60, 1)
    a, b = breslow(time, event, log_risk), breslow(time, event, log_risk + 7)
    np.testing.assert_allclose(a.curve(0.3).probabilities, b.curve(7.3).probabilities, rtol=1e-10)


def test_hazards_make_lines_between_the_ends_of_bins() -> None:
    curve = discrete_curve(np.array([0.2, 0.5, 0.5]), (10.0, 20.0), 40.0)  # 1, 0.8, 0.4, 0.2 at 0, 10, 20, 40
    assert curve.at([0, 5, 10, 15, 20, 30, 40, 99]) == pytest.approx([1, 0.9, 0.8, 0.6, 0.4, 0.3, 0.2, 0.2])
    assert curve.median() == pytest.approx(17.5)
    assert discrete_curve(np.array([0.5, 0.1]), (8.0,), 9.0).median() == 8.0
    assert discrete_curve(np.array([0.1, 0.1, 0.1]), (10.0, 20.0), 40.0).median() is None


def test_the_last_bin_ends_with_the_last_event_where_that_is_known() -> None:
    hazards = np.array([0.2, 0.9])
    assert discrete_curve(hazards, (10.0,), 20.0).median() == pytest.approx(10 + 10 * 0.3 / 0.72)
    for last in (None, 10.0):
        curve = discrete_curve(hazards, (10.0,), last)
        assert curve.median() is None
        assert curve.at([10, 20]) == pytest.approx([0.8, 0.8])


def test_bins_may_begin_with_events_at_time_zero() -> None:
    curve = discrete_curve(np.array([0.6, 0.5]), (0.0,), 4.0)
    assert curve.at([0, 2, 4]) == pytest.approx([0.4, 0.3, 0.2])
    assert curve.median() == 0.0


@pytest.mark.parametrize("steps", [True, False])
def test_the_mean_of_curves_is_exact_at_every_time(steps: bool) -> None:
    generator = np.random.default_rng(0)
    curves = []
    for count in (3, 7, 5):
        times = np.sort(generator.uniform(0, 50, count))
        curves.append(SurvivalCurve(times, np.sort(generator.random(count))[::-1], steps))
    asked = np.linspace(0, 60, 1001)
    np.testing.assert_allclose(mean_curve(curves).at(asked), np.mean([c.at(asked) for c in curves], 0), atol=1e-12)
