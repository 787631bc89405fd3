"""``cross-entropy``: minus the log of the true class's probability."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from wsi2d.evaluation.predictions import TaskKind
from wsi2d.training.losses.registry import LossConfig
from wsi2d.training.targets import Targets


class CrossEntropyConfig(LossConfig):
    """Options of ``cross-entropy``."""

    name: Literal["cross-entropy"] = "cross-entropy"
    class_weights: Literal["none", "balanced"] = Field("none", description="balanced: inverse to training frequency")


class CrossEntropy:
    """Cross-entropy over classes, weighted so that all classes count alike where asked.

    Args:
        config: the options.
        train: targets of the training fold.
        out_dim: number of classes.
    """

    config_class = CrossEntropyConfig
    kind: ClassVar[TaskKind] = "classification"

    def __init__(self, config: CrossEntropyConfig, train: Targets, out_dim: int) -> None:
        self.weight: Tensor | None = None
        if config.class_weights == "balanced":
            counts = torch.bincount(train.index, minlength=out_dim).clamp_min(1)
            self.weight = len(train.index) / (out_dim * counts.float())

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        losses = functional.cross_entropy(logits, targets.index, reduction="none")
        if self.weight is not None:
            losses = losses * self.weight.to(losses)[targets.index]
        return losses.mean()
