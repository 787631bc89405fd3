"""Training of a contender on grids that lie in memory, batches of them at a time; the same for every contender."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from grid_models import pack
from torch import Tensor, nn
from torch.nn import functional

from wsi2d.data.bags import BagBatch
from wsi2d.models.aggregator import Aggregator

_SCORED_AT_ONCE = 256


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW, a rate that rises in a straight line and falls by half a cosine to zero.

    Attributes:
        epochs: passes over the training side.
        batch: grids a step.
        weight_decay: of matrices; A, biases, norms and tokens are spared.
        warmup: share of the steps in which the rate rises.
        clip: the gradient's largest norm.
        smoothing: of labels.
        shift: training grids are moved by up to so many cells each way, zeros following; 0 for none.
    """

    epochs: int = 20
    batch: int = 32
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    smoothing: float = 0.0
    shift: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Its settings by name."""
        return asdict(self)


def train(model: Aggregator, grids: Tensor, labels: Tensor, recipe: Recipe, *, lr: float, seed: int) -> None:
    """Train a model in place; its features are standardised by these grids.

    Args:
        model: with starting weights.
        grids: float32 ``[N, height, width, dim]``.
        labels: int64 ``[N]``.
        recipe: how.
        lr: the highest rate.
        seed: of the order of grids, of shifts and of dropout (torch's global generator is seeded).
    """
    torch.manual_seed(seed)
    if model.standardise is not None:
        sd, mean = torch.std_mean(grids.flatten(0, 2), 0, correction=0)
        model.standardise.fit(mean, sd)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=lr, fused=True)
    steps = recipe.epochs * math.ceil(len(grids) / recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_at(steps, recipe.warmup))
    model.train()
    for chosen in batches(len(grids), recipe):
        logits = model(pack(shifted(grids[chosen], recipe.shift))).logits
        loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=recipe.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()


def batches(count: int, recipe: Recipe) -> Iterator[Tensor]:
    """Which grids each step takes: every epoch all of them in a new order."""
    for _ in range(recipe.epochs):
        yield from torch.randperm(count).split(recipe.batch)


def rate_at(steps: int, warmup: float) -> Callable[[int], float]:
    """The rate at each step as a share of the highest."""
    rising = max(1, round(warmup * steps))

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return share


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, all else without, as the library's own training has it."""
    named = [(p.ndim < 2 or name.endswith(("A_log", "token")), p) for name, p in model.named_parameters()]
    return [
        {"params": [p for spared, p in named if not spared], "weight_decay": weight_decay},
        {"params": [p for spared, p in named if spared], "weight_decay": 0.0},
    ]


def shifted(grids: Tensor, most: int) -> Tensor:
    """Each grid ``[batch, height, width, dim]`` moved by up to so many cells along both axes, zeros following."""
    if not most:
        return grids
    batch, height, width, _ = grids.shape
    padded = functional.pad(grids, (0, 0, most, most, most, most))
    down, across = torch.randint(0, 2 * most + 1, (2, batch, 1, 1))
    rows, cols = down + torch.arange(height)[:, None], across + torch.arange(width)
    return padded[torch.arange(batch)[:, None, None], rows, cols]


@torch.inference_mode()
def predict(model: Aggregator, grids: Tensor) -> Tensor:
    """Logits ``[N, classes]`` of grids."""
    model.eval()
    parts: list[BagBatch] = [pack(part) for part in grids.split(_SCORED_AT_ONCE)]
    return torch.cat([model(part).logits for part in parts])
