"""A grid in letters: read back letter by letter, it is the grid."""

import numpy as np
import pytest

from wsi2d.explain.text_picture import TextPicture, text_picture

HALVES = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}


def read_back(picture: TextPicture) -> np.ndarray:
    """Marks of a picture, 0 or 1, with what fills the last letters up."""
    body = [line[1:-1] for line in picture.lines[1:-1]]
    letters = set("".join(body))
    if letters <= set(HALVES) and any(c in "▀▄" for c in letters):
        return np.array([[HALVES[c][half] for c in row] for row in body for half in (0, 1)])
    if letters <= {" ", "█"}:  # both ways of drawing have these alone: a cell of two letters is told by its height
        return np.array([[int(c == "█") for c in row] for row in body])
    bits = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
    return np.array(
        [[int(bool((ord(c) - 0x2800) & bit)) for c in row for bit in pair] for row in body for pair in bits]
    )


def check_size(picture: TextPicture, columns: int, lines: int) -> None:
    """It fits, and its frame is whole."""
    widths = {len(line) for line in picture.lines}
    assert len(widths) == 1
    assert widths.pop() <= columns
    assert len(picture.lines) <= lines


def grid_of(shape: tuple[int, int], seed: int = 0, share: float = 0.4) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def test_a_small_grid_is_drawn_large() -> None:
    picture = text_picture(np.array([[0, 0], [1, 2]]), (2, 3), columns=80)
    assert picture.lines == ("┌──────┐", "│██    │", "│    ██│", "└──────┘")
    assert picture.cells == 1


def test_ascii() -> None:
    picture = text_picture(np.array([[0, 0], [1, 2]]), (2, 3), columns=80, unicode=False)
    assert picture.lines == ("+------+", "|##    |", "|    ##|", "+------+")


def test_no_patches() -> None:
    for unicode in (True, False):
        for shape in ((2, 3), (50, 70), (500, 700)):
            picture = text_picture(np.zeros((0, 2), np.int32), shape, columns=80, unicode=unicode)
            assert set("".join(line[1:-1] for line in picture.lines[1:-1])) <= {" ", "⠀"}


def test_halves() -> None:
    """Too wide for two letters a cell."""
    cells = grid_of((49, 70))
    picture = text_picture(np.argwhere(cells), cells.shape, columns=80)
    check_size(picture, 80, 30)
    np.testing.assert_array_equal(read_back(picture)[:49], cells)


@pytest.mark.parametrize(("shape", "cells"), [((100, 150), 1), ((112, 156), 1), ((113, 30), 2), ((300, 420), 3)])
def test_braille(shape: tuple[int, int], cells: int) -> None:
    """A dot is a cell, or a square of them where any holds a patch."""
    held = grid_of(shape, share=0.2)
    picture = text_picture(np.argwhere(held), shape, columns=80)
    check_size(picture, 80, 30)
    assert picture.cells == cells
    rows, cols = (-(-n // cells) for n in shape)
    padded = np.pad(held, ((0, rows * cells - shape[0]), (0, cols * cells - shape[1])))
    expected = padded.reshape(rows, cells, cols, cells).any((1, 3))
    np.testing.assert_array_equal(read_back(picture)[:rows, :cols], expected)
    assert not read_back(picture)[rows:].any()
    assert not read_back(picture)[:, cols:].any()


def test_shades_say_how_many() -> None:
    """Letters of 2 × 1 cells: none, one of two, both; the last row is one cell high, and full at that."""
    cells = np.zeros((31, 60), bool)
    cells[0, 1] = cells[0:2, 2] = cells[30, 3] = True
    picture = text_picture(np.argwhere(cells), cells.shape, columns=70, unicode=False)
    assert picture.cells == 1
    assert picture.lines[1][1:6] == " +#  "
    assert picture.lines[16][1:6] == "   # "
    check_size(picture, 70, 30)


def test_shades_of_large_grids() -> None:
    """The share of a letter's cells, up to thirds."""
    held = grid_of((301, 423), share=0.5)
    held[:, 200:] = False
    held[:, 300:] = True
    picture = text_picture(np.argwhere(held), held.shape, columns=80, unicode=False)
    check_size(picture, 80, 30)
    k = picture.cells
    for i, line in enumerate(picture.lines[1:-1]):
        for j, letter in enumerate(line[1:-1]):
            share = held[2 * k * i : 2 * k * (i + 1), k * j : k * (j + 1)].mean()
            assert letter == " .+#"[int(np.ceil(3 * share))], (i, j, share)


def test_a_grid_larger_than_memory_is_drawn() -> None:
    """Only its patches are held."""
    picture = text_picture(np.array([[0, 0], [2**20, 2**20]]), (2**20 + 1, 2**20 + 1), columns=80)
    check_size(picture, 80, 30)
    assert picture.cells > 1000
