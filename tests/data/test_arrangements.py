"""Patches elsewhere: on a grid small enough to write down, and as properties of any."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi2d.data.arrangements import ARRANGEMENTS, Arrangement, arrange
from wsi2d.data.bags import GridBag


def bag_of(picture: list[str], slide_id: str = "s") -> GridBag:
    """A letter a patch, whose code is its feature; a dot is empty. Patches come in alphabetical order."""
    cells = {cell: (r, c) for r, row in enumerate(picture) for c, cell in enumerate(row) if cell != "."}
    letters = sorted(cells)
    features = torch.tensor([[float(ord(cell))] for cell in letters])
    return GridBag(slide_id, features, torch.tensor([cells[cell] for cell in letters]), (len(picture), len(picture[0])))


def picture_of(bag: GridBag) -> list[str]:
    rows = [["."] * bag.shape[1] for _ in range(bag.shape[0])]
    for (r, c), feature in zip(bag.index.tolist(), bag.features[:, 0].tolist(), strict=True):
        assert rows[r][c] == ".", "two patches in a cell"
        rows[r][c] = chr(int(feature))
    return ["".join(row) for row in rows]


SLIDE = ["ca..", "....", "b..d"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["flip"], ["..ac", "....", "d..b"]),
        (["rotate"], ["b.c", "..a", "...", "d.."]),
        (["drop-empty"], ["ca.", "b.d"]),
        (["flatten"], ["ca......b..d"]),
        (["flatten", "drop-empty"], ["cabd"]),
        (["rotate", "flip"], ["d..", "...", "..a", "b.c"]),
        ([], SLIDE),
    ],
)
def test_by_hand(names: list[Arrangement], expected: list[str]) -> None:
    assert picture_of(arrange(bag_of(SLIDE), names)) == expected


def test_shuffled_positions() -> None:
    bag = bag_of(["abcdef", "ghij.k"])
    shuffled = arrange(bag, ["shuffle-positions"])
    assert picture_of(shuffled) != picture_of(bag)
    assert [[c == "." for c in row] for row in picture_of(shuffled)] == [[c == "." for c in r] for r in picture_of(bag)]
    assert picture_of(arrange(bag, ["shuffle-positions"])) == picture_of(shuffled), "the same seed and slide"
    assert picture_of(arrange(bag, ["shuffle-positions"], seed=1)) != picture_of(shuffled)
    other = bag_of(["abcdef", "ghij.k"], slide_id="another")
    assert picture_of(arrange(other, ["shuffle-positions"])) != picture_of(shuffled)


def test_a_shuffle_is_the_same_in_every_epoch() -> None:
    """Which patch lies where is fixed, so that a model sees in training what it is tested on; turns are drawn anew."""
    bag = bag_of(["abcdef", "ghij.k"])
    shuffled = arrange(bag, ["shuffle-positions"])
    for draw in range(8):
        assert picture_of(arrange(bag, ["shuffle-positions"], draw=draw)) == picture_of(shuffled)
        both = arrange(bag, ["flip", "rotate", "shuffle-positions"], draw=draw)
        assert picture_of(both) == picture_of(arrange(shuffled, ["flip", "rotate"], draw=draw))


def test_every_turn_is_drawn() -> None:
    bag = bag_of(SLIDE)
    turns = {tuple(picture_of(arrange(bag, ["flip", "rotate"], draw=k))) for k in range(80)}
    assert len(turns) == 8, "the symmetries of a square"
    quarters = {tuple(picture_of(arrange(bag, ["rotate"], draw=k))) for k in range(40)}
    assert len(quarters) == 4
    assert len({tuple(picture_of(arrange(bag, ["flip"], draw=k))) for k in range(40)}) == 4
    assert quarters < turns


@st.composite
def bags(draw: st.DrawFn) -> GridBag:
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    cells = list(itertools.product(range(rows), range(cols)))
    chosen = draw(st.lists(st.sampled_from(cells), min_size=1, unique=True))
    return GridBag("s", torch.arange(float(len(chosen)))[:, None], torch.tensor(chosen), (rows, cols))


@given(bag=bags(), names=st.lists(st.sampled_from(ARRANGEMENTS), unique=True), draw=st.none() | st.integers(0, 9))
def test_of_any_bag(bag: GridBag, names: list[Arrangement], draw: int | None) -> None:
    arranged = arrange(bag, names, draw=draw)  # refuses places outside of its grid
    assert torch.equal(arranged.features, bag.features)
    assert len({tuple(cell) for cell in arranged.index.tolist()}) == len(bag), "one patch a cell"
    if "flatten" in names:
        assert arranged.shape[0] == 1
    if {"flatten", "drop-empty"} <= set(names):
        assert arranged.shape[1] == len(bag)
    if not {"drop-empty", "flatten"} & set(names):
        assert sorted(arranged.shape) == sorted(bag.shape)


@given(bag=bags())
def test_turns_come_back(bag: GridBag) -> None:
    turned = bag
    for _ in range(4):
        turned = arrange(turned, ["rotate"])
    assert torch.equal(turned.index, bag.index)
    assert torch.equal(arrange(arrange(bag, ["flip"]), ["flip"]).index, bag.index)
