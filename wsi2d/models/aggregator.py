"""What an aggregator is: patches become embeddings, embeddings of a bag become one answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from wsi2d.config import Strict
from wsi2d.data.bags import BagBatch
from wsi2d.models.blocks import Standardise
from wsi2d.models.output import ModelOutput


@dataclass(frozen=True)
class About:
    """What `wsi2d models` says of an aggregator.

    Attributes:
        sees: of a bag: a ``set`` of patches, a ``sequence`` of them, a ``graph`` of neighbours, or the ``grid`` with
            its gaps.
        order: what of the patches' places makes a difference.
        cost: what time and memory grow with: patches, or cells of the tissue's bounding box, gaps included.
        paper: first author and year; a dash where there is none.
        source: authors, title, where and when.
    """

    sees: Literal["set", "sequence", "graph", "grid"]
    order: str
    cost: str
    paper: str
    source: str


@dataclass(frozen=True)
class Embedded:
    """A batch after encoding, before pooling.

    Attributes:
        values: ``[cells, dim]``, what pooling chooses from: the patches, and whatever else a model looks at.
        bag: int64 ``[cells]``, which bag a cell belongs to.
        bags: how many bags there are; each has a cell.
        patches: int64 ``[M]``, at which row of ``values`` each of the batch's M patches stands.
        edges: int64 ``[2, E]``, rows of ``values`` that are neighbours on their grid, both ways; None where the model
            does not ask.
    """

    values: Tensor
    bag: Tensor
    bags: int
    patches: Tensor
    edges: Tensor | None = None

    @classmethod
    def of_patches(cls, values: Tensor, batch: BagBatch) -> Embedded:
        """Embeddings ``[M, dim]`` of the patches of a batch, in its order."""
        return cls(values, batch.bag, len(batch), torch.arange(len(values), device=values.device))

    def regrouped(self, bag_of: Tensor, bags: int) -> Embedded:
        """The same embeddings in fewer bags: each slide was encoded on its own grid, a patient's are pooled together.

        Args:
            bag_of: int64 ``[self.bags]``, the new bag of each old one.
            bags: how many new ones there are; each is named.
        """
        return replace(self, bag=bag_of[self.bag], bags=bags)

    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cells by bag ``[bags, longest, dim]`` (zero where there is none), which of these are cells, and the place
        ``[cells]`` of each in its bag."""
        counts = torch.bincount(self.bag, minlength=self.bags)
        order = torch.argsort(self.bag, stable=True)
        first = counts.cumsum(0) - counts
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - first[self.bag[order]]
        cells = self.values.new_zeros(self.bags, int(counts.max()), self.values.shape[1])
        cells = cells.index_put((self.bag, place), self.values)
        mask = torch.arange(cells.shape[1], device=counts.device)[None] < counts[:, None]
        return cells, mask, place


class Aggregator(nn.Module, ABC):
    """Base of every aggregator: called as ``Model(config, in_dim, out_dim)`` it is built, called with bags it answers.

    Attributes:
        config_class: the class of its options.
        about: what it is, for the list of models.
        config: its options.
        standardise: fitted to the training fold's patches before the first epoch; None where there is none to fit.
            Every aggregator sets it.
        loss_weights: how much each set of logits of :attr:`ModelOutput.trained` counts in the loss.
    """

    config_class: ClassVar[type[Strict]]
    about: ClassVar[About]
    config: Strict
    standardise: Standardise | None
    loss_weights: tuple[float, ...] = (1.0,)

    @abstractmethod
    def embed(self, batch: BagBatch) -> Embedded:
        """Encode each bag on its own grid."""

    @abstractmethod
    def aggregate(self, embedded: Embedded) -> ModelOutput:
        """One answer a bag: logits ``[bags, out_dim]``, and attention ``[M]`` of each patch."""

    def patch_outputs(self, batch: BagBatch) -> Tensor:
        """What has become of each of the batch's patches when pooling gets it, ``[M, dim]`` in the batch's order.

        Of :meth:`embed`, unless a model mixes patches later than that.
        """
        embedded = self.embed(batch)
        return embedded.values[embedded.patches]

    def forward(self, batch: BagBatch) -> ModelOutput:
        """Logits ``[batch, out_dim]`` and attention ``[M]`` of each patch; one row for bags that are joined: each is
        encoded on its own grid, and attention sums to 1 over the patches of them all."""
        embedded = self.embed(batch)
        if batch.joined is not None:
            counts = torch.tensor(batch.joined, device=batch.bag.device)
            answers = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
            embedded = embedded.regrouped(answers, len(counts))
        return self.aggregate(embedded)

    if TYPE_CHECKING:  # torch's own takes and returns anything

        def __call__(self, batch: BagBatch) -> ModelOutput: ...
