"""Survival within folds: pairs, log-rank test and hazard ratio against counts by hand in exact numbers."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.stats import chi2, norm
from sksurv.metrics import concordance_index_ipcw, cumulative_dynamic_auc
from sksurv.nonparametric import CensoringDistributionEstimator
from sksurv.util import Surv

from wsi2d.config import EvaluationConfig
from wsi2d.evaluation.evaluate import Evaluation, evaluate
from wsi2d.evaluation.risk_groups import RiskGroups, risk_groups

Patients = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
NONE = EvaluationConfig(bootstrap=0)


def patients(seed: int, *, count: int = 60, folds: int = 3) -> Patients:
    """Time, event, risk and fold, with ties in time and risk; every fold has a scale of its own."""
    generator = np.random.default_rng(seed)
    fold = generator.integers(folds, size=count)
    risk = generator.integers(-4, 5, count) / 2
    death, censoring = generator.exponential(20 / np.exp(0.5 * risk)), generator.exponential(30, count)
    time = np.ceil(np.minimum(death, censoring) / 2)
    return time, death <= censoring, risk + 10 * fold, fold


def evaluated(people: Patients, folder: Path, config: EvaluationConfig = NONE) -> Evaluation:
    time, event, risk, fold = people
    names = [f"c{i}" for i in range(len(time))]
    frame = pd.DataFrame(
        {"slide_id": names, "case_id": names, "fold": fold, "time": time, "event": event.astype(int), "risk": risk}
    )
    frame.to_csv(folder / "predictions.csv", index=False)
    return evaluate(folder, config)


# --- pairs ---------------------------------------------------------------------------------------------------------


def concordance_by_pairs(people: Patients) -> Fraction:
    """Over all pairs of one fold of which it is known who had the event first."""
    time, event, risk, fold = people
    right, compared = Fraction(0), 0
    for i in range(len(time)):
        for j in range(len(time)):
            first = event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j]))
            if fold[i] == fold[j] and first:
                compared += 1
                right += Fraction(1, 2) if risk[i] == risk[j] else Fraction(int(risk[i] > risk[j]))
    return right / compared


@pytest.mark.parametrize("seed", range(3))
def test_c_index_counts_pairs_of_one_fold(tmp_path: Path, seed: int) -> None:
    people = patients(seed)
    found = evaluated(people, tmp_path).metrics["c_index"]
    assert found.stratified == pytest.approx(float(concordance_by_pairs(people)), abs=1e-12)
    assert abs(found.stratified - found.pooled) > 0.02, "scales of folds are seen in the pooled figure alone"


def test_scales_of_folds_change_the_pooled_figure_alone(tmp_path: Path) -> None:
    time, event, risk, fold = patients(1)
    stretched = (time, event, np.where(fold == 1, 3 * risk - 7, risk), fold)
    before, after = (evaluated(p, tmp_path).metrics for p in (patients(1), stretched))
    for name in ("c_index", "c_index_uno", "auc_at"):
        assert before[name].stratified == pytest.approx(after[name].stratified)
        assert before[name].mean == pytest.approx(after[name].mean)
        assert before[name].pooled != pytest.approx(after[name].pooled)


def test_one_fold_is_what_it_is(tmp_path: Path) -> None:
    found = evaluated(patients(2, folds=1), tmp_path).metrics
    for name in ("c_index", "c_index_uno", "auc_at"):
        assert found[name].stratified == pytest.approx(found[name].pooled)


def test_weighted_pairs_are_those_of_scikit_survival(tmp_path: Path) -> None:
    """Each fold's figure is its own, and counts as much as the pairs that it compares weigh."""
    people = patients(3, count=90)
    time, event, risk, fold = people
    found = evaluated(people, tmp_path, EvaluationConfig(bootstrap=0, at=8.0)).metrics
    values, weights = {"c_index_uno": [], "auc_at": []}, {"c_index_uno": [], "auc_at": []}
    for f in range(3):
        chosen = fold == f
        t, e, r = time[chosen], event[chosen], risk[chosen]
        truth = Surv.from_arrays(e, t)
        inverse = np.zeros(len(t))
        inverse[e] = 1 / CensoringDistributionEstimator().fit(truth).predict_proba(t[e])
        early = e & (t < t.max())
        beyond = (t[:, None] < t) | ((t[:, None] == t) & ~e)
        values["c_index_uno"].append(concordance_index_ipcw(truth, truth, r, tau=t.max())[0])
        weights["c_index_uno"].append((inverse[early, None] ** 2 * beyond[early]).sum())
        values["auc_at"].append(cumulative_dynamic_auc(truth, truth, r, [8.0])[0][0])
        weights["auc_at"].append(inverse[e & (t <= 8)].sum() * (t > 8).sum())
    for name in values:
        assert found[name].per_fold == pytest.approx(values[name])
        assert found[name].stratified == pytest.approx(np.average(values[name], weights=weights[name]))


def test_intervals_are_of_the_stratified_figure(tmp_path: Path) -> None:
    found = evaluated(patients(0, count=150), tmp_path, EvaluationConfig(bootstrap=200)).metrics
    for name in ("c_index", "c_index_uno", "auc_at"):
        low, high = found[name].stratified_interval
        assert low < found[name].stratified < high
        assert found[name].stratified_interval != found[name].pooled_interval


def test_a_fold_without_pairs_counts_nothing(tmp_path: Path) -> None:
    time, event, risk, fold = patients(4)
    lone = (np.append(time, 5.0), np.append(event, True), np.append(risk, 99.0), np.append(fold, 7))
    assert evaluated(lone, tmp_path).metrics["c_index"].stratified == pytest.approx(
        evaluated((time, event, risk, fold), tmp_path).metrics["c_index"].stratified
    )


def test_patients_of_several_folds_are_noted(tmp_path: Path) -> None:
    time, event, risk, fold = patients(0)
    frame = pd.DataFrame({"slide_id": "s", "case_id": "c", "fold": fold, "time": time, "event": event, "risk": risk})
    frame["case_id"] = frame["slide_id"] = [f"c{i}" for i in range(len(frame))]
    again = pd.concat([frame, frame[fold == 0].assign(fold=5)])
    again.assign(event=again["event"].astype(int)).to_csv(tmp_path / "predictions.csv", index=False)
    (note,) = evaluate(tmp_path, NONE).notes
    assert note.startswith(f"{(fold == 0).sum()} patients are predicted by several folds")


# --- risk groups ---------------------------------------------------------------------------------------------------


def groups_of(people: Patients) -> tuple[RiskGroups, np.ndarray]:
    """Groups by a cut of each fold, and who is in the high one."""
    time, event, risk, fold = people
    cuts = 10.0 * fold
    return risk_groups(time, event, risk, fold, training_cuts=cuts), risk > cuts


def log_rank_by_hand(people: Patients, high: np.ndarray) -> Fraction:
    """(ΣO − ΣE)² / ΣV over all event times of all folds, V of the hypergeometric distribution."""
    time, event, _, fold = people
    excess, variance = Fraction(0), Fraction(0)
    for f in np.unique(fold):
        for t in np.unique(time[event & (fold == f)]):
            at_risk = (fold == f) & (time >= t)
            died = (fold == f) & (time == t) & event
            n, n1, d = int(at_risk.sum()), int((at_risk & high).sum()), int(died.sum())
            excess += int((died & high).sum()) - Fraction(d * n1, n)
            if n > 1:
                variance += Fraction(d * n1 * (n - n1) * (n - d), n * n * (n - 1))
    return excess**2 / variance


def cox_by_hand(people: Patients, high: np.ndarray) -> tuple[float, float]:
    """Where the derivative of the partial likelihood (Efron's for ties) of all folds is 0, and the estimate's error."""
    time, event, _, fold = people

    def slopes(beta: float) -> tuple[float, float]:
        """First derivative, and minus the second."""
        weights, first, second = np.exp(beta * high), 0.0, 0.0
        for f in np.unique(fold):
            for t in np.unique(time[event & (fold == f)]):
                at_risk, died = (fold == f) & (time >= t), (fold == f) & (time == t) & event
                d = int(died.sum())
                first += (died & high).sum()
                for k in range(d):
                    total = weights[at_risk].sum() - k / d * weights[died].sum()
                    share = ((weights * high)[at_risk].sum() - k / d * (weights * high)[died].sum()) / total
                    first, second = first - share, second + share * (1 - share)
        return first, second

    best = float(brentq(lambda beta: slopes(beta)[0], -5, 5, xtol=1e-13))
    return best, 1 / math.sqrt(slopes(best)[1])


@pytest.mark.parametrize("seed", range(3))
def test_log_rank_and_hazard_ratio_by_hand(seed: int) -> None:
    people = patients(seed)
    found, high = groups_of(people)
    assert found.stratified is not None
    statistic = float(log_rank_by_hand(people, high))
    assert found.stratified.log_rank == pytest.approx(statistic, rel=1e-10)
    assert found.stratified.p_value == pytest.approx(chi2.sf(statistic, 1))
    best, error = cox_by_hand(people, high)
    assert found.stratified.hazard_ratio == pytest.approx(math.exp(best), rel=1e-6)
    half = norm.ppf(0.975) * error
    assert found.stratified.hazard_ratio_interval == pytest.approx(
        (math.exp(best - half), math.exp(best + half)), rel=1e-4
    )
    one = (people[0], people[1], people[2], np.zeros_like(people[3]))
    assert found.log_rank == pytest.approx(float(log_rank_by_hand(one, high)), rel=1e-10)


def test_baselines_of_folds_change_the_pooled_test_alone() -> None:
    """One fold in weeks, say, the others in months."""
    time, event, risk, fold = patients(0)
    before, _ = groups_of((time, event, risk, fold))
    after, _ = groups_of((np.where(fold == 1, 100 * time, time), event, risk, fold))
    assert before.stratified is not None
    assert after.stratified is not None
    assert after.stratified.log_rank == pytest.approx(before.stratified.log_rank)
    assert after.stratified.hazard_ratio == pytest.approx(before.stratified.hazard_ratio, rel=1e-6)
    assert after.log_rank != pytest.approx(before.log_rank)


def test_a_fold_in_which_nobody_can_be_compared_adds_nothing() -> None:
    people = patients(5)
    before, _ = groups_of(people)
    all_high = (np.array([3.0, 4, 9]), np.array([True, True, False]), np.full(3, 99.0), np.full(3, 7))
    all_at_once = (np.full(2, 4.0), np.full(2, True), np.array([79.0, 99.0]), np.full(2, 8))
    for more in (all_high, all_at_once):
        after, _ = groups_of(tuple(np.append(a, b) for a, b in zip(people, more, strict=True)))
        assert before.stratified is not None
        assert after.stratified is not None
        assert after.stratified.log_rank == pytest.approx(before.stratified.log_rank)


def test_groups_in_folds_of_their_own_cannot_be_compared() -> None:
    """All of one fold are of high risk, all of the other of low: together they differ, within a fold nobody does."""
    time, event, fold = np.arange(1.0, 21), np.ones(20, bool), np.arange(20) % 2
    found = risk_groups(time, event, np.where(fold == 1, 5.0, -5.0), fold, cut=0.0)
    assert math.isfinite(found.log_rank)
    assert math.isfinite(found.hazard_ratio)
    assert found.stratified is not None
    assert math.isnan(found.stratified.log_rank)
    assert math.isnan(found.stratified.p_value)
    assert math.isnan(found.stratified.hazard_ratio)


def test_a_hazard_ratio_without_an_end_is_none() -> None:
    """Each of high risk has the event before any of low risk does, in both folds: the likelihood only grows."""
    time = np.array([1.0, 2, 11, 12, 3, 4, 13, 14])
    fold = np.repeat([0, 1], 4)
    found = risk_groups(time, np.ones(8, bool), -time, fold, cut=-7.0)
    assert [math.isnan(found.hazard_ratio), found.log_rank > 5] == [True, True]
    assert found.stratified is not None
    assert math.isnan(found.stratified.hazard_ratio)
    assert found.stratified.log_rank == pytest.approx(
        float(log_rank_by_hand((time, np.ones(8, bool), -time, fold), -time > -7))
    )


def test_the_table_of_groups_tells_both() -> None:
    found, _ = groups_of(patients(0))
    assert found.stratified is not None
    low, high = found.to_csv().splitlines()[1:]
    header = found.to_csv().splitlines()[0].split(",")
    row = dict(zip(header, high.split(","), strict=True))
    assert float(row["stratified_hazard_ratio"]) == found.stratified.hazard_ratio
    assert float(row["stratified_log_rank"]) == found.stratified.log_rank
    assert float(row["hazard_ratio"]) == found.hazard_ratio
    assert dict(zip(header, low.split(","), strict=True))["stratified_hazard_ratio"] == "1.0"
    time, event, risk, fold = patients(0, folds=1)
    assert "stratified" not in risk_groups(time, event, risk, fold).to_csv()
