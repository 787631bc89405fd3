"""Classification metrics, as scikit-learn defines them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

CLASSIFICATION_METRICS = ("auc", "f1", "accuracy", "balanced_accuracy")


def classification_metrics(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> dict[str, float]:
    """AUC, F1, accuracy and balanced accuracy; all are better when higher.

    Args:
        labels: class indices ``[N]``.
        probabilities: ``[N, classes]``; the class with the highest is the prediction.

    Returns:
        ``auc`` (of class 1 where there are two classes, else the mean over classes one-vs-rest), ``f1`` (mean over
        classes), ``accuracy``, ``balanced_accuracy``. A metric that these labels do not define (an AUC where a class
        is absent, anything of no rows) is NaN.
    """
    if not len(labels):
        return dict.fromkeys(CLASSIFICATION_METRICS, math.nan)
    predicted = probabilities.argmax(1)
    classes = np.arange(probabilities.shape[1])
    return {
        "auc": auc(labels, probabilities),
        "f1": float(metrics.f1_score(labels, predicted, labels=classes, average="macro", zero_division=0.0)),
        "accuracy": float((labels == predicted).mean()),
        "balanced_accuracy": float(np.mean([(predicted[labels == c] == c).mean() for c in np.unique(labels)])),
    }


def auc(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Area under the ROC curve ``[N]``, ``[N, classes]``: binary, or macro one-vs-rest; NaN where a class is absent."""
    if len(np.unique(labels)) < probabilities.shape[1]:
        return math.nan
    if probabilities.shape[1] == 2:
        return float(metrics.roc_auc_score(labels, probabilities[:, 1]))
    per_class = [metrics.roc_auc_score(labels == c, probabilities[:, c]) for c in range(probabilities.shape[1])]
    return float(np.mean(per_class))
