"""Every statistic of `wsi2d evaluate` beside the same of scikit-learn, scikit-survival and lifelines.

`python benchmarks/agreement.py` prints a table in Markdown, with the largest difference over 20 simulated tables, and
the time of 1000 resamples both ways.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index
from sklearn import metrics as sk
from sksurv import metrics as sksurv
from sksurv.compare import compare_survival
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from wsi2d.evaluation import counting
from wsi2d.evaluation.metrics import classification_metrics, classification_scores
from wsi2d.evaluation.risk_groups import risk_groups
from wsi2d.evaluation.survival import SurvivalTable, survival_scores

TABLES = 20
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
        for key, pair in (of_classes(seed) | of_survival(seed)).items():
            found.setdefault(key, []).append(pair)
    print(f"| statistic | library | ours, first of {TABLES} | theirs | largest difference of {TABLES} |")
    print("|---|---|---|---|---|")
    for (name, library), pairs in found.items():
        ours, theirs = pairs[0]
        print(f"| {name} | {library} | {ours:.6f} | {theirs:.6f} | {max(abs(a - b) for a, b in pairs):.0e} |")
    at_once, one_by_one = resamples_both_ways()
    packages = ", ".join(f"{p} {version(p)}" for p in ("scikit-learn", "scikit-survival", "lifelines", "numpy"))
    print("\nLog-rank and hazard ratio are computed by lifelines, and held against scikit-survival.")
    print(f"1000 resamples of 60 slides: {at_once * 1000:.0f} ms; one by one in scikit-learn {one_by_one:.1f} s")
    print(packages)


if __name__ == "__main__":
    main()
