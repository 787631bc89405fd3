"""What every aggregator returns, and what its logits mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModelOutput:
    """Output of an aggregator.

    Attributes:
        logits: ``[batch, classes]``; for survival ``[batch, bins]`` of discrete-time hazards or
            ``[batch, 1]`` log-risks.
        attention: ``[M]``, one weight a patch of the batch; a bag's weights sum to 1 (to less where the model also
            attends to empty cells).
        trained: ``[batch, sets, out_dim]``, the logits that training holds to the truth, where they are not those
            above alone; :attr:`Aggregator.loss_weights` says how much each set counts.
        penalties: ``[batch, classes]``, what training adds to the loss of a bag whose class this is; survival knows no
            classes and leaves it out.
    """

    logits: Tensor
    attention: Tensor
    trained: Tensor | None = None
    penalties: Tensor | None = None

    @property
    def trained_logits(self) -> Tensor:
        """``[batch, sets, out_dim]``: :attr:`trained`, or the logits as one set."""
        return self.logits.unsqueeze(1) if self.trained is None else self.trained


def class_probabilities(logits: Tensor) -> Tensor:
    """Softmax over classes, ``[batch, classes]``."""
    return logits.softmax(-1)


def hazards(logits: Tensor) -> Tensor:
    """Probability of the event in each bin given survival up to it, ``[batch, bins]``."""
    return torch.sigmoid(logits)


def survival(logits: Tensor) -> Tensor:
    """Probability of no event up to the end of each bin, ``[batch, bins]``: the running product of 1 − hazard."""
    return torch.exp(torch.nn.functional.logsigmoid(-logits).cumsum(-1))


def risk(logits: Tensor) -> Tensor:
    """Risk score ``[batch]``, higher is worse: minus the sum of the survival curve over bins.

    Source: S. Zadeh and M. Schmid, "Bias in Cross-Entropy-Based Training of Deep Survival Networks", IEEE TPAMI 2021,
    for the discrete-time model; the score is the one published with 2DMamba.
    """
    return -survival(logits).sum(-1)
