"""The lattices on which patches lie: one where a grid starts once a slide, several where each contour has its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDING = 1.5  # how far apart coordinates can be that were rounded, perhaps twice, px
_SPREAD = 0.1  # of a pitch: how far apart the starts of one lattice can be


@dataclass(frozen=True)
class Lattices:
    """Patches by the lattice that they lie on, the largest lattice first.

    Attributes:
        label: int64 ``[N]``, which lattice.
        start: float64 ``[L, 2]``, (x, y) of each lattice's first point, at least 0 and less than the pitch.
        step: int64 ``[N, 2]``, (x, y) in pitches from there, rounded.
        sizes: int64 ``[L]``, patches of each.
    """

    label: np.ndarray
    start: np.ndarray
    step: np.ndarray
    sizes: np.ndarray


def find_lattices(xy: np.ndarray, pitch: float) -> Lattices:
    """Lattices of one pitch by where they start; float64 ``[N, 2]``, N > 0.

    Whole coordinates with a whole pitch must have the very same remainder, others one that differs by rounding.
    """
    labels, starts = zip(*(_by_start(values, pitch) for values in xy.T), strict=True)
    pair, label = np.unique(labels[0] * len(starts[1]) + labels[1], return_inverse=True)
    start = np.stack([starts[0][pair // len(starts[1])], starts[1][pair % len(starts[1])]], 1)
    sizes = np.bincount(label)
    order = np.lexsort((start[:, 0], start[:, 1], -sizes))
    label, start = np.argsort(order)[label], start[order]
    return Lattices(label, start, np.rint((xy - start[label]) / pitch).astype(np.int64), sizes[order])


def _by_start(values: np.ndarray, pitch: float) -> tuple[np.ndarray, np.ndarray]:
    """Which start along one axis each value has, and where those are."""
    remainder = np.mod(values, pitch)
    if pitch == np.rint(pitch) and (values == np.rint(values)).all():
        starts, label = np.unique(remainder, return_inverse=True)
        return label, starts
    order = np.argsort(remainder, kind="stable")
    ordered = remainder[order]
    gaps = np.diff(ordered, append=ordered[0] + pitch)
    # Counted from behind the widest gap, no start lies on both ends of the circle.
    first = int(np.argmax(gaps)) + 1
    order = np.roll(order, -first)
    ordered = np.mod(np.roll(ordered, -first) - ordered[first % len(ordered)], pitch)
    groups = np.cumsum(np.diff(ordered, prepend=0.0) > ROUNDING)
    begin = ordered[np.searchsorted(groups, np.arange(groups[-1] + 1))]
    # A group can be a chain of many starts, each near the next.
    part = np.floor((ordered - begin[groups]) / (_SPREAD * pitch)).astype(np.int64)
    _, label_in_order = np.unique(groups * (part.max() + 1) + part, return_inverse=True)
    middle = np.array([np.median(chunk) for chunk in np.split(ordered, np.flatnonzero(np.diff(label_in_order)) + 1)])
    label = np.empty(len(values), np.int64)
    label[order] = label_in_order
    return label, np.mod(middle + remainder[order[0]], pitch)
