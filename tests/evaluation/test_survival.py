"""Survival metrics against scikit-survival, on tables as they are and on their resamples."""

import math
import warnings

import numpy as np
import pytest
from sksurv import metrics as sksurv
from sksurv.util import Surv

from wsi2d.evaluation.survival import SurvivalTable, survival_scores

Outcomes = tuple[np.ndarray, np.ndarray]


def outcomes(count: int, seed: int, *, ties: bool = False) -> Outcomes:
    generator = np.random.default_rng(seed)
    death, censoring = generator.exponential(30, count), generator.exponential(45, count)
    time = np.minimum(death, censoring)
    return (np.ceil(time / 5) if ties else time), death <= censoring


def table(count: int, seed: int, *, ties: bool = False) -> SurvivalTable:
    """Patients with noisy risks and exponential curves that follow them."""
    time, event = outcomes(count, seed, ties=ties)
    generator = np.random.default_rng(seed + 100)
    risk = -time / time.std() + generator.normal(size=count)
    risk = np.round(risk) if ties else risk
    grid = np.quantile(time[event], np.linspace(0.1, 0.7, 9))
    grid = np.unique(grid)
    rate = np.exp(0.5 * risk) / time.mean()
    at = float(np.median(time[event]))
    return SurvivalTable(time, event, risk, at, np.exp(-rate * at), grid, np.exp(-rate[:, None] * grid))


def by_scikit_survival(patients: SurvivalTable, train: Outcomes) -> dict[str, float]:
    test, trained = Surv.from_arrays(patients.event, patients.time), Surv.from_arrays(train[1], train[0])
    last = min(patients.time.max(), train[0].max())
    found = {
        "c_index": sksurv.concordance_index_censored(patients.event, patients.time, patients.risk)[0],
        "c_index_uno": sksurv.concordance_index_ipcw(trained, test, patients.risk, tau=last)[0],
    }
    if train[0].max() > patients.time.max():  # the peer refuses patients who are followed longer than those trained on
        found["auc_at"] = sksurv.cumulative_dynamic_auc(trained, test, patients.risk, [patients.at])[0][0]
        found["brier_integrated"] = sksurv.integrated_brier_score(trained, test, patients.grid_survival, patients.grid)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True], ids=["fine", "ties"])
def test_equal_to_scikit_survival_with_the_training_sides_censoring(seed: int, ties: bool) -> None:
    patients, train = table(60, seed, ties=ties), outcomes(90, seed + 50, ties=ties)
    train = np.append(train[0], patients.time.max() + 1), np.append(train[1], False)
    found = survival_scores(patients, np.ones((1, 60)), train=train).values
    expected = by_scikit_survival(patients, train)
    assert len(expected) == 4
    assert {name: found[name][0] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_uno_of_patients_followed_longer_than_those_trained_on() -> None:
    patients, train = table(60, 1), outcomes(40, 9)
    short = train[0] < np.quantile(patients.time, 0.8)
    train = train[0][short], train[1][short]
    assert train[0].max() < patients.time.max()
    found = survival_scores(patients, np.ones((1, 60)), train=train).values["c_index_uno"][0]
    assert found == pytest.approx(by_scikit_survival(patients, train)["c_index_uno"], abs=1e-12)


@pytest.mark.parametrize("own", [True, False], ids=["own-censoring", "training-side"])
def test_resamples_equal_scikit_survival_on_repeated_rows(own: bool) -> None:
    """Each resample as its rows stand in it, one by one; its own censoring is estimated anew in each."""
    patients, train = table(50, 3), outcomes(90, 8)
    train = np.append(train[0], patients.time.max() + 1), np.append(train[1], False)
    generator = np.random.default_rng(0)
    weights = np.stack([np.bincount(generator.integers(50, size=50), minlength=50) for _ in range(20)]).astype(float)
    found = survival_scores(patients, weights, train=None if own else train).values
    for k, weight in enumerate(weights):
        rows = np.repeat(np.arange(50), weight.astype(int))
        part = patients[rows]
        given = (part.time, part.event) if own else train
        expected = by_scikit_survival(part, given)
        assert len(expected) == (2 if own else 4)
        assert {name: found[name][k] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_observed_over_expected_by_hand() -> None:
    """Four patients, one censored before the time: Kaplan-Meier 3/4 · 1/2, so 5/8 had the event."""
    time, event = np.array([1.0, 2, 3, 9]), np.array([True, False, True, False])
    predicted = np.array([0.2, 0.6, 0.4, 0.8])
    patients = SurvivalTable(time, event, np.arange(4.0), 4.0, predicted, np.zeros(0), np.zeros((4, 0)))
    found = survival_scores(patients, np.ones((1, 4))).values
    assert found["observed_expected"][0] == pytest.approx((5 / 8) / 0.5)
    assert math.isnan(found["brier_integrated"][0]), "no times to integrate over"


def without_curves(time: list[float], event: list[int], at: float = 1.5) -> SurvivalTable:
    count = len(time)
    return SurvivalTable(
        np.array(time, float), np.array(event, bool), np.arange(count, dtype=float), at, None, np.zeros(0),
        np.zeros((count, 0)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("time", "event"),
    [([1.0, 2.0], [0, 0]), ([3.0], [1]), ([], []), ([2.0, 2.0], [1, 1])],
    ids=["no-event", "one", "none", "same-time"],
)
def test_what_is_not_defined_is_nan_and_silent(time: list[float], event: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = survival_scores(without_curves(time, event), np.ones((2, len(time)))).values
    assert list(found) == ["c_index", "c_index_uno", "auc_at"]
    assert np.isnan(list(found.values())).all()
