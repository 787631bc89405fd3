"""Tissue is found where a pathologist would see it, on slides that mislead: ink, fat, folds, dark edges, odd glass."""

from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

# What a good detector reaches at least, by kind of slide: intersection over union outside what nobody can decide.
# Mask pixels are 8 µm wide, so an outline off by one of them costs some 0.01 of a large piece.
BOUNDS = {
    "plain": 0.95,
    "pale": 0.90,
    "pen-blue": 0.90,
    "pen-green": 0.90,
    "pen-black": 0.90,
    "pen-red": 0.85,
    "pen-filled": 0.90,
    "fat": 0.80,
    "folds": 0.93,
    "dark-edges": 0.93,
    "black-unscanned": 0.95,
    "white-unscanned": 0.95,
    "black-everywhere": 0.93,
    "transparent": 0.95,
    "full": 0.97,
    "full-even": 0.97,
    "sections": 0.85,
    "ihc": 0.85,
    "bloody": 0.90,
    "blue-stained": 0.90,
    "trichrome": 0.90,
    "pigmented": 0.90,
    "yellow-glass": 0.90,
    "dim-glass": 0.90,
    "dust": 0.93,
}
BLANK = ("blank", "blank-yellow", "blank-dim", "blank-dust", "blank-pen")
MOST_FOUND_ON_BLANK = 0.002  # of the slide
# One slide of each kind for every run, another or three of it (one a pen) for the long one.
OTHERS = {"pen-filled": (1, 2, 3), "blank-pen": (1, 2, 3)}


def slides(kinds: Collection[str]) -> list[Any]:
    """Kinds and seeds to test."""
    quick = [pytest.param(kind, 0) for kind in kinds]
    return quick + [
        pytest.param(kind, seed, marks=pytest.mark.slow) for kind in kinds for seed in OTHERS.get(kind, (1,))
    ]


@pytest.fixture(scope="module")
def difficult(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`difficult.py`: paints the slides and scores what is found on them."""
    return load_module("slides/difficult.py")


@pytest.mark.parametrize(("kind", "seed"), slides(BOUNDS))
def test_tissue_is_found(difficult: ModuleType, tmp_path: Path, kind: str, seed: int) -> None:
    score = difficult.find_tissue(difficult.KINDS[kind](seed), tmp_path / "slide.png")
    assert score.iou >= BOUNDS[kind], (
        f"IoU {score.iou:.3f}; of the slide {score.false_positive:.2%} wrongly taken, {score.false_negative:.2%} missed"
    )


@pytest.mark.parametrize(("kind", "seed"), slides(BLANK))
def test_nothing_is_found_where_nothing_is(difficult: ModuleType, tmp_path: Path, kind: str, seed: int) -> None:
    score = difficult.find_tissue(difficult.KINDS[kind](seed), tmp_path / "slide.png")
    share = float(score.found.mean())
    assert share <= MOST_FOUND_ON_BLANK


def test_every_kind_has_its_bound(difficult: ModuleType) -> None:
    assert set(difficult.KINDS) == {*BOUNDS, *BLANK}


@pytest.mark.parametrize("kind", ["fat", "blank-pen"])
def test_the_painter_repeats_itself_and_says_what_is_true(difficult: ModuleType, kind: str) -> None:
    slide, again = difficult.KINDS[kind](0), difficult.KINDS[kind](0)
    assert slide.rgb.dtype == np.uint8
    assert slide.rgb.shape == (*slide.tissue.shape, 3)
    assert slide.tissue.dtype == slide.ignore.dtype == np.bool_
    assert slide.tissue.any() == (kind not in BLANK)
    assert slide.ignore.mean() <= 0.1, "what nobody can decide is little"
    assert np.array_equal(slide.rgb, again.rgb)
