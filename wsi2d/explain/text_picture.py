"""A slide's grid in letters, for a terminal: tissue and empty cells in a frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_BRAILLE = 0x2800
_BRAILLE_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # by row and column of a letter
_HALVES = np.array([[" ", "▄"], ["▀", "█"]])  # by upper and lower half
_SHADES = np.array([" ", ".", "+", "#"])  # none, up to a third, up to two thirds, more


@dataclass(frozen=True)
class TextPicture:
    """A grid in letters.

    Attributes:
        lines: the picture, framed; all of one length.
        cells: a side of what its smallest mark stands for, in cells of the grid. A mark of more than one cell is set
            where any of them is; where the letters are ASCII, they say how many are.
    """

    lines: tuple[str, ...]
    cells: int


def text_picture(
    index: np.ndarray, shape: tuple[int, int], *, columns: int, lines: int = 30, unicode: bool = True
) -> TextPicture:
    """Draw which cells of a grid hold a patch, as large as there is room for.

    Args:
        index: ``[N, 2]``, (row, col) of the patches, no cell twice.
        shape: rows and columns of the grid.
        columns, lines: letters there is room for, the frame included; at least 3 of each are taken.
        unicode: blocks and Braille; otherwise ASCII.
    """
    width, height = max(1, columns - 2), max(1, lines - 2)
    rows, cols = shape
    if 2 * cols <= width and rows <= height:
        mark = "█" if unicode else "#"
        body = ["".join(2 * mark if cell else "  " for cell in row) for row in _marks(index, shape, 1)]
        return TextPicture(_framed(body, unicode), 1)
    if not unicode:
        cells = max(math.ceil(cols / width), math.ceil(rows / (2 * height)))
        return TextPicture(_framed(_shaded(index, shape, cells), unicode), cells)
    if cols <= width and rows <= 2 * height:
        marks = _padded(_marks(index, shape, 1), 2, 1)
        return TextPicture(_framed(_HALVES[marks[::2], marks[1::2]], unicode), 1)
    cells = max(1, math.ceil(cols / (2 * width)), math.ceil(rows / (4 * height)))
    marks = _padded(_marks(index, shape, cells), 4, 2)
    letters = marks.reshape(len(marks) // 4, 4, -1, 2).swapaxes(1, 2) * _BRAILLE_DOTS
    body = ["".join(chr(_BRAILLE + int(dots)) for dots in row) for row in letters.sum((2, 3))]
    return TextPicture(_framed(body, unicode), cells)


def _marks(index: np.ndarray, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Whether any cell of each square of ``cells`` by ``cells`` holds a patch, 0 or 1 ``[rows, cols]``."""
    marks = np.zeros([math.ceil(n / cells) for n in shape], np.int64)
    marks[tuple(index.T // cells)] = 1
    return marks


def _padded(marks: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Whole letters of so many marks."""
    return np.pad(marks, ((0, -marks.shape[0] % rows), (0, -marks.shape[1] % cols)))


def _shaded(index: np.ndarray, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Letters of twice as many rows as columns of cells, by the share of those within the grid that hold a patch."""
    held = np.zeros([math.ceil(shape[0] / (2 * cells)), math.ceil(shape[1] / cells)])
    np.add.at(held, (index[:, 0] // (2 * cells), index[:, 1] // cells), 1)
    sides = (np.minimum(n, shape[axis] - np.arange(0, shape[axis], n)) for axis, n in enumerate((2 * cells, cells)))
    share = held / np.multiply.outer(*sides)
    letters: np.ndarray = _SHADES[np.ceil(share * 3 - 1e-9).astype(int)]
    return letters


def _framed(body: np.ndarray | list[str], unicode: bool) -> tuple[str, ...]:
    corners, side, edge = ("┌┐└┘", "│", "─") if unicode else ("++++", "|", "-")
    inside = ["".join(row) for row in body]
    line = edge * len(inside[0])
    first, last = corners[0] + line + corners[1], corners[2] + line + corners[3]
    return (first, *(f"{side}{row}{side}" for row in inside), last)
