"""What makes an aggregator of a model of torchmil (F. M. Castro-Macías et al., "torchmil", an optional package).

torchmil's models take bags padded to one length and give one logit. Here each bag goes through by itself, since several
of them let padding through; the last layer is replaced by one of as many logits as the task asks for; attention sums to
1. In front stands the projection that the other aggregators have, so that all can be compared at one width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from wsi2d.data.bags import BagBatch
from wsi2d.errors import ModelError
from wsi2d.models.aggregator import Embedded
from wsi2d.models.output import ModelOutput
from wsi2d.models.patch_model import PatchModel, PatchModelConfig
from wsi2d.models.sequence import raster_sequence


@dataclass(frozen=True)
class BagAnswer:
    """What is said of one bag of ``n`` patches.

    Attributes:
        logits: ``[out_dim]``.
        attention: ``[n]``, sums to 1.
        trained: ``[sets, out_dim]``, penalties: ``[out_dim]``, as of :class:`ModelOutput`.
    """

    logits: Tensor
    attention: Tensor
    trained: Tensor | None = None
    penalties: Tensor | None = None


def torchmil_models(name: str) -> ModuleType:
    """torchmil's models, for the one of this name.

    Raises:
        ModelError: torchmil is not installed.
    """
    try:
        with torch.device("cpu"):  # what its packages compute on the way cannot be done without numbers
            return import_module("torchmil.models")
    except ModuleNotFoundError as error:
        missing = (error.name or "torchmil").partition(".")[0]
        raise ModelError(
            f"model '{name}' needs {missing}, which is not installed; pip install 'wsi2d[baselines]'"
        ) from error


class TorchMILModel(PatchModel):
    """Patches projected, then a model of torchmil, bag by bag, with the patches in raster order.

    Args:
        config: the options.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Raises:
        ModelError: torchmil is not installed.
    """

    net: Any  # torchmil has no types

    def __init__(self, config: PatchModelConfig, in_dim: int, out_dim: int) -> None:
        super().__init__(config, in_dim)
        self.net = self.make_net(torchmil_models(config.name), out_dim)

    @abstractmethod
    def make_net(self, models: ModuleType, out_dim: int) -> nn.Module:
        """The model, for patches of width ``config.dim``, with ``out_dim`` logits in place of one."""

    @abstractmethod
    def answer(self, patches: Tensor, edges: Tensor) -> BagAnswer:
        """What is said of one bag.

        Args:
            patches: ``[n, dim]``, in raster order.
            edges: int64 ``[2, E]``, which of them are neighbours; none unless :meth:`neighbours` gives them.
        """

    def mixed(self, patches: Tensor, edges: Tensor) -> Tensor:
        """One bag's patches as the model's pooling gets them, ``[n, width]``; arguments as of :meth:`answer`."""
        return patches

    def neighbours(self, batch: BagBatch) -> Tensor | None:
        """Patches of the batch that are neighbours on their grid, int64 ``[2, E]``; None where nobody asks."""
        return None

    def embed(self, batch: BagBatch) -> Embedded:
        """Each patch by itself; bags in raster order."""
        layout = raster_sequence(batch)
        first = layout.lengths.cumsum(0) - layout.lengths
        patches = first[batch.bag] + layout.place
        order = patches.argsort()
        edges = self.neighbours(batch)
        return Embedded(
            self.project_patches(batch)[order],
            batch.bag[order],
            len(batch),
            patches,
            None if edges is None else patches[edges],
        )

    def patch_outputs(self, batch: BagBatch) -> Tensor:
        """What has become of each patch when the model's own pooling gets it, ``[M, width]``."""
        embedded = self.embed(batch)
        rows, edges = _by_bag(embedded)
        mixed = [self.mixed(embedded.values[mine], among) for mine, among in zip(rows, edges, strict=True)]
        return torch.cat(mixed)[torch.cat(rows).argsort()][embedded.patches]

    def aggregate(self, embedded: Embedded) -> ModelOutput:
        """One answer a bag: logits ``[bags, out_dim]``, and attention ``[M]`` of each patch."""
        rows, edges = _by_bag(embedded)
        answers = [self.answer(embedded.values[mine], among) for mine, among in zip(rows, edges, strict=True)]
        attention = torch.cat([a.attention for a in answers])[torch.cat(rows).argsort()]
        trained = [a.trained for a in answers if a.trained is not None]
        penalties = [a.penalties for a in answers if a.penalties is not None]
        return ModelOutput(
            torch.stack([a.logits for a in answers]),
            attention[embedded.patches],
            torch.stack(trained) if trained else None,
            torch.stack(penalties) if penalties else None,
        )


def given_to(module: nn.Module, call: Callable[[], object]) -> Tensor:
    """What a part of a model is given while something is called: the first argument of the last time."""
    given: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    try:
        call()
    finally:
        handle.remove()
    return given[-1]


def _by_bag(embedded: Embedded) -> tuple[list[Tensor], list[Tensor]]:
    """Of each bag its rows, and the edges between them."""
    rows = [(embedded.bag == bag).nonzero()[:, 0] for bag in range(embedded.bags)]
    return rows, [_edges_within(embedded, mine) for mine in rows]


def _edges_within(embedded: Embedded, rows: Tensor) -> Tensor:
    """The edges between some rows, which are those of one bag, by their place among these."""
    if embedded.edges is None:
        return rows.new_empty(2, 0)
    place = torch.full((len(embedded.values),), -1, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    edges = place[embedded.edges]
    return edges[:, edges[0] >= 0]
