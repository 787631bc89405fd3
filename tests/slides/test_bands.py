"""Pictures in bands: the same tissue whatever their height, and little memory."""

import tracemalloc
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from wsi2d.config import TissueConfig
from wsi2d.slides import bands as module
from wsi2d.slides.bands import bands
from wsi2d.slides.reader import SlideReader
from wsi2d.slides.tissue import TissueMask, segment_tissue

GLASS = (244, 244, 244)


def picture(height: int, width: int) -> np.ndarray:
    """Noise of many scales on slightly yellow glass, with strokes of a blue marker and an edge that was not scanned."""
    rng = np.random.default_rng(3)
    noise = np.zeros((height, width))
    for n in (1, 4, 16, 64):
        coarse = rng.normal(0, 1, (height // n + 1, width // n + 1))
        noise += np.kron(coarse, np.ones((n, n)))[:height, :width] * n**0.5
    rgb = np.where((noise > 3)[..., None], (200, 120, 170), (242, 238, 225)) + rng.normal(0, 1.5, (height, width, 3))
    rgb[height // 3 : height // 3 + 12, : width // 2] = (50, 70, 170)
    rgb[: height // 2, -40:-28] = (50, 70, 170)
    rgb[-5:] = 3
    return rgb.round().clip(0, 255).astype(np.uint8)


def segment(rgb: np.ndarray, **config: Any) -> TissueMask:
    reader = SimpleNamespace(slide=SimpleNamespace(mpp=8.0), read_overview=lambda downsample: rgb)
    return segment_tissue(cast(SlideReader, reader), TissueConfig(**config))


@pytest.mark.parametrize("around", [0, 1, 7, 100])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (50, 3), (50, 30), (7, 1000)])
def test_they_are_all_rows_once(monkeypatch: pytest.MonkeyPatch, height: int, width: int, around: int) -> None:
    monkeypatch.setattr(module, "PIXELS", 300)
    found = list(bands((height, width), around))
    rows = np.arange(height)
    assert np.concatenate([rows[band.own] for band in found]).tolist() == rows.tolist()
    assert all(one.own.stop == two.own.start for one, two in pairwise(found))
    for band in found:
        assert rows[band.wide][band.inner].tolist() == rows[band.own].tolist()
        assert rows[band.wide][0] == max(0, band.own.start - around)
        assert rows[band.wide][-1] == min(height, band.own.stop + around) - 1
        assert (band.own.stop - band.own.start) * width <= max(300, width)


def test_the_tissue_is_the_same_in_bands_of_any_height(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = picture(420, 300)
    whole = segment(rgb)
    assert 0.1 < whole.mask.mean() < 0.9
    assert (segment(rgb, ink="keep").mask & ~whole.mask).any(), "there is ink to be dropped"
    for rows in (3, 50):
        monkeypatch.setattr(module, "PIXELS", rows * rgb.shape[1])
        other = segment(rgb)
        assert other.threshold == whole.threshold
        assert (other.mask != whole.mask).sum() == 0, f"bands of {rows} rows"


def test_a_closing_that_reaches_all_edges_has_all_corners() -> None:
    """Tissue almost up to the edges: what a closing finds between them is whole."""
    rgb = np.full((20, 21, 3), GLASS, np.uint8)
    rgb[1:19, 1:20] = (225, 150, 190)
    assert segment(rgb).mask.all()


def test_tissue_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 20 bytes a pixel of the overview; the whole picture in single precision, again and again, took 90."""
    rgb = picture(1600, 1200)
    rgb[rgb[..., 0] < 100] = 242  # no ink: what it takes to judge that is needed on few slides
    segment(rgb[:300])  # modules are imported
    monkeypatch.setattr(module, "PIXELS", 2**14)
    tracemalloc.start()
    try:
        mask = segment(rgb)
        coords = np.argwhere(mask.mask)[:5000, ::-1]
        assert mask.coverage(coords, 20.0).max() > 0.9
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 26 * rgb[..., 0].size
