"""What is asked of a slide file: regions that are resampled, and what is said where one cannot be read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """What regions of a slide have in common.

    Attributes:
        level: of the slide.
        size: width and height, px of that level; may be fractional.
        out: width and height of the result, px.
        how: Pillow's number for the resampling.
    """

    level: int
    size: tuple[float, float]
    out: tuple[int, int]
    how: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the result: height, width and channels."""
        return (self.out[1], self.out[0], 3)


class UnreadableRegionError(Exception):
    """One of several regions could not be read; the text says why.

    Attributes:
        x, y: its top-left corner, level-0 px.
    """

    def __init__(self, x: int, y: int, reason: str) -> None:
        super().__init__(reason)
        self.x, self.y = x, y
