"""``nll``: the negative log-likelihood of hazards in discrete time, with censoring."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from wsi2d.evaluation.predictions import TaskKind
from wsi2d.training.losses.registry import LossConfig
from wsi2d.training.targets import Targets


class DiscreteTimeNLLConfig(LossConfig):
    """Options of ``nll``."""

    name: Literal["nll"] = "nll"
    alpha: float = Field(0.0, ge=0, lt=1, description="censored patients count 1 − alpha times as much")


class DiscreteTimeNLL:
    """Negative log-likelihood of discrete-time hazards.

    With hazards h and survival S(k) = Π_{j≤k} (1 − h(j)), a patient whose event falls into bin k gives
    −log S(k−1) − log h(k), one censored in bin k gives −log S(k).

    Source: S. Zadeh and M. Schmid, "Bias in Cross-Entropy-Based Training of Deep Survival Networks", IEEE TPAMI 2021.

    Args:
        config: the options.
        train: not used; every loss is built alike.
        out_dim: number of bins.
    """

    config_class = DiscreteTimeNLLConfig
    kind: ClassVar[TaskKind] = "survival"

    def __init__(self, config: DiscreteTimeNLLConfig, train: Targets, out_dim: int) -> None:
        self.censored_weight = 1.0 - config.alpha

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        log_hazard, log_alive = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        log_survival = log_alive.cumsum(-1)
        at = targets.index.unsqueeze(-1)
        survived = log_survival.gather(-1, at).squeeze(-1)
        # log S(k−1) + log h(k) = log S(k) − log(1 − h(k)) + log h(k)
        died = survived + (log_hazard - log_alive).gather(-1, at).squeeze(-1)
        return -torch.where(targets.event, died, self.censored_weight * survived).mean()
