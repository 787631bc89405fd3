"""``cox``: the negative Cox partial log-likelihood of log-risks."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from wsi2d.evaluation.predictions import TaskKind
from wsi2d.training.losses.registry import RiskSetConfig
from wsi2d.training.targets import Targets


class CoxConfig(RiskSetConfig):
    """Options of ``cox``."""

    name: Literal["cox"] = "cox"
    ties: Literal["efron", "breslow"] = Field("efron", description="how events at the same time are counted")


class Cox:
    """Negative partial log-likelihood of Cox's model, mean over the events of a risk set.

    An event at time t of a patient with log-risk r gives log Σ exp(r_j) − r, the sum over all j whose follow-up is t
    or longer. Of d events at the same time, Efron takes l/d of their own sum out of the l-th one's (l from 0), Breslow
    nothing. Slides are counted, so a patient with two of them is in it twice. Without an event the loss is 0.

    It is the likelihood of the training side only where ``bags`` holds all of it. Where it holds less, an event is
    compared with those of its step alone, another draw every epoch. With a ``bank``, it is also compared with the
    latest bags of earlier steps, with the risks that they had then, by older weights; these get no gradient.

    Source: D. R. Cox, "Partial likelihood", Biometrika 62 (1975); N. Breslow, "Covariance Analysis of Censored Survival
    Data", Biometrics 30 (1974); B. Efron, "The Efficiency of Cox's Likelihood Function for Censored Data", JASA 72
    (1977).

    Args:
        config: the options.
        train: not used; every loss is built alike.
        out_dim: 1.
    """

    config_class = CoxConfig
    kind: ClassVar[TaskKind] = "survival"

    def __init__(self, config: CoxConfig, train: Targets, out_dim: int) -> None:
        self.ties = config.ties

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        risk, time, event = logits.squeeze(-1), targets.time, targets.event
        if not event.any():
            return risk.sum() * 0
        at = time[event].unsqueeze(-1)
        total = _log_sum(risk, time >= at)
        if self.ties == "efron":
            tied = (time == at) & event
            # The l-th of d events at the same time: the order among them does not matter to their sum.
            earlier = torch.ones_like(tied[:, event]).tril(-1) & tied[:, event]
            share = earlier.sum(-1) / tied.sum(-1)
            total = total + torch.log1p(-share.to(risk) * torch.exp(_log_sum(risk, tied) - total))
        return (total - risk[event]).mean()


def _log_sum(risk: Tensor, chosen: Tensor) -> Tensor:
    """log Σ exp(risk) over the chosen of each row: ``[rows]`` of risk ``[N]`` and bool ``[rows, N]``."""
    return torch.where(chosen, risk, -torch.inf).logsumexp(-1)
