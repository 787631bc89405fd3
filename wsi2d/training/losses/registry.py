"""Losses by name. A new one is a file with its class and configuration, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from wsi2d.config import Strict, validate
from wsi2d.errors import ConfigError
from wsi2d.evaluation.predictions import TaskKind
from wsi2d.registry import load
from wsi2d.training.targets import Targets


class Loss(Protocol):
    """Mean loss over a batch."""

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        """Scalar from ``[batch, classes or bins]``, or log-risks ``[batch, 1]``."""
        ...


class LossConfig(Strict):
    """Options of a loss, which ``name`` names."""

    name: str


class RiskSetConfig(LossConfig):
    """Options of a loss that compares patients. Its models put out one log-risk a bag, in place of hazards."""

    bags: int = Field(
        16, ge=1, le=65_536, description="bags that are compared, a step; batch_size of them are in memory at a time"
    )
    bank: int = Field(
        0, ge=0, le=65_536, validate_default=True,
        description="earlier bags of the epoch that are compared as well, with the risks that they had",
    )  # fmt: skip

    @field_validator("bank")
    @classmethod
    def _somebody_to_compare_with(cls, value: int, info: ValidationInfo) -> int:
        if value == 0 and info.data.get("bags") == 1:
            raise ValueError("must be 1 or more where bags is 1: a bag alone has nobody to be compared with")
        return value


class LossClass(Protocol):
    """What ``LOSSES`` leads to: a class that is called with its options, as a model's is."""

    @property
    def config_class(self) -> type[LossConfig]:
        """Its options."""
        ...

    @property
    def kind(self) -> TaskKind:
        """The kind of task it is for."""
        ...

    def __call__(self, config: Any, train: Targets, out_dim: int) -> Loss:
        """The loss, by a ``config`` of its ``config_class``, fitted to the training fold's targets."""
        ...


LOSSES: dict[str, str] = {
    "cross-entropy": "wsi2d.training.losses.cross_entropy:CrossEntropy",
    "cox": "wsi2d.training.losses.cox:Cox",
    "nll": "wsi2d.training.losses.nll:DiscreteTimeNLL",
    "ranking": "wsi2d.training.losses.ranking:Ranking",
}
DEFAULT_LOSS: dict[TaskKind, str] = {"classification": "cross-entropy", "survival": "nll"}


def loss_config(section: Mapping[str, Any], kind: TaskKind, *, source: str = "training.loss") -> LossConfig:
    """Validate a configuration's ``training.loss``: ``name`` (``auto`` for the task's default) and its options.

    Raises:
        ConfigError: unknown loss or option, or a loss of the other kind of task.
    """
    values = dict(section)
    if values.get("name", "auto") == "auto":
        values["name"] = DEFAULT_LOSS[kind]
    found = _loss_class(values["name"], source)
    if found.kind != kind:
        raise ConfigError(f"config {source}: '{values['name']}' is a loss for {found.kind}, the task is {kind}")
    return validate(found.config_class, values, source=source)


def build_loss(config: LossConfig, train: Targets, out_dim: int) -> Loss:
    """The loss of a validated configuration, fitted to the training fold's targets."""
    return _loss_class(config.name, "training.loss")(config, train, out_dim)


def _loss_class(name: object, source: str) -> LossClass:
    found: LossClass = load(LOSSES, str(name), f"config {source}: loss '{name}' is")
    return found
