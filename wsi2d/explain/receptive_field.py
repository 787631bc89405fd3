"""The effective receptive field: from where, around a patch, its embedding takes what it knows.

Of a bag, the gradient of the embedding of one cell, the centre, with respect to the features of every patch; its size
at each patch is put down at that patch's offset from the centre and averaged over bags. A slide has tissue at some
offsets and none at others, so each offset has its own mean, over the centres that have a patch there, and its count.

The size of a gradient is the Frobenius norm of the Jacobian of the embedding by the patch's features, in units of their
deviation over the training side where a model standardises them. Backward passes estimate it: for a vector v of random
signs, ‖Jᵀv‖² has the expectation ‖J‖², and is 0 where J is. The squares are averaged over a centre's passes, and the
root is taken after that. The root of an estimate is too small on average where J has a low rank: of rank one by 20 %
with one pass, 6 % with four, 3 % with eight. The plain sum over the embedding's channels, with which receptive fields
of images are drawn, would not do here: behind a layer norm it hardly depends on anything.

Source: W. Luo, Y. Li, R. Urtasun, R. Zemel, "Understanding the Effective Receptive Field in Deep Convolutional Neural
Networks", NeurIPS 2016; drawn for 1D and 2D scans in J. Zhang et al., "2DMamba", CVPR 2025. The estimate is M.
Hutchinson's (Communications in Statistics 18, 1989).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi2d.data.bags import GridBag, collate
from wsi2d.errors import ConfigError, ModelError
from wsi2d.models.aggregator import Aggregator

PROBES = 4
_ROW = 2**32  # one row further, in a number that stands for an offset


@dataclass(frozen=True)
class ReceptiveField:
    """Mean size of the gradient at each offset from the centre.

    Attributes:
        offsets: int64 ``[K, 2]``, (rows down, columns to the right) from the centre, cells; in raster order.
        gradient: float64 ``[K]``, mean over the centres that have a patch there; no unit.
        counts: int64 ``[K]``, how many centres that are.
        bags, centres: how many bags were looked at, and centres in all of them.

    Raises:
        ModelError: the gradient is zero everywhere, or not finite.
    """

    offsets: NDArray[np.int64]
    gradient: NDArray[np.float64]
    counts: NDArray[np.int64]
    bags: int
    centres: int

    def __post_init__(self) -> None:
        total = float(self.gradient.sum())
        if not (math.isfinite(total) and total > 0):
            what = "zero everywhere" if total == 0 else "not finite"
            raise ModelError(f"receptive field: the gradient is {what}; train the model anew")

    @property
    def share(self) -> NDArray[np.float64]:
        """What each offset has of the whole gradient, float64 ``[K]``; sums to 1."""
        share: NDArray[np.float64] = self.gradient / self.gradient.sum()
        return share

    @property
    def distance(self) -> NDArray[np.float64]:
        """Of each offset from the centre, cells, float64 ``[K]``."""
        distance: NDArray[np.float64] = np.hypot(*self.offsets.T)
        return distance

    @property
    def single_point(self) -> bool:
        """Whether a patch's embedding depends on that patch alone, as in models that know no order."""
        return not self.gradient[self.distance > 0].any()

    def within(self, radius: float) -> float:
        """Share of the gradient no farther than a radius from the centre, cells."""
        return float(self.share[self.distance <= radius].sum())

    def radius_of(self, share: float) -> float:
        """The smallest radius, cells, within which a share (up to 1) of the gradient lies."""
        order = np.argsort(self.distance, kind="stable")
        held = np.cumsum(self.share[order])
        # What rounding takes from the sum must not send it to the farthest corner.
        return float(self.distance[order][np.searchsorted(held, share * held[-1] * (1 - 1e-12))])

    @property
    def reach(self) -> float:
        """Distance of the farthest patch with any gradient, cells."""
        return float(self.distance[self.gradient > 0].max())


def receptive_field(
    model: Aggregator,
    bags: Iterable[GridBag],
    *,
    centres: int = 1,
    probes: int = PROBES,
    seed: int = 0,
    batch_size: int = 1,
    device: torch.device | None = None,
) -> ReceptiveField:
    """The effective receptive field of an aggregator, averaged over bags.

    Memory is that of a forward and backward pass over ``batch_size`` bags, and a number for each offset seen.

    Args:
        model: any aggregator; it is looked at in evaluation mode, and left as it was.
        bags: each with a patch or more; they are taken one after the other.
        centres: how many cells of a bag are centres: the one nearest the middle of its grid, then others drawn evenly.
        probes: backward passes a centre: the more, the less the estimate of each norm is left to chance, and the less
            it is too small.
        seed: of what is drawn, together with the slide's id.
        batch_size: bags that go through at once; the result does not depend on it.
        device: where the model is; the CPU if not given.

    Raises:
        ConfigError: a number below 1, or no bags.
        ModelError: the gradient is zero everywhere, or not finite.
        FeatureStoreError: a bag is empty.
    """
    sums = OffsetSums()
    add_gradients(
        sums, model, bags, centres=centres, probes=probes, seed=seed, batch_size=batch_size, device=device
    )  # fmt: skip
    return sums.mean()


class OffsetSums:
    """Sums by offset, of bags and models that come one after the other; grows with the offsets that were seen."""

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)
        self._sums: NDArray[np.float64] = np.empty(0)
        self._counts = np.empty(0, np.int64)
        self.bags = self.centres = 0

    def add(self, offsets: NDArray[np.int64], sizes: NDArray[np.float64]) -> None:
        """The gradient's size ``[N]`` at offsets ``[N, 2]`` from one more centre, each offset at most once."""
        keys = np.concatenate([self._keys, offsets[:, 0] * _ROW + offsets[:, 1]])
        self._keys, place = np.unique(keys, return_inverse=True)
        self._sums = np.bincount(place, np.concatenate([self._sums, sizes])).astype(np.float64)
        self._counts = np.bincount(place, np.concatenate([self._counts, np.ones(len(sizes))])).astype(np.int64)
        self.centres += 1

    def mean(self) -> ReceptiveField:
        """The field.

        Raises:
            ConfigError: nothing was added.
            ModelError: the gradient is zero everywhere, or not finite.
        """
        if self.centres == 0:
            raise ConfigError("receptive field: there are no bags; give one or more")
        rows = (self._keys + _ROW // 2) // _ROW
        offsets = np.stack([rows, self._keys - rows * _ROW], 1)
        return ReceptiveField(offsets, self._sums / self._counts, self._counts, self.bags, self.centres)


def add_gradients(
    sums: OffsetSums,
    model: Aggregator,
    bags: Iterable[GridBag],
    *,
    centres: int,
    probes: int,
    seed: int,
    batch_size: int,
    device: torch.device | None,
) -> None:
    """Add what a model makes of some bags; arguments as of :func:`receptive_field`.

    Raises:
        ConfigError: a number below 1.
        FeatureStoreError: a bag is empty.
    """
    for name, value in (("centres", centres), ("probes", probes), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"receptive field: {name} must be at least 1, got {value}")
    remaining = iter(bags)
    while chosen := list(islice(remaining, batch_size)):
        places = [centre_patches(bag, centres, seed) for bag in chosen]
        for at, offsets, sizes in _centre_gradients(model, chosen, places, probes, seed, device):
            if not np.isfinite(sizes).all():
                name = chosen[at].slide_id
                raise ModelError(f"slide '{name}': the gradient holds NaN or infinity; train the model anew")
            sums.add(offsets, sizes)
        sums.bags += len(chosen)


def centre_patches(bag: GridBag, count: int, seed: int = 0) -> list[int]:
    """Patches of a bag to be centres: the one nearest the middle of its grid (of equals the first in raster order),
    then others drawn evenly from the seed and the slide's id; all of them where there are fewer."""
    twice = 2 * bag.index - (torch.tensor(bag.shape) - 1)
    raster = bag.index[:, 0] * bag.shape[1] + bag.index[:, 1]
    nearest = twice.double().square().sum(1)
    first = int(torch.where(nearest == nearest.min(), raster, raster.max() + 1).argmin())
    if count == 1:
        return [first]
    others = torch.randperm(len(bag), generator=_generator(seed, bag, "centres")).tolist()
    return [first, *(patch for patch in others if patch != first)][:count]


def _centre_gradients(
    model: Aggregator,
    bags: Sequence[GridBag],
    places: Sequence[Sequence[int]],
    probes: int,
    seed: int,
    device: torch.device | None,
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """For each centre of each bag of a batch: the bag's number, offsets ``[N, 2]`` of its patches from the centre, and
    the gradient's size ``[N]`` at each. The bags go through once, with as many backward passes as centres × probes."""
    counts = [len(bag) for bag in bags]
    first = np.cumsum([0, *counts[:-1]])
    most = max(map(len, places))
    generators = [_generator(seed, bag, "signs") for bag in bags]
    with _looked_at(model):
        batch = collate(bags).to(device or torch.device("cpu"))
        features = batch.features.requires_grad_()
        outputs = model.patch_outputs(replace(batch, features=features))
        for k in range(most):
            here = [b for b in range(len(bags)) if k < len(places[b])]
            rows = [int(first[b]) + places[b][k] for b in here]
            squares = torch.zeros(len(features), dtype=torch.float64)
            for probe in range(probes):
                signs = torch.stack([_signs(outputs.shape[1], generators[b]) for b in here]).to(outputs)
                last = k == most - 1 and probe == probes - 1
                (found,) = torch.autograd.grad(outputs[rows], features, signs, retain_graph=not last)
                squares += _in_deviations(model, found).double().square().sum(1).cpu()
            sizes = (squares / probes).sqrt().split(counts)
            for b in here:
                yield b, (bags[b].index - bags[b].index[places[b][k]]).numpy(), sizes[b].numpy()


def _in_deviations(model: Aggregator, gradient: Tensor) -> Tensor:
    """A gradient by features as one by features in units of their deviation over the training side."""
    return gradient if model.standardise is None else gradient * model.standardise.scale


def _signs(width: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (width,), generator=generator) * 2 - 1


def _generator(seed: int, bag: GridBag, what: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {what} {bag.slide_id}".encode()))


@contextmanager
def _looked_at(model: Aggregator) -> Iterator[None]:
    """In evaluation mode and without gradients of its own weights, which would cost memory; afterwards as before."""
    training, wanted = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_()
        model.train(training)
