"""A grid of any size in letters, on a terminal of any size."""

import numpy as np
import pytest

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as some

from wsi2d.explain.text_picture import text_picture


@given(
    rows=some.integers(1, 700), cols=some.integers(1, 700), columns=some.integers(1, 200), lines=some.integers(1, 40),
    unicode=some.booleans(),
)  # fmt: skip
def test_any_size_fits(rows: int, cols: int, columns: int, lines: int, unicode: bool) -> None:
    corners = np.unique([[0, 0], [rows - 1, cols - 1]], axis=0)
    picture = text_picture(corners, (rows, cols), columns=columns, lines=lines, unicode=unicode)
    assert {len(line) for line in picture.lines} <= set(range(3, max(columns, 3) + 1))
    assert len({len(line) for line in picture.lines}) == 1
    assert 3 <= len(picture.lines) <= max(lines, 3)
    body = [line[1:-1] for line in picture.lines[1:-1]]
    assert body[0][0] not in {" ", "⠀"}, "the first corner is seen"
    assert not set(body[-1]) <= {" ", "⠀"}, "and so is the last"
    if not unicode:
        assert "".join(picture.lines).isascii()
