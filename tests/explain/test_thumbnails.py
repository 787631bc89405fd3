"""Pictures beside features, from Python: an extraction's progress that draws."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wsi2d
from wsi2d.config import ExtractConfig, PatchConfig
from wsi2d.errors import FeatureStoreError, SlideError
from wsi2d.explain.thumbnails import thumbnail_path, write_thumbnail
from wsi2d.features.outcomes import ExtractProgress, SlideOutcome

CONFIG = ExtractConfig(patch=PatchConfig(patch_px=64, mpp=0.5), workers=1, device="cpu")


class Heard(ExtractProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def slide_started(self, slide_id: str, patches: int) -> None:
        self.said.append((slide_id, patches > 0))

    def patches_done(self, count: int) -> None:
        self.said.append(count > 0)

    def slide_finished(self, outcome: SlideOutcome) -> None:
        self.said.append(outcome.outcome)


def test_it_is_the_progress_of_an_extraction(brown_slide: Any, tmp_path: Path) -> None:
    slide = brown_slide(tmp_path / "a.tiff", (200, 150))
    heard = Heard()
    pictures = wsi2d.Thumbnails(tmp_path / "f", heard)
    wsi2d.extract(wsi2d.find_slides([slide.path]), tmp_path / "f", CONFIG, progress=pictures)
    assert heard.said[0] == ("a", True)
    assert heard.said[-1] == "done"
    assert True in heard.said[1:-1]
    assert (pictures.drawn, pictures.failures) == (1, [])
    assert Image.open(thumbnail_path(tmp_path / "f", "a")).format == "JPEG"
    wsi2d.extract(wsi2d.find_slides([slide.path]), tmp_path / "f", CONFIG, progress=wsi2d.Thumbnails(tmp_path / "f"))
    assert pictures.drawn == 1


def test_patches_are_those_of_the_file(brown_slide: Any, handmade: ModuleType, tmp_path: Path) -> None:
    """Whatever tissue there is: two cells by hand, drawn in the slide's colours, and all else is veiled."""
    slide = brown_slide(tmp_path / "a.tiff", (200, 150), size=(640, 448))
    features = handmade.write_features(tmp_path / "a.h5", [[1, 3], [2, 5]], shape=(7, 10))
    write_thumbnail(slide.path, features, tmp_path / "a.png")
    rgb = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    pink = np.abs(rgb - (226, 150, 190)).max(-1) <= 10
    rows, cols = np.nonzero(pink)
    side = 64 * rgb.shape[1] / 640
    assert 0.5 * 2 * side**2 < pink.sum() < 1.05 * 2 * side**2
    assert 1.9 * side < np.ptp(rows) < 2.1 * side
    assert 2.9 * side < np.ptp(cols) < 3.1 * side


def test_tissue_is_found_as_the_file_says(brown_slide: Any, handmade: ModuleType, tmp_path: Path) -> None:
    """With a piece larger than the slide asked for there is no outline."""
    slide = brown_slide(tmp_path / "a.tiff", (200, 150))
    outlined = {}
    for least in (0, 1e9):
        tissue = f'{{"min_piece_um2": {least}, "min_tissue": 0.25, "threshold": 0.1}}'
        features = handmade.write_features(tmp_path / f"{least}.h5", (), shape=(5, 7), tissue=tissue)
        write_thumbnail(slide.path, features, tmp_path / "a.png")
        rgb = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
        outlined[least] = int(((rgb[..., 1] - rgb[..., 0] > 60) & (rgb[..., 1] - rgb[..., 2] > 60)).sum())
    assert outlined[0] > 300
    assert outlined[1e9] == 0


def test_what_cannot_be_drawn(brown_slide: Any, handmade: ModuleType, tmp_path: Path) -> None:
    slide = brown_slide(tmp_path / "a.tiff", (200, 150))
    features = handmade.write_features(tmp_path / "a.h5", [[0, 0]], shape=(5, 7), size=(447, 320))
    with pytest.raises(
        FeatureStoreError, match=r"was made of 447×320 px, .*a\.tiff has 448×320; extract the slide again"
    ):
        write_thumbnail(slide.path, features, tmp_path / "a.png")
    with pytest.raises(SlideError, match="does not exist"):
        write_thumbnail(tmp_path / "b.tiff", features, tmp_path / "a.png")
    with pytest.raises(FeatureStoreError, match="no such feature file"):
        write_thumbnail(slide.path, tmp_path / "b.h5", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
