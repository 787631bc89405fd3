"""The pitch of a tool's grid: stated, computed from what is stated, or found in the coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import gcd
from typing import Literal

import numpy as np

from wsi2d.errors import FeatureStoreError
from wsi2d.features.imports.lattices import ROUNDING

# attribute: the file states it. arithmetic: computed from what the file states. statistics: what most distances between
# neighbours are multiples of. assumed: the side of a patch, since there are too few neighbours to tell. none: there is
# nothing to place.
PitchSource = Literal["attribute", "arithmetic", "statistics", "assumed", "none"]

_FEW = 8  # distances that prove nothing
_SMALLEST = 16.0  # px; statistics do not look for a finer pitch
_CANDIDATES, _KINDS = 16, 512  # the most frequent distances: that can be a pitch, that a pitch is tried on
_FAR = 8.0  # times the most frequent distance: what is farther says little, since drift adds up
_DRIFT = 0.002  # of a distance
_REFINED = 0.01  # of a stated pitch: it is corrected by no more than that or by rounding
_AS_GOOD = 0.02
_CONTRADICTED, _CLEAR = 0.5, 0.8  # shares of distances that fit: too few for a stated pitch, enough for another one


@dataclass(frozen=True)
class Pitch:
    """A grid's pitch, in the coordinates' unit, and how it is known."""

    value: float
    source: PitchSource


def infer_pitch(
    coords: np.ndarray,
    *,
    stated: float | None = None,
    source: PitchSource = "attribute",
    patch: float | None = None,
    one_grid: bool = False,
) -> Pitch:
    """The pitch of a grid on which patches lie.

    Args:
        coords: float64 ``[N, 2]``, (x, y); what is not finite is passed over.
        stated: the pitch as the file says, in the coordinates' unit. It is corrected by up to a hundredth where the
            coordinates drift away from it, and given up where they clearly follow another one.
        source: how that is known.
        patch: side of a patch; what the pitch is taken for where too few patches are neighbours.
        one_grid: whether the tool lays one grid over the whole slide and states its pitch: that no patches are so close
            then says that tissue is sparse, and not that there are gaps.

    Raises:
        FeatureStoreError: nothing tells.
    """
    coords = coords[np.isfinite(coords).all(1)]
    near = _distances(coords)
    if stated is None and near.counts.sum() < (_FEW if patch is None else 1):
        if patch is None:
            raise FeatureStoreError(
                f"the pitch of its grid cannot be told from {len(coords)} patches; give the coordinates' files with "
                "--patches, or extract the slide with `wsi2d extract`"
            )
        return Pitch(patch, "assumed")
    found = near.likeliest(patch)
    if stated is None and found is None:
        raise FeatureStoreError(
            "its patches lie on no grid, as far as distances between neighbours tell; give the coordinates' files with "
            "--patches, or extract the slide with `wsi2d extract`"
        )
    if found is not None and (stated is None or near.contradict(stated, found, one_grid)):
        stated, source = found, "statistics"
    assert stated is not None
    return Pitch(float(_refined(stated, near, coords)), source)


@dataclass(frozen=True)
class _Distances:
    """Distances between patches in a row or a column, the most frequent first, and how often each occurs."""

    values: np.ndarray
    counts: np.ndarray

    def share(self, pitch: float) -> float:
        """Share of distances that are multiples of a pitch, beyond what chance gives; up to 1."""
        chance = np.minimum(1.0, (2 * (ROUNDING + _DRIFT * self.values) + 1) / pitch)
        telling = (self.counts * (1 - chance)).sum()
        return float((self.counts * (self._fits(pitch) - chance)).sum() / telling) if telling > 0 else 0.0

    def holds(self, pitch: float) -> bool:
        """Whether the pitch itself is among the distances."""
        return bool((np.abs(self.values - pitch) <= ROUNDING + _DRIFT * pitch).any())

    def likeliest(self, patch: float | None) -> float | None:
        """The pitch that most distances are multiples of: the side of a patch if that is the most frequent distance, or
        as good as any; else the largest of those as good as any."""
        first = self.values[:_CANDIDATES].tolist()
        if patch is not None and first and abs(first[0] - patch) <= ROUNDING + _DRIFT * patch:
            return patch  # also where two contours share their columns, and patches of both follow each other
        rough = {*first, *(abs(a - b) for a, b in combinations(first, 2))}
        rough |= {float(gcd(round(a), round(b))) for a, b in combinations(first, 2)}
        candidates = {self.slope(p) for p in rough if p >= _SMALLEST} | ({patch} if patch else set())
        shares = {p: self.share(p) for p in candidates if len(first)}
        best = max(shares.values(), default=0.0)
        if best < _CONTRADICTED:
            return None
        good = [p for p, share in shares.items() if share >= best - _AS_GOOD]
        if patch in good and (self.holds(patch) or self.counts.sum() < _FEW):
            return patch
        return max(good)

    def contradict(self, stated: float, found: float, one_grid: bool) -> bool:
        """Whether a stated pitch is not that of the coordinates, and the one found clearly is."""
        if self.counts.sum() < _FEW or self.share(found) < _CLEAR or abs(found - stated) <= ROUNDING:
            return False
        gaps = not one_grid and found > stated and not self.holds(stated)
        return self.share(stated) < _CONTRADICTED or gaps

    def slope(self, pitch: float, steps: tuple[int, ...] = (2, 4, 8, 16), drift: float = _DRIFT) -> float:
        """A pitch by least squares over ever longer distances, so that each is known to be how many pitches long."""
        for most in steps:
            fits = self._fits(pitch, drift) & (self.values < (most + 0.5) * pitch)
            if fits.any():
                count = np.rint(self.values[fits] / pitch)
                weights = self.counts[fits] * count
                pitch = float((weights * self.values[fits]).sum() / (weights * count).sum())
        return pitch

    def _fits(self, pitch: float, drift: float = _DRIFT) -> np.ndarray:
        count = np.rint(self.values / pitch)
        fits: np.ndarray = (count >= 1) & (np.abs(self.values - count * pitch) <= ROUNDING + drift * self.values)
        return fits


def _refined(pitch: float, near: _Distances, coords: np.ndarray) -> float:
    """A pitch by least squares, where coordinates would drift from the given one by more than rounding."""
    if not len(near.values) or near.share(pitch) < _CONTRADICTED:
        return pitch
    far = _distances(coords, from_first=True)
    better = far.slope(near.slope(pitch), (16, 32, 64, 128, 256, 512, 1024), drift=0.0)
    if abs(better - round(better)) < 0.05 and (coords == np.rint(coords)).all():
        better = float(round(better))
    drift = abs(better - pitch) * np.ptp(coords, axis=0).max(initial=0) / pitch
    return better if drift > ROUNDING and abs(better - pitch) <= max(ROUNDING, _REFINED * pitch) else pitch


def _distances(coords: np.ndarray, *, from_first: bool = False) -> _Distances:
    """Distances from each patch to the next of its row and of its column, or to the first of them."""
    found = []
    for along, across in ((0, 1), (1, 0)):
        line = np.rint(coords[:, across] * 4)
        order = np.lexsort((coords[:, along], line))
        line, place = line[order], coords[order, along]
        begins = np.diff(line, prepend=np.nan) != 0
        before = place[np.flatnonzero(begins)][np.cumsum(begins) - 1] if from_first else np.roll(place, 1)
        step = (place - before)[~begins]
        found.append(step[step > 2 * ROUNDING])
    values, counts = np.unique(np.rint(np.concatenate(found) * 4) / 4, return_counts=True)
    if not from_first and len(values):
        near = values <= _FAR * values[np.argmax(counts)]
        values, counts = values[near], counts[near]
    order = np.lexsort((values, -counts))[: len(values) if from_first else _KINDS]
    return _Distances(values[order], counts[order])
