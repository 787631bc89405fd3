"""Patches as a sequence in raster order, without the gaps of the grid, and Mamba's mixer on it.

Raster order is row by row, left to right in each. On a grid of one row the 2D selective scan is Mamba's 1D scan, so
sequences take the same operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi2d.data.bags import BagBatch
from wsi2d.models.blocks import RASTER_WIDTH, DtInit, ScanParameters, refuse_unknown_backend
from wsi2d.models.scan_order import reversed_places, taken

Order = Callable[[Tensor, int], Tensor | None]
"""Called with the bags' lengths int64 ``[batch]`` and the longest it says which place of the sequence each place of the
reordered one takes, int64 ``[batch, longest]``, padding last; None where that is its own."""


@dataclass(frozen=True)
class SequenceLayout:
    """Where each patch of a batch stands in its bag's sequence.

    Attributes:
        bag, place: int64 ``[M]``, the bag of each patch, and how many patches of it come before.
        lengths: int64 ``[batch]``, patches of each bag.
        longest: the largest of them.
    """

    bag: Tensor
    place: Tensor
    lengths: Tensor
    longest: int

    def scatter(self, patches: Tensor) -> Tensor:
        """Patches ``[M, dim]`` as sequences ``[batch, longest, dim]``, zero after a bag's last."""
        sequence = patches.new_zeros(len(self.lengths), self.longest, patches.shape[1])
        return sequence.index_put((self.bag, self.place), patches)

    def gather(self, sequence: Tensor) -> Tensor:
        """The batch's patches ``[M, dim]`` of sequences ``[batch, longest, dim]``."""
        return sequence[self.bag, self.place]


def raster_sequence(batch: BagBatch) -> SequenceLayout:
    """Each bag's patches row by row."""
    rows, cols = batch.index.T
    within = rows * batch.shapes[batch.bag, 1] + cols
    order = torch.argsort(within)
    order = order[torch.argsort(batch.bag[order], stable=True)]
    lengths = torch.bincount(batch.bag, minlength=len(batch))
    first = lengths.cumsum(0) - lengths
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - first[batch.bag[order]]
    return SequenceLayout(batch.bag, place, lengths, int(lengths.max()))


def forwards(lengths: Tensor, longest: int) -> None:
    """The sequence as it stands."""
    return None


def backwards(lengths: Tensor, longest: int) -> Tensor:
    """From a bag's last patch to its first."""
    return reversed_places(lengths[:, None], longest)


def strided(rate: int) -> Order:
    """Every ``rate``-th patch of a bag, then again from the second on, and so on: neighbours come ``rate`` apart.

    Source: S. Yang, Y. Wang, H. Chen, "MambaMIL", MICCAI 2024, sequence reordering. There a sequence is filled up with
    zeros to a multiple of the rate; here it is not, so that no patch is told from where it stands in the batch.
    """

    def order(lengths: Tensor, longest: int) -> Tensor:
        place = torch.arange(longest, device=lengths.device)
        key = (place % rate) * longest + place // rate
        keys = torch.where(place < lengths[:, None], key, longest * longest + place)
        return keys.argsort(1)

    return order


class SequenceBranch(nn.Module):
    """A causal depthwise convolution along the sequence, SiLU, and a selective scan."""

    def __init__(self, inner: int, state: int, rank: int, dt_init: DtInit, dt_min: float, dt_max: float) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(inner, inner, RASTER_WIDTH, padding=RASTER_WIDTH - 1, groups=inner)
        self.scan = ScanParameters(inner, state, rank, dt_init, dt_min, dt_max)

    def forward(self, u: Tensor) -> Tensor:
        """Scanned sequences, ``[batch, length, inner]``."""
        convolved = self.conv1d(u.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2)
        scanned: Tensor = self.scan(functional.silu(convolved).unsqueeze(1))
        return scanned.squeeze(1)


class SequenceMixer(nn.Module):
    """Mamba's mixer: projection, branches, gate, projection. A branch convolves and scans the sequence in an order of
    its own, with its own weights; the sum of the branches is gated.

    What stands after a bag's last patch is never read, since every branch looks back alone and every order leaves it
    there: a bag's output does not depend on the batch it is in.

    Args:
        dim: width of the sequences ``[batch, length, dim]``.
        orders: one a branch.
        state: states a channel, N.
        expand: the inner width is ``expand * dim``.
        dt_init, dt_min, dt_max: as of :class:`wsi2d.models.blocks.Mamba2DMixer`.

    Raises:
        ConfigError: the variable ``WSI2D_SCAN_BACKEND`` names a backend that is not there.

    Source: A. Gu and T. Dao, "Mamba", 2023; with more than one branch S. Yang, Y. Wang, H. Chen, "MambaMIL", MICCAI
    2024.
    """

    def __init__(
        self,
        dim: int,
        orders: Sequence[Order],
        *,
        state: int,
        expand: int,
        dt_init: DtInit,
        dt_min: float,
        dt_max: float,
    ) -> None:
        super().__init__()
        refuse_unknown_backend()
        self.orders = tuple(orders)
        self.in_proj = nn.Linear(dim, 2 * expand * dim, bias=False)
        self.branches = nn.ModuleList(
            SequenceBranch(expand * dim, state, math.ceil(dim / 16), dt_init, dt_min, dt_max) for _ in orders
        )
        self.out_proj = nn.Linear(expand * dim, dim, bias=False)

    def forward(self, sequence: Tensor, layout: SequenceLayout) -> Tensor:
        """Mixed sequences, ``[batch, length, dim]``."""
        u, z = self.in_proj(sequence).chunk(2, -1)
        total = torch.zeros_like(u)
        for branch, order in zip(self.branches, self.orders, strict=True):
            places = order(layout.lengths, layout.longest)
            if places is None:
                total = total + branch(u)
            else:
                scanned = branch(taken(u, places))
                total = total + taken(scanned, places.argsort(1))
        mixed: Tensor = self.out_proj(total * functional.silu(z))
        return mixed
