"""What a model is trained on: a loss over each set of its logits, and what it adds of its own."""

from __future__ import annotations

from torch import Tensor

from wsi2d.training.losses.registry import Loss
from wsi2d.training.targets import Targets


class LossOverSets:
    """A loss over several sets of logits of the same bags, each held to the same truth.

    Args:
        loss: over one set.
        weights: how much each set counts (:attr:`wsi2d.models.aggregator.Aggregator.loss_weights`).
    """

    def __init__(self, loss: Loss, weights: tuple[float, ...]) -> None:
        self._loss, self._weights = loss, weights

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        """Scalar from ``[batch, sets, out_dim]``."""
        sets = zip(self._weights, logits.unbind(1), strict=True)
        first, *others = (weight * self._loss(one, targets) for weight, one in sets)
        return sum(others, start=first)


def mean_penalty(penalties: Tensor, targets: Targets) -> Tensor:
    """Of each bag the penalty ``[batch, classes]`` of its true class, averaged."""
    return penalties.gather(1, targets.index.unsqueeze(1)).mean()
