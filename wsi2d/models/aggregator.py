"""What an aggregator is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from wsi2d.config import Strict
from wsi2d.data.bags import BagBatch
from wsi2d.models.blocks import Standardise
from wsi2d.models.output import ModelOutput


class Aggregator(nn.Module, ABC):
    """Base of every aggregator: called as ``Model(config, in_dim, out_dim)`` it is built, called with bags it answers.

    Attributes:
        config_class: the class of its options.
        config: its options.
        standardise: fitted to the training fold's patches before the first epoch; None where there is none to fit.
            Every aggregator sets it.
    """

    config_class: ClassVar[type[Strict]]
    config: Strict
    standardise: Standardise | None

    @abstractmethod
    def forward(self, batch: BagBatch) -> ModelOutput:
        """Logits ``[batch, out_dim]`` and attention ``[M]`` of each patch."""

    if TYPE_CHECKING:  # torch's own takes and returns anything

        def __call__(self, batch: BagBatch) -> ModelOutput: ...
