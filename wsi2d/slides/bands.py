"""Pictures worked on a band of rows at a time, so that what is computed on the way takes no memory to speak of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PIXELS = 2**18  # computed at a time


@dataclass(frozen=True)
class Band:
    """Rows of a picture.

    Attributes:
        own: the rows.
        wide: they and those around them.
        inner: where they are within ``wide``.
    """

    own: slice
    wide: slice
    inner: slice


def bands(shape: tuple[int, ...], around: int = 0) -> Iterator[Band]:
    """All rows of a picture, in bands one below the other.

    Args:
        shape: of the picture, height and width, px; more is ignored.
        around: rows above and below a band that what is computed of it depends on.
    """
    height, width = shape[:2]
    step = max(1, PIXELS // max(1, width))
    for top in range(0, height, step):
        bottom, start = min(top + step, height), max(0, top - around)
        yield Band(slice(top, bottom), slice(start, min(height, bottom + around)), slice(top - start, bottom - start))
