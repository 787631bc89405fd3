"""Models of torchmil that look at a patch's neighbours: which patches touch, and the matrix of it."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from wsi2d.data.bags import BagBatch
from wsi2d.models.from_torchmil.adapter import BagAnswer, TorchMILModel, given_to


class GraphModel(TorchMILModel):
    """A model of torchmil that is given the patches that touch on the grid, corners included."""

    @abstractmethod
    def pooling(self) -> nn.Module:
        """The part of the model that is given its patches once they are mixed with their neighbours."""

    def answer(self, patches: Tensor, edges: Tensor) -> BagAnswer:
        """Logits of the mixed patches' weighted mean."""
        adjacency = normalised_adjacency(edges, patches)
        logits, scores = self.net(patches.unsqueeze(0), adjacency, return_att=True)
        return BagAnswer(logits.reshape(-1), scores[0].softmax(0))

    def mixed(self, patches: Tensor, edges: Tensor) -> Tensor:
        """One bag's patches as the model's pooling gets them, ``[n, width]``; arguments as of :meth:`answer`."""
        adjacency = normalised_adjacency(edges, patches)
        return given_to(self.pooling(), lambda: self.net(patches.unsqueeze(0), adjacency))[0]

    def neighbours(self, batch: BagBatch) -> Tensor:
        """Patches of the batch that touch, int64 ``[2, E]``, each pair both ways."""
        return grid_neighbours(batch)


def grid_neighbours(batch: BagBatch) -> Tensor:
    """Pairs of patches of a batch that touch on their bag's grid, corners included, both ways: int64 ``[2, E]``."""
    shapes, sizes = batch.shapes[batch.bag], batch.shapes.prod(1)
    first = (sizes.cumsum(0) - sizes)[batch.bag]
    cells, order = (first + batch.index[:, 0] * shapes[:, 1] + batch.index[:, 1]).sort()
    here = torch.arange(len(order), device=order.device)
    found = []
    for step in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        there = batch.index + batch.index.new_tensor(step)
        wanted = first + there[:, 0] * shapes[:, 1] + there[:, 1]
        at = torch.searchsorted(cells, wanted).clamp_max(len(cells) - 1)
        touches = (cells[at] == wanted) & ((there >= 0) & (there < shapes)).all(1)
        found.append(torch.stack([here[touches], order[at[touches]]]))
    return torch.cat(found, 1)


def normalised_adjacency(edges: Tensor, patches: Tensor) -> Tensor:
    """D^−½ A D^−½ as a sparse matrix ``[1, n, n]``, as torchmil's own data sets give it.

    Args:
        edges: int64 ``[2, E]``, the pairs for which A is 1.
        patches: ``[n, dim]``, what the matrix is for; it takes their dtype and device.
    """
    count = len(patches)
    degree = torch.bincount(edges[0], minlength=count).to(patches.dtype)
    weights = degree[edges[0]].rsqrt() * degree[edges[1]].rsqrt()
    places = torch.cat([torch.zeros_like(edges[:1]), edges])
    return torch.sparse_coo_tensor(places, weights, (1, count, count), check_invariants=False)
