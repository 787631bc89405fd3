"""Bags: a slide's embeddings on the grid cropped to its tissue, loaded from disk and put together in batches."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wsi2d.config import Arrangement
from wsi2d.data.arrangements import TURNS, arrange
from wsi2d.errors import FeatureStoreError
from wsi2d.features.anyones import read_features, read_header
from wsi2d.features.imports.claims import NO_CLAIMS, Claims
from wsi2d.features.spec import FeatureSpec as FeatureSpec
from wsi2d.features.spec import spec_of
from wsi2d.features.store import feature_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GridBag:
    """A slide for a model.

    Attributes:
        slide_id: the slide.
        features: float32 ``[N, D]``, in the feature file's order.
        index: int64 ``[N, 2]``, (row, col) on the grid cropped to the tissue's bounding box; one patch a cell at most.
        shape: rows and columns of that grid.
    """

    slide_id: str
    features: Tensor
    index: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.index.shape != (len(self.features), 2):
            raise FeatureStoreError(
                f"slide '{self.slide_id}': features {list(self.features.shape)} and index "
                f"{list(self.index.shape)} do not match"
            )
        if ((self.index < 0) | (self.index >= torch.tensor(self.shape))).any():
            raise FeatureStoreError(
                f"slide '{self.slide_id}': a patch lies outside its grid of {self.shape[0]}×{self.shape[1]}"
            )
        cells = (self.index[:, 0] * self.shape[1] + self.index[:, 1]).sort().values
        twice = cells[1:][cells[1:] == cells[:-1]]
        if len(twice):
            row, col = divmod(int(twice[0]), self.shape[1])
            raise FeatureStoreError(f"slide '{self.slide_id}': two patches lie in one cell, row {row}, column {col}")
        if not torch.isfinite(self.features).all():
            raise FeatureStoreError(f"slide '{self.slide_id}': features hold NaN or infinity")

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class BagBatch:
    """Several bags on one padded grid, without the padding: patches of all bags one after the other.

    Attributes:
        features: float32 ``[M, D]``, M patches of all bags.
        bag: int64 ``[M]``, which bag a patch belongs to.
        index: int64 ``[M, 2]``, (row, col) of a patch on its bag's grid.
        shapes: int64 ``[batch, 2]``, rows and columns of each bag's grid.
        joined: how many bags, one after the other, are slides of one patient, and have one answer together; None where
            each bag has its own.
    """

    features: Tensor
    bag: Tensor
    index: Tensor
    shapes: Tensor
    joined: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.shapes)

    def to(self, device: torch.device) -> BagBatch:
        """Move to a device."""
        features, bag, index, shapes = (t.to(device) for t in (self.features, self.bag, self.index, self.shapes))
        return BagBatch(features, bag, index, shapes, self.joined)


def collate(bags: Sequence[GridBag], joined: Sequence[int] | None = None) -> BagBatch:
    """Put bags together in a batch.

    Args:
        bags: one a slide.
        joined: how many of these, one after the other, have one answer together; by default each has its own.

    Raises:
        FeatureStoreError: a bag is empty: no model has an answer to it.
    """
    for bag in bags:
        if len(bag) == 0:
            raise FeatureStoreError(f"slide '{bag.slide_id}': has no tissue; leave it out")
    counts = torch.tensor([len(bag) for bag in bags])
    return BagBatch(
        features=torch.cat([bag.features for bag in bags]),
        bag=torch.arange(len(bags)).repeat_interleave(counts),
        index=torch.cat([bag.index for bag in bags]),
        shapes=torch.tensor([bag.shape for bag in bags]),
        joined=None if joined is None or set(joined) == {1} else tuple(joined),
    )


def load_bag(path: Path | str, claims: Claims = NO_CLAIMS) -> GridBag:
    """A feature file as a bag, whoever wrote it.

    Raises:
        FeatureStoreError: as :func:`wsi2d.features.anyones.read_features`, or features that are not finite.
    """
    stored = read_features(path, claims)
    index = torch.from_numpy(stored.grid.index).long()
    shape = (0, 0)
    if len(index):
        index = index - index.amin(0)
        rows, cols = (index.amax(0) + 1).tolist()
        shape = (rows, cols)
    try:
        return GridBag(stored.provenance.slide_id, torch.from_numpy(stored.features).float(), index, shape)
    except FeatureStoreError as error:
        raise FeatureStoreError(f"{path}: {error}; delete it and extract again") from error


def read_spec(path: Path, claims: Claims = NO_CLAIMS) -> tuple[FeatureSpec, int]:
    """What a feature file's features are, and how many patches it holds; reads no features.

    Raises:
        FeatureStoreError: as :func:`wsi2d.features.anyones.read_features`.
    """
    header = read_header(path, claims)
    return spec_of(header), header.patches


class BagStore:
    """The bags of some slides, checked on construction, kept in memory while they fit.

    Args:
        folder: of the feature files.
        slide_ids: the slides.
        missing: ``error`` or ``skip``, where some have no features.
        cache_gb: features kept in memory, GB.
        arrangement: where patches lie instead (:func:`wsi2d.data.arrangements.arrange`), drawn from ``seed``.
        seed: as above.
        turned: slides are mirrored and turned as ``arrangement`` says wherever they are loaded; else only for training,
            each time anew.

    Attributes:
        spec: what all features have in common.
        counts: patches of each slide that has a feature file, by its id.
        missing: slides without a feature file (only where ``missing="skip"``).
        empty: slides without tissue; they cannot be loaded.
    """

    def __init__(
        self,
        folder: Path | str,
        slide_ids: Iterable[str],
        *,
        missing: str = "error",
        cache_gb: float = 2.0,
        claims: Claims = NO_CLAIMS,
        arrangement: Sequence[Arrangement] = (),
        seed: int = 0,
        turned: bool = False,
    ) -> None:
        self._folder, self._claims = Path(folder), claims
        self._seed, self._drawn = seed, tuple(arrangement)
        self._fixed = tuple(name for name in arrangement if turned or name not in TURNS)
        self._cache: dict[str, GridBag] = {}
        self._room = cache_gb * 1e9
        paths = {slide_id: feature_path(self._folder, slide_id) for slide_id in slide_ids}
        self.missing = tuple(slide_id for slide_id, path in paths.items() if not path.exists())
        if self.missing and missing == "error" and len(self.missing) < len(paths):
            raise FeatureStoreError(
                f"features {self._folder}: {len(self.missing)} of {len(paths)} slides have none (the first is "
                f"'{self.missing[0]}'); extract them, or set data.missing_features: skip"
            )
        specs = {slide_id: read_spec(path, claims) for slide_id, path in paths.items() if path.exists()}
        if not specs:
            raise FeatureStoreError(
                f"features {self._folder}: no slide of the cohort has a feature file here; extract them into it, or "
                "give another data.features"
            )
        # An empty slide's file need not say all that others do; where all are empty, nothing is trained on.
        filled = {slide_id: spec for slide_id, (spec, count) in specs.items() if count}
        self.spec = self._common(filled or {slide_id: spec for slide_id, (spec, _) in specs.items()})
        self.counts = {slide_id: count for slide_id, (_, count) in specs.items()}
        self.empty = tuple(slide_id for slide_id, (_, count) in specs.items() if count == 0)
        self._usable = set(specs) - set(self.empty)
        for names, what in ((self.missing, "have no features"), (self.empty, "have no tissue")):
            if names:
                logger.warning("%d slides %s and are left out: %s", len(names), what, ", ".join(names[:5]))

    def __contains__(self, slide_id: str) -> bool:
        return slide_id in self._usable

    def load(self, slide_id: str, draw: int | None = None) -> GridBag:
        """A slide's bag; with ``draw``, a number, as it is for training at that time.

        Raises:
            FeatureStoreError: it has no tissue, or its file went missing or is damaged.
        """
        if slide_id in self.empty:
            raise FeatureStoreError(f"slide '{slide_id}': has no tissue; leave it out")
        bag = self._cache.get(slide_id)
        if bag is None:
            bag = load_bag(feature_path(self._folder, slide_id), self._claims)
            size = bag.features.nbytes + bag.index.nbytes
            if size <= self._room:
                self._room -= size
                self._cache[slide_id] = bag
        return arrange(bag, self._fixed if draw is None else self._drawn, seed=self._seed, draw=draw)

    def _common(self, specs: dict[str, FeatureSpec]) -> FeatureSpec:
        (first, spec), *others = sorted(specs.items(), key=lambda item: item[1].overlap_px is None)
        for slide_id, other in others:
            difference = spec.difference(other)
            if difference:
                raise FeatureStoreError(
                    f"features {self._folder}: '{slide_id}' has {difference} as '{first}'; extract all slides alike"
                )
        return spec
