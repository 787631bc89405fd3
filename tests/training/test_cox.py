"""Losses that compare patients: against lifelines, scikit-survival and loops, on real tables and on many ties."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter
from lifelines.datasets import load_rossi
from lifelines.fitters.coxph_fitter import SemiParametricPHFitter
from sksurv.datasets import load_whas500
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.linear_model.coxph import CoxPHOptimizer

from wsi2d.evaluation.survival import survival_metrics
from wsi2d.training.losses.registry import Loss, build_loss, loss_config
from wsi2d.training.risk_sets import RiskBank
from wsi2d.training.targets import Targets

Table = tuple[np.ndarray, np.ndarray, np.ndarray]


def rossi() -> Table:
    """Standardised columns ``[432, 7]``, weeks to arrest, whether it happened; 114 events in 49 weeks."""
    table = load_rossi()
    return prepared(table.drop(columns=["week", "arrest"]), table["week"], table["arrest"])


def whas500() -> Table:
    """Standardised numeric columns ``[500, 6]``, days to death, whether it happened; 215 events."""
    table, outcome = load_whas500()
    return prepared(table.select_dtypes("number"), outcome["lenfol"], outcome["fstat"])


def prepared(columns: pd.DataFrame, time: np.ndarray, event: np.ndarray) -> Table:
    x = columns.to_numpy(float)
    return (x - x.mean(0)) / x.std(0), np.array(time, float), np.array(event, bool)


TABLES: dict[str, Callable[[], Table]] = {"rossi": rossi, "whas500": whas500}


def targets_of(time: np.ndarray, event: np.ndarray) -> Targets:
    return Targets(torch.zeros(len(time), dtype=torch.long), torch.from_numpy(event), torch.from_numpy(time))


def make(name: str, **options: object) -> Loss:
    return build_loss(loss_config({"name": name, **options}, "survival"), targets_of(np.ones(1), np.ones(1, bool)), 1)


def value_and_gradient(loss: Loss, x: np.ndarray, weights: np.ndarray, targets: Targets) -> tuple[float, np.ndarray]:
    """The loss of the log-risks x·weights, and its gradient by the weights."""
    w = torch.from_numpy(weights).requires_grad_()
    value = loss((torch.from_numpy(x) @ w).unsqueeze(-1), targets)
    value.backward()
    return value.item(), w.grad.numpy()


# --- the likelihood is that of others


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("table", TABLES)
def test_cox_and_its_gradient_are_scikit_survivals(table: str, ties: str, seed: int) -> None:
    x, time, event = TABLES[table]()
    weights = np.random.default_rng(seed).normal(0, 0.5, x.shape[1])
    theirs = CoxPHOptimizer(x, event, time, np.zeros(x.shape[1]), ties)
    theirs.update(weights)
    per_event = len(time) / event.sum()  # theirs is the mean over patients
    value, gradient = value_and_gradient(make("cox", ties=ties), x, weights, targets_of(time, event))
    assert value == pytest.approx(theirs.nlog_likelihood(weights) * per_event, rel=1e-9)
    np.testing.assert_allclose(gradient, theirs.gradient * per_event, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("table", TABLES)
def test_efron_and_its_gradient_are_those_of_lifelines(table: str, seed: int) -> None:
    x, time, event = TABLES[table]()
    weights = np.random.default_rng(seed).normal(0, 0.5, x.shape[1])
    order = np.lexsort((event, time))
    frame, series = pd.DataFrame(x[order]), [pd.Series(values[order]) for values in (time, event)]
    _, gradient, likelihood = SemiParametricPHFitter()._get_efron_values_single(
        frame, *series, pd.Series(np.ones(len(x))), None, weights
    )
    value, found = value_and_gradient(make("cox"), x, weights, targets_of(time, event))
    assert value == pytest.approx(-likelihood / event.sum(), rel=1e-9)
    np.testing.assert_allclose(found, -gradient / event.sum(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("table", TABLES)
def test_the_fit_of_lifelines_is_the_minimum_and_its_likelihood_ours(table: str) -> None:
    x, time, event = TABLES[table]()
    fitted = CoxPHFitter().fit(pd.DataFrame(x).assign(time=time, event=event), "time", "event")
    value, gradient = value_and_gradient(make("cox"), x, fitted.params_.to_numpy(), targets_of(time, event))
    assert value * event.sum() == pytest.approx(-fitted.log_likelihood_, rel=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_cox_by_hand() -> None:
    """Log-risks log 1, log 2, log 3, log 4; the first two die together, then the fourth alone; the third is lost."""
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log().unsqueeze(-1)
    targets = targets_of(np.array([1.0, 1.0, 2.0, 3.0]), np.array([True, True, False, True]))
    efron = (math.log(10) + math.log(10 - 3 / 2) - math.log(1 * 2)) / 3
    breslow = (2 * math.log(10) - math.log(1 * 2)) / 3
    assert float(make("cox")(logits, targets)) == pytest.approx(efron)
    assert float(make("cox", ties="breslow")(logits, targets)) == pytest.approx(breslow)


def test_ranking_equals_a_loop_over_pairs() -> None:
    logits, targets = tied(30, 6, seed=3)
    risk, time, event = logits[:, 0].numpy(), targets.time.numpy(), targets.event.numpy()
    terms = [
        math.log(1 + math.exp(risk[j] - risk[i]))
        for i in range(30)
        for j in range(30)
        if event[i] and (time[j] > time[i] or (time[j] == time[i] and not event[j]))
    ]
    assert len(terms) > 100
    assert float(make("ranking")(logits, targets)) == pytest.approx(np.mean(terms), rel=1e-12)


def test_ranking_bounds_the_concordance_index() -> None:
    for seed in range(20):
        logits, targets = tied(25, 8, seed=seed)
        c = survival_metrics(targets.time.numpy(), targets.event.numpy(), logits[:, 0].numpy())["c_index"]
        assert 1 - c <= float(make("ranking")(logits, targets)) / math.log(2) + 1e-12


# --- properties


def tied(count: int, times: int, *, seed: int, events: float = 0.6) -> tuple[torch.Tensor, Targets]:
    """Random log-risks ``[count, 1]`` and outcomes at few different times."""
    generator = np.random.default_rng(seed)
    time = generator.integers(1, times + 1, count).astype(float)
    logits = torch.from_numpy(generator.normal(0, 1.5, (count, 1)))
    return logits, targets_of(time, generator.random(count) < events)


@pytest.mark.parametrize("seed", range(20))
def test_breslow_and_efron_agree_where_no_events_are_tied(seed: int) -> None:
    """Ties of events with censored patients do not count; of events with events they do, and Efron is lower."""
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(0, 2, (40, 1)))
    time = np.repeat(generator.permutation(20), 2).astype(float)
    efron, breslow = make("cox"), make("cox", ties="breslow")
    apart = targets_of(time, np.arange(40) % 2 == 0)
    assert float(efron(logits, apart)) == pytest.approx(float(breslow(logits, apart)), rel=1e-12)
    together = targets_of(time, np.ones(40, bool))
    assert float(efron(logits, together)) < float(breslow(logits, together))


@pytest.mark.parametrize("options", [{"name": "cox"}, {"name": "cox", "ties": "breslow"}, {"name": "ranking"}], ids=str)
class TestEachLoss:
    """What holds for all of them."""

    @pytest.mark.parametrize("times", [2, 5, 1000])
    def test_gradients(self, options: dict[str, str], times: int) -> None:
        logits, targets = tied(14, times, seed=times)
        loss = make(**options)
        assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits.requires_grad_())

    def test_order_of_patients_does_not_matter(self, options: dict[str, str]) -> None:
        logits, targets = tied(50, 7, seed=1)
        order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
        shuffled = Targets(targets.index[order], targets.event[order], targets.time[order])
        found = float(make(**options)(logits[order], shuffled))
        assert found == pytest.approx(float(make(**options)(logits, targets)), rel=1e-12)

    def test_only_differences_of_log_risks_count(self, options: dict[str, str]) -> None:
        logits, targets = tied(50, 7, seed=2)
        loss = make(**options)
        assert float(loss(logits + 100, targets)) == pytest.approx(float(loss(logits, targets)), rel=1e-9)

    @pytest.mark.parametrize("count", [1, 6])
    def test_without_events_the_loss_is_zero_and_so_are_its_gradients(
        self, options: dict[str, str], count: int
    ) -> None:
        logits, targets = tied(count, 3, seed=0, events=0)
        value = make(**options)(logits.requires_grad_(), targets)
        value.backward()
        assert value.item() == 0
        assert logits.grad.tolist() == [[0.0]] * count

    def test_an_event_that_nobody_outlives_teaches_nothing(self, options: dict[str, str]) -> None:
        logits = torch.tensor([[0.3], [1.2]], dtype=torch.float64, requires_grad=True)
        value = make(**options)(logits, targets_of(np.array([5.0, 3.0]), np.array([True, False])))
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-15)
        np.testing.assert_allclose(logits.grad, 0, atol=1e-15)

    @pytest.mark.parametrize("scale", [1e2, 1e4])
    def test_extreme_log_risks_are_finite(self, options: dict[str, str], scale: float) -> None:
        logits, targets = tied(30, 4, seed=5)
        logits = (logits * scale).float().requires_grad_()
        value = make(**options)(logits, targets)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()

    def test_a_better_order_has_a_lower_loss(self, options: dict[str, str]) -> None:
        targets = targets_of(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, True, False, True]))
        right = torch.tensor([[3.0], [2.0], [1.0], [0.0]])
        assert make(**options)(right, targets) < make(**options)(right.flip(0), targets)


# --- a linear head learns what their models learn


def c_index_in_folds(table: Table, fit: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> list[float]:
    """C-index on each fifth of the patients, by weights ``[columns]`` fitted to the others."""
    x, time, event = table
    part = np.random.default_rng(0).permutation(len(x)) % 5
    scores = []
    for k in range(5):
        weights = fit(x[part != k], time[part != k], event[part != k])
        test = part == k
        scores.append(survival_metrics(time[test], event[test], x[test] @ weights)["c_index"])
    return scores


def fit_lifelines(x: np.ndarray, time: np.ndarray, event: np.ndarray) -> np.ndarray:
    fitted = CoxPHFitter().fit(pd.DataFrame(x).assign(time=time, event=event), "time", "event")
    return fitted.params_.to_numpy()


def fit_sksurv(x: np.ndarray, time: np.ndarray, event: np.ndarray) -> np.ndarray:
    outcome = np.array(list(zip(event, time, strict=True)), [("event", bool), ("time", float)])
    return CoxPHSurvivalAnalysis(ties="efron").fit(x, outcome).coef_


def fit_whole(x: np.ndarray, time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """By our loss over all patients at once, to convergence."""
    loss, targets = make("cox"), targets_of(time, event)
    weights = torch.zeros(x.shape[1], 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(torch.from_numpy(x) @ weights, targets)
        value.backward()
        return value

    optimizer.step(step)
    return weights.detach().numpy()[:, 0]


def fit_in_steps(bags: int, bank: int, name: str = "cox") -> Callable[..., np.ndarray]:
    """By our loss over a few patients a step, as whole slides are trained."""

    def fit(x: np.ndarray, time: np.ndarray, event: np.ndarray) -> np.ndarray:
        loss, targets, rows = make(name, bags=bags, bank=bank), targets_of(time, event), torch.from_numpy(x)
        weights = torch.zeros(x.shape[1], 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=0.02)
        generator = torch.Generator().manual_seed(0)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        for _ in range(EPOCHS):
            memory = RiskBank(bank)
            for chosen in torch.randperm(len(x), generator=generator).split(bags):
                part = Targets(targets.index[chosen], targets.event[chosen], targets.time[chosen])
                optimizer.zero_grad()
                memory.loss(loss, rows[chosen] @ weights, part).backward()
                optimizer.step()
            rates.step()
        return weights.detach().numpy()[:, 0]

    return fit


EPOCHS = 20


@pytest.mark.parametrize("theirs", [fit_lifelines, fit_sksurv])
@pytest.mark.parametrize("table", TABLES)
def test_a_linear_head_reaches_the_c_index_of_their_cox_models(table: str, theirs: Callable[..., np.ndarray]) -> None:
    data = TABLES[table]()
    expected, found = c_index_in_folds(data, theirs), c_index_in_folds(data, fit_whole)
    np.testing.assert_allclose(found, expected, atol=0.005)
    assert np.mean(found) > 0.6, "there is something to learn"


@pytest.mark.parametrize(
    ("bags", "bank", "name"),
    [(16, 0, "cox"), (64, 0, "ranking"), pytest.param(1, 64, "cox", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("table", TABLES)
def test_a_few_patients_a_step_lead_to_the_same_c_index(table: str, bags: int, bank: int, name: str) -> None:
    data = TABLES[table]()
    expected, found = c_index_in_folds(data, fit_lifelines), c_index_in_folds(data, fit_in_steps(bags, bank, name))
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.005)
    np.testing.assert_allclose(found, expected, atol=0.015)
