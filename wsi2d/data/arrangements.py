"""Bags whose patches lie elsewhere than in the slide: what a model that reads arrangement should notice."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsi2d.config import Arrangement

if TYPE_CHECKING:
    from wsi2d.data.bags import GridBag

# In the order in which they are done.
ARRANGEMENTS: tuple[Arrangement, ...] = ("flip", "rotate", "shuffle-positions", "drop-empty", "flatten")
# What turns the slide as a whole: for training drawn anew every time, so that a model may learn to do without.
TURNS: tuple[Arrangement, ...] = ("flip", "rotate")


def arrange(bag: GridBag, arrangements: Sequence[Arrangement], *, seed: int = 0, draw: int | None = None) -> GridBag:
    """A slide's bag with its patches elsewhere; features and their order stay.

    - ``flip``: left and right change sides.
    - ``rotate``: a quarter turn clockwise.
    - ``shuffle-positions``: the same cells hold tissue, and which patch lies in which is drawn, once for all.
    - ``drop-empty``: rows and columns without tissue are left out; with ``flatten`` all empty cells.
    - ``flatten``: one row, cells in raster order.

    They are done in this order, whatever order they are given in.

    Args:
        bag: with one patch or more, at most one a cell.
        arrangements: which.
        seed: of what is drawn, together with the slide's id; nothing else decides on ``shuffle-positions``.
        draw: where it is given, ``flip`` mirrors along neither, one or both axes and ``rotate`` turns by none to three
            quarters, drawn from it, ``seed`` and the slide's id.
    """
    if not arrangements:
        return bag
    index, (rows, cols) = bag.index, bag.shape
    once, anew = (torch.Generator().manual_seed(_seed_of(seed, number, bag)) for number in (None, draw))
    for name in ARRANGEMENTS:
        if name not in arrangements:
            continue
        if name == "flip":
            down, across = (False, True) if draw is None else _drawn(anew, 2, 2)
            index = torch.stack(
                [rows - 1 - index[:, 0] if down else index[:, 0], cols - 1 - index[:, 1] if across else index[:, 1]], 1
            )
        elif name == "rotate":
            for _ in range(1 if draw is None else _drawn(anew, 4, 1)[0]):
                index, (rows, cols) = torch.stack([index[:, 1], rows - 1 - index[:, 0]], 1), (cols, rows)
        elif name == "shuffle-positions":
            index = index[torch.randperm(len(index), generator=once)]
        elif name == "drop-empty":
            index, (rows, cols) = _without_empty(index, flat="flatten" in arrangements)
        else:
            index = torch.stack([torch.zeros_like(index[:, 0]), index[:, 0] * cols + index[:, 1]], 1)
            rows, cols = 1, rows * cols
    return replace(bag, index=index, shape=(rows, cols))


def _seed_of(seed: int, draw: int | None, bag: GridBag) -> int:
    return zlib.crc32(f"{seed} {draw} {bag.slide_id}".encode())


def _drawn(generator: torch.Generator, below: int, count: int) -> list[int]:
    values: list[int] = torch.randint(below, (count,), generator=generator).tolist()
    return values


def _without_empty(index: Tensor, *, flat: bool) -> tuple[Tensor, tuple[int, int]]:
    """Places and shape without rows and columns that hold no tissue; ``flat``: in one row without any gap."""
    if flat:
        order = (index[:, 0] * (index[:, 1].max() + 1) + index[:, 1]).argsort()
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order))
        return torch.stack([torch.zeros_like(places), places], 1), (1, len(places))
    (rows, new_rows), (cols, new_cols) = (index[:, axis].unique(return_inverse=True) for axis in (0, 1))
    return torch.stack([new_rows, new_cols], 1), (len(rows), len(cols))
