"""Classification and survival metrics against scikit-learn, scikit-survival and loops over pairs."""

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk
from sksurv.metrics import concordance_index_censored

from wsi2d.evaluation.metrics import CLASSIFICATION_METRICS, auc, classification_metrics, classification_scores
from wsi2d.evaluation.survival import SURVIVAL_METRICS, survival_metrics


def predictions(count: int, classes: int, seed: int, *, digits: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Labels with every class among them, and probabilities that lean to them; few digits make ties."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % classes)
    raw = generator.random((count, classes)) + 0.4 * np.eye(classes)[labels]
    probabilities = np.round(raw / raw.sum(1, keepdims=True), digits)
    probabilities[:, -1] = 1 - probabilities[:, :-1].sum(1)
    return labels, probabilities


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("digits", [6, 1], ids=["fine", "ties"])
def test_two_classes_equal_scikit_learn(seed: int, digits: int) -> None:
    labels, probabilities = predictions(41, 2, seed, digits=digits)
    predicted = probabilities.argmax(1)
    assert classification_metrics(labels, probabilities) == pytest.approx(
        {
            "auc": sk.roc_auc_score(labels, probabilities[:, 1]),
            "f1": sk.f1_score(labels, predicted, average="macro"),
            "accuracy": sk.accuracy_score(labels, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
            "auprc": sk.average_precision_score(labels, probabilities[:, 1]),
            "ece": calibration_error_by_bins(labels, probabilities),
        },
        abs=1e-12,
    )


def calibration_error_by_bins(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Guo et al., equation 3, over the bins (0, 0.1], …, (0.9, 1]."""
    confidence, error = probabilities.max(1), 0.0
    for low in range(10):
        inside = (confidence * 10 > low) & (confidence * 10 <= low + 1)
        if inside.any():
            hits = (labels == probabilities.argmax(1))[inside].mean()
            error += inside.mean() * abs(hits - confidence[inside].mean())
    return error


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [3, 6])
def test_more_classes_equal_scikit_learn(classes: int, seed: int) -> None:
    labels, probabilities = predictions(60, classes, seed)
    predicted = probabilities.argmax(1)
    truth = np.eye(classes)[labels]
    assert classification_metrics(labels, probabilities, ordered=True) == pytest.approx(
        {
            "auc": sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
            "f1": sk.f1_score(labels, predicted, average="macro"),
            "accuracy": sk.accuracy_score(labels, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
            "auprc": sk.average_precision_score(truth, probabilities, average="macro"),
            "ece": calibration_error_by_bins(labels, probabilities),
            "auc_micro": sk.roc_auc_score(truth, probabilities, average="micro"),
            "quadratic_kappa": sk.cohen_kappa_score(labels, predicted, weights="quadratic"),
        },
        abs=1e-12,
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_resamples_equal_scikit_learn_on_repeated_rows(classes: int) -> None:
    """All at once by counting, against each resample as its rows stand in it; some lack a class."""
    labels, probabilities = predictions(14, classes, 1, digits=1)
    generator = np.random.default_rng(0)
    weights = np.stack([np.bincount(generator.integers(14, size=14), minlength=14) for _ in range(60)]).astype(float)
    found = classification_scores(labels, probabilities, weights, ordered=True)
    whole = 0
    for k, weight in enumerate(weights):
        rows = np.repeat(np.arange(14), weight.astype(int))
        y, p, predicted = labels[rows], probabilities[rows], probabilities[rows].argmax(1)
        expected = {
            "f1": sk.f1_score(y, predicted, average="macro"),
            "accuracy": sk.accuracy_score(y, predicted),
            "balanced_accuracy": np.mean([(predicted[y == c] == c).mean() for c in np.unique(y)]),
            "ece": calibration_error_by_bins(y, p),
            "quadratic_kappa": sk.cohen_kappa_score(y, predicted, labels=np.arange(classes), weights="quadratic"),
        }
        if len(np.unique(y)) == classes:
            truth = y if classes == 2 else np.eye(classes)[y]
            score = p[:, 1] if classes == 2 else p
            expected |= {"auc": sk.roc_auc_score(truth, score), "auprc": sk.average_precision_score(truth, score)}
            expected |= {"auc_micro": sk.roc_auc_score(truth, score, average="micro")} if classes > 2 else {}
            whole += 1
        else:
            assert all(math.isnan(found[name][k]) for name in ("auc", "auprc"))
        assert {name: found[name][k] for name in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert whole > 20
    assert classes == 2 or whole < 60


def test_names_are_those_announced() -> None:
    assert tuple(classification_metrics(*predictions(20, 2, 0))) == CLASSIFICATION_METRICS
    found = survival_metrics(np.array([1.0, 2.0]), np.array([True, True]), np.array([2.0, 1.0]))
    assert tuple(found) == SURVIVAL_METRICS


def test_perfect_and_reversed_order() -> None:
    labels = np.array([0, 0, 1, 1])
    up = np.array([0.1, 0.2, 0.8, 0.9])
    good, bad = np.stack([1 - up, up], 1), np.stack([up, 1 - up], 1)
    best, worst = classification_metrics(labels, good), classification_metrics(labels, bad)
    assert (best.pop("ece"), worst.pop("ece")) == pytest.approx((0.15, 0.85))
    assert worst.pop("auprc") == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert set(best.values()) == {1.0}
    assert set(worst.values()) == {0.0}


@pytest.mark.parametrize("classes", [2, 3])
def test_auc_needs_every_class(classes: int) -> None:
    labels, probabilities = predictions(30, classes, 0)
    chosen = labels != classes - 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classification_metrics(labels[chosen], probabilities[chosen])
    assert math.isnan(found.pop("auc"))
    assert math.isnan(found.pop("auprc"))
    assert math.isnan(found.pop("auc_micro", math.nan))
    assert math.isnan(auc(labels[chosen], probabilities[chosen]))
    assert all(0 <= value <= 1 for value in found.values())


def test_absent_classes() -> None:
    # of three classes one is neither there nor predicted, and one is there and never predicted
    labels = np.array([0, 0, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    found = classification_metrics(labels, probabilities)
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, [0, 0, 0]))
    assert found["f1"] == pytest.approx(sk.f1_score(labels, [0, 0, 0], average="macro"))  # 0.8 and 0, of two classes
    assert found["f1"] == pytest.approx(0.8 / 2)
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_no_rows_define_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classification_metrics(np.array([], int), np.zeros((0, 2)))
    assert set(found) == set(CLASSIFICATION_METRICS)
    assert all(math.isnan(value) for value in found.values())


# --- survival ------------------------------------------------------------------------------------------------------


def concordance_by_pairs(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's index over all pairs of which it is known who died first; ties in risk count half."""
    concordant, comparable = 0.0, 0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                comparable += 1
                concordant += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return concordant / comparable


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_c_index_equals_pairs_and_scikit_survival(seed: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    time, event = generator.exponential(30, 50), generator.random(50) < 0.5
    risk = -time + generator.normal(0, 30, 50)
    if ties:
        time, risk = np.ceil(time / 5), np.round(risk / 20)
    found = survival_metrics(time, event, risk)["c_index"]
    assert found == pytest.approx(concordance_index_censored(event, time, risk)[0], abs=1e-12)
    assert found == pytest.approx(concordance_by_pairs(time, event, risk), abs=1e-12)


def test_c_index_is_high_where_risk_is_high_early() -> None:
    time, event = np.array([1.0, 2.0, 3.0]), np.array([True, True, False])
    assert survival_metrics(time, event, np.array([3.0, 2.0, 1.0])) == {"c_index": 1.0}
    assert survival_metrics(time, event, np.array([1.0, 2.0, 3.0])) == {"c_index": 0.0}
    assert survival_metrics(time, event, np.zeros(3)) == {"c_index": 0.5}


@pytest.mark.parametrize(
    ("time", "event"),
    [([1.0, 2.0], [0, 0]), ([3.0], [1]), ([], []), ([1.0, 2.0, 5.0], [0, 0, 1]), ([2.0, 2.0], [1, 1])],
    ids=["no-event", "one", "none", "last-event", "same-time"],
)
def test_c_index_needs_a_pair(time: list[float], event: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = survival_metrics(np.array(time, float), np.array(event, bool), np.arange(len(time), dtype=float))
    assert math.isnan(found["c_index"])
