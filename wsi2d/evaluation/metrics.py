"""Classification metrics, as scikit-learn defines them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from wsi2d.evaluation import counting

CLASSIFICATION_METRICS = ("auc", "f1", "accuracy", "balanced_accuracy", "auprc", "ece")


def classification_metrics(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], *, ordered: bool = False
) -> dict[str, float]:
    """Metrics of one table (see :func:`classification_scores`)."""
    scores = classification_scores(labels, probabilities, np.ones((1, len(labels))), ordered=ordered)
    return {name: float(values[0]) for name, values in scores.items()}


def classification_scores(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    ordered: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """Metrics of many resamples of a table at once.

    Args:
        labels: class indices ``[N]``.
        probabilities: ``[N, classes]``; the class with the highest is the prediction.
        weights: ``[B, N]``, how often each row counts.
        ordered: the classes are grades in their order.

    Returns:
        Values ``[B]`` by name, better when higher but for ``ece``: ``auc`` and ``auprc`` (of class 1 where there are
        two classes, else the mean over classes one-vs-rest), ``f1`` (mean over the classes that are true or predicted),
        ``accuracy``, ``balanced_accuracy``, ``ece`` (expected calibration error of the predicted class, ten bins);
        ``auc_micro`` (one-vs-rest, all classes' rows together) where there are more than two classes;
        ``quadratic_kappa`` where they are ordered. A metric that the labels do not define (an area where a class is
        absent, anything of no rows) is NaN.
    """
    classes = probabilities.shape[1]
    if not len(labels):
        names = (*CLASSIFICATION_METRICS, *["auc_micro"] * (classes > 2), *["quadratic_kappa"] * ordered)
        return {name: np.full(len(weights), math.nan) for name in names}
    predicted = probabilities.argmax(1)
    counts = counting.confusion(labels, predicted, classes, weights)
    hits, true, said = np.diagonal(counts, axis1=1, axis2=2), counts.sum(2), counts.sum(1)
    f1 = counting.ratio(np.nan_to_num(counting.ratio(2 * hits, true + said)).sum(1), (true + said > 0).sum(1) * 1.0)
    recalls = counting.ratio(hits, true)
    present = (true > 0).sum(1)
    absent = present < classes
    scored = range(1, 2) if classes == 2 else range(classes)
    truth = [weights * (labels == c) for c in scored]
    rest = [weights * (labels != c) for c in scored]
    pairs = list(zip(scored, truth, rest, strict=True))
    auc = np.mean([counting.roc_auc(probabilities[:, c], up, down) for c, up, down in pairs], 0)
    auprc = np.mean([counting.average_precision(probabilities[:, c], up, down) for c, up, down in pairs], 0)
    scores = {
        "auc": np.where(absent, math.nan, auc),
        "f1": np.where(present == 0, math.nan, f1),
        "accuracy": counting.ratio(hits.sum(1), counts.sum((1, 2))),
        "balanced_accuracy": counting.ratio(np.nan_to_num(recalls).sum(1), present.astype(float)),
        "auprc": np.where(absent, math.nan, auprc),
        "ece": counting.calibration_error(probabilities.max(1), predicted == labels, weights),
    }
    if classes > 2:
        micro = counting.roc_auc(probabilities.T.ravel(), np.concatenate(truth, 1), np.concatenate(rest, 1))
        scores["auc_micro"] = np.where(absent, math.nan, micro)
    if ordered:
        scores["quadratic_kappa"] = counting.quadratic_kappa(counts)
    return scores


def auc(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Area under the ROC curve ``[N]``, ``[N, classes]``: binary, or macro one-vs-rest; NaN where a class is absent."""
    if len(np.unique(labels)) < probabilities.shape[1]:
        return math.nan
    if probabilities.shape[1] == 2:
        return float(metrics.roc_auc_score(labels, probabilities[:, 1]))
    per_class = [metrics.roc_auc_score(labels == c, probabilities[:, c]) for c in range(probabilities.shape[1])]
    return float(np.mean(per_class))
