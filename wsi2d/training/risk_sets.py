"""Losses that compare patients, in a training that reads few bags at a time: which bags meet, and what they leave."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wsi2d.data.bags import BagBatch
from wsi2d.models.aggregator import Aggregator
from wsi2d.training.losses.registry import Loss
from wsi2d.training.targets import Targets

Item = TypeVar("Item")


class RiskBank:
    """The risks of the latest bags of an epoch, without their graph. It is made anew for each epoch.

    Args:
        size: how many bags it remembers; 0 for none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: tuple[Tensor, Targets] | None = None

    def loss(self, loss: Loss, logits: Tensor, targets: Targets) -> Tensor:
        """The loss over the remembered bags and a step's own together; afterwards those are remembered too.

        The gradient with respect to the step's own logits is multiplied by bags together / bags of the step, so that a
        bag moves the weights as much at the start of an epoch, where the bank is empty, as at its end.
        """
        together, known = logits, targets
        if self._kept is not None:
            together, known = torch.cat([self._kept[0], logits]), self._kept[1].joined(targets)
        value = loss(together, known)
        if self._kept is not None:
            value = value.detach() + len(together) / len(logits) * (value - value.detach())
        if self._size:
            self._kept = together.detach()[-self._size :], known.last(self._size)
        return value


def even_groups(bags: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Bags in order, in as few groups of at most ``size`` as there can be, as equal as can be: a last group of one
    bag would have nobody to be compared with."""
    groups = math.ceil(len(bags) / size)
    return [bags[i * len(bags) // groups : (i + 1) * len(bags) // groups] for i in range(groups)]


def joint_logits(model: Aggregator, batches: Iterable[BagBatch]) -> Tensor:
    """Logits ``[bags, sets, out_dim]`` of several batches, with a graph that holds one batch's activations at a time.

    What each batch leaves for the way back is thrown away and made again there, with the same dropout, which costs a
    second forward pass.
    """
    parts = [checkpoint(_forward, model, batch, batch.features, use_reentrant=False) for batch in batches]
    return torch.cat(parts)


def _forward(model: Aggregator, batch: BagBatch, features: Tensor) -> Tensor:
    """Logits; the features, a tensor among the arguments, tell ``checkpoint`` whose device's dropout to repeat."""
    return model(replace(batch, features=features)).trained_logits
