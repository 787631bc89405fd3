"""`wsi2d extract --thumbnails`: a picture a slide of what was cut, whenever it was cut."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

OPTIONS = "extract --patch-px 64 --mpp 0.5 --min-tissue 0.4 --workers 1 --device cpu"
GLASS, VEILED_GLASS = 244, 0.6 * 244 + 0.4 * 158


def pictures(out: Path) -> dict[str, int]:
    """When each picture was written, by its file's name."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "thumbnails").iterdir()}


def write_times(out: Path) -> dict[str, int]:
    """When each feature file was written."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}


def share_of(picture: Path, grey: float) -> float:
    """Share of a picture that has a grey, whatever JPEG makes of it."""
    rgb = np.asarray(Image.open(picture).convert("RGB")).astype(float)
    return float((np.abs(rgb - grey).max(-1) <= 4).mean())


def test_a_picture_shows_the_patches_that_were_cut(cli: Any, write_slide: Any, tmp_path: Path) -> None:
    """Glass is as it is where a patch was cut and veiled elsewhere, in the shares that the feature file gives."""
    rgb, out = np.full((700, 900, 3), GLASS, np.uint8), tmp_path / "f"
    rgb[110:400, 120:500] = np.array([225, 150, 190]) + np.random.default_rng(0).integers(-8, 9, (290, 380, 3))
    write_slide(tmp_path / "a.tiff", rgb, levels=2, compression="deflate")
    result = cli(OPTIONS, tmp_path / "a.tiff", "--out", out, "--thumbnails")
    assert (result.code, result.err) == (0, "")
    assert f"thumbnails: 1 drawn → {out / 'thumbnails'}" in result.out
    assert {p.name for p in out.iterdir()} == {"a.h5", "thumbnails"}
    glass = (rgb == GLASS).all(-1)
    cut = np.zeros_like(glass)
    with h5py.File(out / "a.h5") as file:
        for x, y in file["coords"][:]:
            cut[y : y + 64, x : x + 64] = True
    pixels = np.prod(Image.open(out / "thumbnails" / "a.jpg").size)
    expected = (glass & ~cut).sum() / pixels
    assert 0.3 < expected < 0.8
    assert share_of(out / "thumbnails" / "a.jpg", VEILED_GLASS) == pytest.approx(expected, rel=0.05)
    as_it_is = (glass & cut).sum() / pixels
    assert as_it_is > 0.02
    assert share_of(out / "thumbnails" / "a.jpg", GLASS) == pytest.approx(as_it_is, rel=0.4), "lines take some of it"


def test_slides_that_were_finished_before_get_theirs(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides, out = write_slides(tmp_path / "slides", "a", "b", "c"), tmp_path / "f"
    assert cli(OPTIONS, slides, "--out", out).code == 0
    assert not (out / "thumbnails").exists()
    before = write_times(out)
    result = cli(OPTIONS, slides, "--out", out, "--thumbnails")
    assert result.code == 0, result.err
    assert "0 done, 3 already finished" in result.out
    assert "thumbnails: 3 drawn" in result.out
    drawn = pictures(out)
    assert set(drawn) == {"a.jpg", "b.jpg", "c.jpg"}
    (out / "thumbnails" / "b.jpg").unlink()
    assert "thumbnails: 1 drawn" in cli(OPTIONS, slides, "--out", out, "--thumbnails").out
    assert {name: time for name, time in pictures(out).items() if name != "b.jpg"} == {
        name: time for name, time in drawn.items() if name != "b.jpg"
    }
    assert write_times(out) == before


def test_a_picture_older_than_its_features_is_drawn_again(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides, out = write_slides(tmp_path / "slides", "a"), tmp_path / "f"
    assert cli(OPTIONS, slides, "--out", out, "--thumbnails").code == 0
    first = (out / "thumbnails" / "a.jpg").read_bytes()
    changed = [*OPTIONS.split(), slides, "--out", out, "--patch-px", "96", "--overwrite"]
    assert cli(*changed).code == 0, "without a picture: the old one shows what was"
    assert (out / "thumbnails" / "a.jpg").read_bytes() == first
    assert "thumbnails: 1 drawn" in cli(*changed[:-1], "--thumbnails").out
    assert (out / "thumbnails" / "a.jpg").read_bytes() != first


def test_a_slide_without_tissue(cli: Any, write_slide: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "blank.tiff", np.full((600, 700, 3), GLASS, np.uint8))
    result = cli(OPTIONS, tmp_path / "blank.tiff", "--out", tmp_path / "f", "--thumbnails")
    assert result.code == 0
    assert "1 without tissue" in result.out
    assert share_of(tmp_path / "f" / "thumbnails" / "blank.jpg", VEILED_GLASS) > 0.7, "none of it was cut"


@pytest.mark.parametrize("size", [(9000, 60), (60, 9000)])
def test_long_slides_are_drawn_small(cli: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    rgb = np.full((size[1], size[0], 3), GLASS, np.uint8)
    rgb[size[1] // 4 : size[1] // 2, size[0] // 4 : size[0] // 2] = (226, 150, 190)
    Image.fromarray(rgb).save(tmp_path / "long.png", compress_level=1)
    result = cli(
        OPTIONS, tmp_path / "long.png", "--out", tmp_path / "f", "--thumbnails",
        "--slide-mpp", 0.5, "--min-tissue", 0.1, "--set", "tissue.min_piece_um2=0",
    )  # fmt: skip
    assert result.code == 0, result.err
    width, height = Image.open(tmp_path / "f" / "thumbnails" / "long.jpg").size
    assert 600 < max(width, height) <= 1500
    assert width * height < 1.2e6


def test_any_name(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    names = {"two words", "größe 日本", "$x^$ %s {0}", "a.b", "-a"}
    slides = write_slides(tmp_path / "slides", *names)
    result = cli(OPTIONS, slides, "--out", tmp_path / "f", "--thumbnails")
    assert (result.code, result.err) == (0, "")
    assert set(pictures(tmp_path / "f")) == {f"{name}.jpg" for name in names}


def test_features_among_the_slides(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    """A second run finds the pictures of the first in its way, and takes none for a slide."""
    slides = write_slides(tmp_path / "slides", "a")
    for said in ("1 done", "0 done, 1 already finished"):
        result = cli(OPTIONS, slides, "--out", slides / "features", "--thumbnails")
        assert (result.code, result.err) == (0, "")
        assert said in result.out


def test_slides_that_cannot_be_drawn_are_named(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    """Finished once; then one file is damaged and another is of another slide. The third is drawn all the same."""
    slides, out = write_slides(tmp_path / "slides", "a", "b", "c"), tmp_path / "f"
    assert cli(OPTIONS, slides, "--out", out).code == 0
    before = write_times(out)
    (slides / "a.tiff").write_bytes(b"no slide")
    Image.open(slides / "c.tiff").crop((0, 0, 300, 300)).save(slides / "b.png")
    (slides / "b.tiff").unlink()
    result = cli(OPTIONS, slides, "--out", out, "--thumbnails")
    assert result.code == 1
    assert set(pictures(out)) == {"c.jpg"}
    damaged, other = result.err.splitlines()
    assert damaged.startswith("failed: thumbnail: slide 'a': neither a slide that OpenSlide knows nor an image")
    assert other.startswith(
        f"failed: thumbnail: {out / 'b.h5'}: was made of 330×320 px, {slides / 'b.png'} has 300×300"
    )
    assert "thumbnails: 1 drawn" in result.out
    assert write_times(out) == before


def test_a_place_that_is_taken(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides, out = write_slides(tmp_path / "slides", "a", "b"), tmp_path / "f"
    out.mkdir()
    (out / "thumbnails").write_text("in the way")
    result = cli(OPTIONS, slides, "--out", out, "--thumbnails")
    assert result.code == 1
    assert [line.partition(": ")[2][:11] for line in result.err.splitlines()] == ["thumbnail: ", "thumbnail: "]
    assert set(write_times(out)) == {"a.h5", "b.h5"}, "the features are done"
    assert (out / "thumbnails").read_text() == "in the way"


def test_no_picture_stays_of_features_that_are_gone(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides, out = write_slides(tmp_path / "slides", "a", "b"), tmp_path / "f"
    assert cli(OPTIONS, slides, "--out", out, "--thumbnails").code == 0
    (slides / "a.tiff").write_bytes(b"no slide")
    os.unlink(out / "a.h5")
    assert cli(OPTIONS, slides, "--out", out, "--thumbnails").code == 1
    assert list(pictures(out)) == ["b.jpg"]


@pytest.mark.slow
def test_real_slides(cli: Any, shared_dir: Path, tmp_path: Path) -> None:
    names = ("cmu-1-small-region", "tcga-cr-7395-01a-01-ts1")
    slides = [shared_dir / "slides" / f"{name}.svs" for name in names]
    result = cli("extract --slide-mpp 0.5 --patch-px 512 --mpp 1", *slides, "--out", tmp_path, "--thumbnails")
    assert result.code == 0, result.err
    for name in names:
        rgb = np.asarray(Image.open(tmp_path / "thumbnails" / f"{name}.jpg").convert("RGB")).astype(int)
        outline = (rgb[..., 1] - rgb[..., 0] > 60) & (rgb[..., 1] - rgb[..., 2] > 60)
        frames = (rgb[..., 2] - rgb[..., 0] > 60) & (rgb[..., 2] - rgb[..., 1] > 60)
        assert outline.sum() > 1000, name
        assert frames.sum() > 1000, name
        assert max(rgb.shape[:2]) <= 1500
