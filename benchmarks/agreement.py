"""Every statistic of `wsi2d evaluate` beside the same of scikit-learn, scikit-survival and lifelines.

`python benchmarks/agreement.py` prints a table in Markdown, with the largest difference over 20 simulated tables, and
the time of 1000 resamples both ways. The Cox loss and its gradient are taken at 20 random weights on two published
tables, and the concordance of a linear head that it trains on five folds of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.datasets import load_rossi
from lifelines.fitters.coxph_fitter import SemiParametricPHFitter
from lifelines.utils import concordance_index
from sklearn import metrics as sk
from sksurv import metrics as sksurv
from sksurv.compare import compare_survival
from sksurv.datasets import load_whas500
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.linear_model.coxph import CoxPHOptimizer
from sksurv.util import Surv

from wsi2d.evaluation import counting
from wsi2d.evaluation.metrics import classification_metrics, classification_scores
from wsi2d.evaluation.risk_groups import risk_groups
from wsi2d.evaluation.survival import SurvivalTable, survival_metrics, survival_scores
from wsi2d.training.losses.registry import build_loss, loss_config
from wsi2d.training.targets import Targets

TABLES = 20
FOLDS = 5
Patients = tuple[np.ndarray, np.ndarray, np.ndarray]  # standardised columns, time, event
Pairs = dict[tuple[str, str], tuple[float, float]]


def classification(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels ``[120]`` and probabilities ``[120, classes]`` that lean to them."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(120) % classes)
    raw = generator.random((120, classes)) + 0.4 * np.eye(classes)[labels]
    return labels, raw / raw.sum(1, keepdims=True)


def of_classes(seed: int) -> Pairs:
    """Ours and scikit-learn's: two classes, and four grades."""
    y, p = classification(seed, 2)
    two, name = classification_metrics(y, p), "scikit-learn"
    pairs = {
        ("auc, 2 classes", name): (two["auc"], sk.roc_auc_score(y, p[:, 1])),
        ("auprc, 2 classes", name): (two["auprc"], sk.average_precision_score(y, p[:, 1])),
    }
    y, p = classification(seed, 4)
    four, said = classification_metrics(y, p, ordered=True), p.argmax(1)
    confusion = counting.confusion(y, said, 4, np.ones((1, len(y))))[0]
    apart = float(np.abs(confusion - sk.confusion_matrix(y, said)).max())
    return pairs | {
        ("auc, 4 classes", name): (four["auc"], sk.roc_auc_score(y, p, multi_class="ovr")),
        ("auc_micro", name): (four["auc_micro"], sk.roc_auc_score(np.eye(4)[y], p, average="micro")),
        ("auprc, 4 classes", name): (four["auprc"], sk.average_precision_score(np.eye(4)[y], p)),
        ("f1", name): (four["f1"], sk.f1_score(y, said, average="macro")),
        ("accuracy", name): (four["accuracy"], sk.accuracy_score(y, said)),
        ("balanced_accuracy", name): (four["balanced_accuracy"], sk.balanced_accuracy_score(y, said)),
        ("quadratic_kappa", name): (four["quadratic_kappa"], sk.cohen_kappa_score(y, said, weights="quadratic")),
        ("confusion matrix", name): (apart, 0.0),
    }


def of_survival(seed: int) -> Pairs:
    """Ours, scikit-survival's and lifelines'."""
    generator = np.random.default_rng(seed)
    risk = generator.normal(size=300)
    death, censoring = generator.exponential(20 / np.exp(risk)), generator.exponential(40, 300)
    observed, event = np.minimum(death, censoring), death <= censoring
    # those trained on are followed as long as any, which the peers ask for
    train = np.append(observed[:180], observed.max() + 1), np.append(event[:180], False)
    test = slice(180, None)
    t, e, r = observed[test], event[test], risk[test]
    grid, at = np.quantile(t[e], np.linspace(0.1, 0.8, 15)), float(np.median(t[e]))
    curves = np.exp(-np.exp(r)[:, None] * grid / 20)
    patients = SurvivalTable(t, e, r, at, np.exp(-np.exp(r) * at / 20), grid, curves)
    scored = survival_scores(patients, np.ones((1, len(t))), train=train)
    ours = {name: float(v[0]) for name, v in scored.values.items()}
    trained, tested = Surv.from_arrays(train[1], train[0]), Surv.from_arrays(e, t)
    kaplan_meier = 1 - float(KaplanMeierFitter().fit(t, e).predict(at))
    high = r > np.median(r)
    groups = risk_groups(t, e, r, np.zeros(len(t), int))
    cox = CoxPHSurvivalAnalysis(ties="efron", tol=1e-12).fit(high[:, None].astype(float), tested)
    mine, name = ours["c_index"], "scikit-survival"
    uno = sksurv.concordance_index_ipcw(trained, tested, r, tau=t.max())[0]
    return {
        ("c_index", name): (mine, sksurv.concordance_index_censored(e, t, r)[0]),
        ("c_index", "lifelines"): (mine, concordance_index(t, -r, e)),
        ("c_index, stratified", name): within_folds(t, e, r, generator.integers(4, size=len(t))),
        ("c_index_uno", name): (ours["c_index_uno"], uno),
        ("auc_at", name): (ours["auc_at"], sksurv.cumulative_dynamic_auc(trained, tested, r, [at])[0][0]),
        ("brier_integrated", name): (
            ours["brier_integrated"],
            sksurv.integrated_brier_score(trained, tested, curves, grid),
        ),
        ("observed_expected", "lifelines"): (
            ours["observed_expected"],
            kaplan_meier / (1 - np.exp(-np.exp(r) * at / 20)).mean(),
        ),
        ("log-rank", name): (groups.log_rank, compare_survival(tested, high.astype(int))[0]),
        ("hazard ratio", name): (groups.hazard_ratio, float(np.exp(cox.coef_[0]))),
    }


def within_folds(t: np.ndarray, e: np.ndarray, r: np.ndarray, fold: np.ndarray) -> tuple[float, float]:
    """Share of the pairs of one fold that are in the right order, from our counts and from scikit-survival's."""
    ours, right, compared = [], 0.0, 0.0
    for f in np.unique(fold):
        part = e[fold == f], t[fold == f], r[fold == f]
        ours.append(counting.concordance(part[1], part[0], part[2], np.ones((1, len(part[0]))))[0])
        _, concordant, discordant, tied, _ = sksurv.concordance_index_censored(*part)
        right, compared = right + concordant + tied / 2, compared + concordant + discordant + tied
    return float(counting.Pairs.together(ours).share[0]), right / compared


def rossi() -> Patients:
    """432 convicts, 7 columns, weeks to arrest; lifelines'."""
    table = load_rossi()
    return _prepared(table.drop(columns=["week", "arrest"]), table["week"], table["arrest"])


def whas500() -> Patients:
    """500 patients, 6 numeric columns, days to death; scikit-survival's."""
    table, outcome = load_whas500()
    return _prepared(table.select_dtypes("number"), outcome["lenfol"], outcome["fstat"])


def _prepared(columns: pd.DataFrame, time: np.ndarray, event: np.ndarray) -> Patients:
    x = columns.to_numpy(float)
    return (x - x.mean(0)) / x.std(0), np.array(time, float), np.array(event, bool)


def cox(x: np.ndarray, time: np.ndarray, event: np.ndarray, weights: torch.Tensor) -> torch.Tensor:
    """Our loss, ties by Efron, of the log-risks x·weights."""
    targets = Targets(torch.zeros(len(time), dtype=torch.long), torch.from_numpy(event), torch.from_numpy(time))
    loss = build_loss(loss_config({"name": "cox"}, "survival"), targets, 1)
    return loss((torch.from_numpy(x) @ weights).unsqueeze(-1), targets)


def of_cox(seed: int) -> Pairs:
    """The loss and the largest difference of its gradient, an event, at random weights."""
    pairs: Pairs = {}
    for name, (x, followed, event) in (("rossi", rossi()), ("whas500", whas500())):
        weights = np.random.default_rng(seed).normal(0, 0.5, x.shape[1])
        at = torch.from_numpy(weights).requires_grad_()
        value = cox(x, followed, event, at)
        (gradient,) = torch.autograd.grad(value, at)
        order = np.lexsort((event, followed))
        series = [pd.Series(values[order]) for values in (followed, event, np.ones(len(x)))]
        _, slope, likelihood = SemiParametricPHFitter()._get_efron_values_single(
            pd.DataFrame(x[order]), *series, None, weights
        )
        peer = CoxPHOptimizer(x, event, followed, np.zeros(x.shape[1]), "efron")
        peer.update(weights)
        events, count = event.sum(), len(followed)
        for library, theirs, gradient_of in (
            ("lifelines", -likelihood / events, -slope / events),
            ("scikit-survival", peer.nlog_likelihood(weights) * count / events, peer.gradient * count / events),
        ):
            pairs[f"cox loss, {name}", library] = value.item(), float(theirs)
            pairs[f"cox gradient, {name}", library] = float(np.abs(gradient.numpy() - gradient_of).max()), 0.0
    return pairs


def of_heads() -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Concordance on each of five folds, of a linear head by our loss and of their Cox models."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name, (x, followed, event) in (("rossi", rossi()), ("whas500", whas500())):
        part = np.random.default_rng(0).permutation(len(x)) % FOLDS
        for k in range(FOLDS):
            rest, test = part != k, part == k
            frame = pd.DataFrame(x[rest]).assign(time=followed[rest], event=event[rest])
            outcome = Surv.from_arrays(event[rest], followed[rest])
            weights = {
                "lifelines": CoxPHFitter().fit(frame, "time", "event").params_.to_numpy(),
                "scikit-survival": CoxPHSurvivalAnalysis(ties="efron").fit(x[rest], outcome).coef_,
            }
            ours = _c_index(x[test], followed[test], event[test], linear_head(x[rest], followed[rest], event[rest]))
            for library, theirs in weights.items():
                pair = ours, _c_index(x[test], followed[test], event[test], theirs)
                found.setdefault((f"c_index of a linear head, {name}", library), []).append(pair)
    return found


def linear_head(x: np.ndarray, time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Weights by our loss over all patients at once, to convergence."""
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def step() -> float:
        optimizer.zero_grad()
        value = cox(x, time, event, weights)
        value.backward()
        return value.item()

    optimizer.step(step)
    return weights.detach().numpy()


def _c_index(x: np.ndarray, time: np.ndarray, event: np.ndarray, weights: np.ndarray) -> float:
    return survival_metrics(time, event, x @ weights)["c_index"]


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def resamples_both_ways() -> tuple[float, float]:
    """1000 resamples of 60 slides: all at once, and one by one through scikit-learn (four metrics of two classes)."""
    labels, probabilities = (x[:60] for x in classification(0, 2))
    draws = np.random.default_rng(0).integers(60, size=(1000, 60))
    weights = np.stack([np.bincount(d, minlength=60) for d in draws]).astype(float)

    def one_by_one() -> None:
        for rows in draws:
            y, p = labels[rows], probabilities[rows]
            sk.roc_auc_score(y, p[:, 1])
            sk.average_precision_score(y, p[:, 1])
            sk.f1_score(y, p.argmax(1), average="macro")
            sk.balanced_accuracy_score(y, p.argmax(1))

    return seconds(lambda: classification_scores(labels, probabilities, weights)), seconds(one_by_one)


def main() -> None:
    """Print the tables."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for seed in range(TABLES):
        for key, pair in (of_classes(seed) | of_survival(seed) | of_cox(seed)).items():
            found.setdefault(key, []).append(pair)
    found |= of_heads()
    print(f"| statistic | library | ours, first of {TABLES} | theirs | largest difference of {TABLES} |")
    print("|---|---|---|---|---|")
    for (name, library), pairs in found.items():
        ours, theirs = pairs[0]
        print(f"| {name} | {library} | {ours:.6f} | {theirs:.6f} | {max(abs(a - b) for a, b in pairs):.0e} |")
    at_once, one_by_one = resamples_both_ways()
    packages = ", ".join(
        f"{p} {version(p)}" for p in ("scikit-learn", "scikit-survival", "lifelines", "numpy", "torch")
    )
    print(f"\nOf linear heads: first and largest of {FOLDS} folds. Of gradients: the largest difference of an entry.")
    print("Log-rank and hazard ratio are computed by lifelines, and held against scikit-survival.")
    print(f"1000 resamples of 60 slides: {at_once * 1000:.0f} ms; one by one in scikit-learn {one_by_one:.1f} s")
    print(packages)


if __name__ == "__main__":
    main()
