"""Losses by name. A new one is a class and a line in ``LOSSES``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from wsi2d.config import Strict, nearest, validate
from wsi2d.errors import ConfigError
from wsi2d.training.targets import Targets


class Loss(Protocol):
    """Mean loss over a batch."""

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        """Scalar from ``[batch, classes or bins]``."""
        ...


class CrossEntropyConfig(Strict):
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
    kind = "classification"

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


class DiscreteTimeNLLConfig(Strict):
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
    kind = "survival"

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


LOSSES: dict[str, Any] = {
    "cross-entropy": CrossEntropy,
    "nll": DiscreteTimeNLL,
}
DEFAULT_LOSS = {"classification": "cross-entropy", "survival": "nll"}


def loss_config(section: Mapping[str, Any], kind: str, *, source: str = "training.loss") -> Strict:
    """Validate a configuration's ``training.loss``: ``name`` (``auto`` for the task's default) and its options.

    Raises:
        ConfigError: unknown loss or option, or a loss of the other kind of task.
    """
    values = dict(section)
    if values.get("name", "auto") == "auto":
        values["name"] = DEFAULT_LOSS[kind]
    name = str(values["name"])
    if name not in LOSSES:
        raise ConfigError(f"config {source}: loss '{name}' is unknown; {nearest(name, list(LOSSES))}")
    if LOSSES[name].kind != kind:
        raise ConfigError(f"config {source}: '{name}' is a loss for {LOSSES[name].kind}, the task is {kind}")
    return validate(LOSSES[name].config_class, values, source=source)


def build_loss(config: Strict, train: Targets, out_dim: int) -> Loss:
    """The loss of a validated configuration, fitted to the training fold's targets."""
    return LOSSES[config.name](config, train, out_dim)  # type: ignore[attr-defined]
