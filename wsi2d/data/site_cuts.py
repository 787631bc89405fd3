"""Cuts of patients into sides that keep each site together, with every kind of patient on every side."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from wsi2d.errors import SplitError

Sides = tuple[list[int], list[int], list[int]]

_SEEDS = 2**32  # how many scikit-learn takes
_TRIES = 20  # orders of the sites that are tried before a cut is given up
_MOST_PARTS = 10  # of which val is one or more


def sites_needed(folds: int) -> int:
    """At how many sites a kind of patient must be found: one a fold, and two outside each test side."""
    return 4 if folds == 2 else folds


def sites_of_kinds(kinds: Sequence[str], sites: Sequence[str]) -> dict[str, int]:
    """At how many sites there are patients of each kind."""
    return {kind: len({s for k, s in zip(kinds, sites, strict=True) if k == kind}) for kind in sorted(set(kinds))}


def cut_by_site(kinds: Sequence[str], sites: Sequence[str], folds: int, val_share: float, seed: int) -> list[Sides]:
    """Train, val and test of each fold, as positions; each site is on one side of a fold and tested once.

    Args:
        kinds, sites: of each patient ``[N]``.
        folds: how many.
        val_share: of the patients outside the test side; the part that comes nearest to it is taken.
        seed: the same seed gives the same folds.

    Raises:
        SplitError: no cut was found that leaves every kind on every side.
    """
    for attempt in range(_TRIES):
        first = (seed + attempt * 1_000_003) % _SEEDS
        found: list[Sides] = []
        for k, (rest, test) in enumerate(_parts(kinds, sites, folds, first)):
            inner = _inner(rest, kinds, sites, val_share, first + k) if _has_all(test, kinds) else None
            if inner is None:
                break
            found.append((*inner, [int(i) for i in test]))
        if len(found) == folds:
            return found
    few = ", ".join(f"{kind} at {n}" for kind, n in sites_of_kinds(kinds, sites).items())
    raise SplitError(
        f"folds: no cut into {folds} was found that keeps sites together and leaves every kind on every side (sites of "
        f"each kind: {few}); use fewer folds, another seed, or merge classes"
    )


def _parts(
    kinds: Sequence[str], sites: Sequence[str], count: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    cut = StratifiedGroupKFold(count, shuffle=True, random_state=seed % _SEEDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some part must lack a kind: those are looked at afterwards
        found = list(cut.split(np.zeros(len(kinds)), kinds, sites))
    yield from found


def _has_all(side: Sequence[int] | NDArray[np.int64], kinds: Sequence[str]) -> bool:
    return {kinds[i] for i in side} == set(kinds)


def _inner(
    rest: NDArray[np.int64], kinds: Sequence[str], sites: Sequence[str], share: float, seed: int
) -> tuple[list[int], list[int]] | None:
    """Train and val among the patients that a fold does not test: of the parts that leave every kind on both, the one
    whose size and kinds come nearest to the share."""
    of_kind, of_site = [kinds[i] for i in rest], [sites[i] for i in rest]
    most = min(len(set(of_site)), max(of_kind.count(kind) for kind in set(of_kind)))
    wanted = min(Fraction(share).limit_denominator(_MOST_PARTS).denominator, most)
    counts = (wanted, *(n for n in range(2, min(most, wanted + 2) + 1) if n != wanted))
    for count in (n for n in counts if n > 1):
        parts = [val for _, val in _parts(of_kind, of_site, count, seed)]
        joined = min(count - 1, max(1, round(share * count)))
        cuts = []
        for k in range(count):
            chosen = {int(rest[i]) for j in range(joined) for i in parts[(k + j) % count]}
            cuts.append(([int(i) for i in rest if i not in chosen], sorted(chosen)))
        sound = [cut for cut in cuts if all(_has_all(side, kinds) for side in cut)]
        if sound:
            return min(sound, key=lambda cut: _distance([kinds[i] for i in cut[1]], of_kind, share))
    return None


def _distance(val: Sequence[str], both: Sequence[str], share: float) -> float:
    """How far the size of val, and what it has of each kind, are from the share."""
    off = [abs(val.count(kind) / both.count(kind) - share) for kind in sorted(set(both))]
    return abs(len(val) / len(both) - share) + sum(off) / len(off)
