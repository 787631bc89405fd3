"""``ranking``: of two patients that can be compared, the one with the earlier event should have the higher risk."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from wsi2d.evaluation.predictions import TaskKind
from wsi2d.training.losses.registry import RiskSetConfig
from wsi2d.training.targets import Targets


class RankingConfig(RiskSetConfig):
    """Options of ``ranking``."""

    name: Literal["ranking"] = "ranking"


class Ranking:
    """Minus the log-sigmoid of risk differences, mean over pairs.

    Divided by log 2 it is no less than one minus Harrell's index, whose pairs these are: i has an event, and j is
    followed for longer, or for as long without an event. Without a pair the loss is 0. Pairs are formed within a step
    (``bags``) and with the ``bank``, whose risks are of older weights and get no gradient; other pairs of the training
    side are left out.

    Nothing in it makes differences of risks the logarithms of hazard ratios, as survival curves take them to be.

    Source: V. Raykar et al., "On Ranking in Survival Analysis: Bounds on the Concordance Index", NIPS 2007.

    Args:
        config: not used; it has no options of its own.
        train: not used; every loss is built alike.
        out_dim: 1.
    """

    config_class = RankingConfig
    kind: ClassVar[TaskKind] = "survival"

    def __init__(self, config: RankingConfig, train: Targets, out_dim: int) -> None:
        pass

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        risk, time, event = logits.squeeze(-1), targets.time, targets.event
        at = time.unsqueeze(-1)
        pairs = event.unsqueeze(-1) & ((time > at) | ((time == at) & ~event))
        if not pairs.any():
            return risk.sum() * 0
        return functional.softplus(risk - risk.unsqueeze(-1))[pairs].mean()
