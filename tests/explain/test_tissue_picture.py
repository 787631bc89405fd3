"""What extraction will cut, as a picture: the outline where tissue ends, patches as they are, a veil over the rest."""

import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wsi2d
from wsi2d.config import ExtractConfig, PatchConfig, TissueConfig
from wsi2d.errors import ConfigError, SlideError, StorageError
from wsi2d.explain.canvas import check_suffix, save_figure, scale_bar
from wsi2d.explain.tissue_picture import TissuePicture, draw, tissue_picture
from wsi2d.features.store import read_features
from wsi2d.slides.patching import make_patch_grid
from wsi2d.slides.reader import Slide, open_slide
from wsi2d.slides.tissue import TissueMask, segment_tissue

GLASS, PINK = (244, 244, 244), (226, 150, 190)
WIDTH, HEIGHT, MPP = 900, 700, 2.0
X, Y, RX, RY = 470, 330, 340, 250  # of the ellipse; its area is 1.068 mm²
SMALL = ExtractConfig(patch=PatchConfig(patch_px=64, mpp=2.0), workers=1, device="cpu")


@pytest.fixture(scope="module")
def slide(paint_tissue: Any, write_slide: Any, ellipse: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ellipse of tissue on glass."""
    painting = paint_tissue(WIDTH, HEIGHT, [ellipse(X, Y, RX, RY)])
    path = tmp_path_factory.mktemp("slides") / "round.tiff"
    return Path(write_slide(path, painting.rgb, mpp=MPP, compression="deflate"))


@pytest.fixture(scope="module")
def drawn(slide: Path) -> tuple[TissuePicture, Path]:
    """Its picture, as the library makes it and as a PNG."""
    out = slide.with_name("round.png")
    return tissue_picture(slide, out, SMALL), out


def found(path: Path, config: ExtractConfig = SMALL, downsample: float = 1.0, **options: Any) -> TissuePicture:
    """What is found on a slide, read in this process."""
    with open_slide(path, **options) as reader:
        tissue = segment_tissue(reader, config.tissue)
        grid = make_patch_grid(reader.slide, tissue, config.patch)
        return TissuePicture(reader.slide, tissue, grid, reader.read_overview(downsample), downsample)


def imagined(
    width: int, height: int, mask: np.ndarray, *, mpp: float, patch_px: int, patch_mpp: float = 0.5
) -> TissuePicture:
    """A picture of white with a tissue mask, of a slide that is in no file."""
    slide = Slide("A", Path("A"), width, height, mpp, "user", (1.0,))
    tissue = TissueMask(mask, max(1.0, 8.0 / mpp), 0.1)
    downsample = max(1.0, max(width, height) / 1400)
    shape = (math.ceil(height / downsample), math.ceil(width / downsample), 3)
    grid = make_patch_grid(slide, tissue, PatchConfig(patch_px=patch_px, mpp=patch_mpp))
    return TissuePicture(slide, tissue, grid, np.full(shape, 255, np.uint8), downsample)


class Shown:
    """A figure's pixels, by the slide's own coordinates."""

    def __init__(self, picture: TissuePicture) -> None:
        self.picture, self.figure = picture, draw(picture)
        self.file = io.BytesIO()
        self.figure.savefig(self.file, dpi=100, format="png")
        self.png = np.asarray(Image.open(self.file).convert("RGB")).astype(int)
        self.axes = self.figure.axes[0]

    def at(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of a place, level-0 px (the figure's pixels count from its lower edge, the picture's from the
        centre of the first)."""
        d = self.picture.downsample
        right, up = self.axes.transData.transform((x / d - 0.5, y / d - 0.5))
        return int(len(self.png) - up), int(right)

    def colour(self, x: float, y: float) -> np.ndarray:
        """Colour at a place."""
        return self.png[self.at(x, y)]

    def around(self, x: float, y: float, px: int) -> np.ndarray:
        """Colours within so many px, [n, 3]."""
        row, col = self.at(x, y)
        return self.png[max(row - px, 0) : row + px + 1, max(col - px, 0) : col + px + 1].reshape(-1, 3)

    def is_outlined(self, x: float, y: float, px: int) -> bool:
        """Whether the outline passes within so many px."""
        return bool(green(self.around(x, y, px)).any())


def green(rgb: np.ndarray) -> np.ndarray:
    """Where a picture has the outline's colour, be it mixed with another."""
    return (rgb[..., 1] - rgb[..., 0] > 30) & (rgb[..., 1] - rgb[..., 2] > 30)


def veiled(rgb: Any) -> np.ndarray:
    """A colour where nothing is cut: two fifths of a middle grey are mixed in."""
    return 0.6 * np.asarray(rgb, float) + 0.4 * 158


# --- what is found is what is extracted


def test_the_grid_is_the_one_that_is_extracted(slide: Path, tmp_path: Path) -> None:
    """With settings that are none of the defaults."""
    config = ExtractConfig(
        patch=PatchConfig(patch_px=64, mpp=3.1, overlap_px=16, min_tissue=0.6),
        tissue=TissueConfig(mpp=16.0, close_um=0.0, ink="keep"),
        workers=1,
        device="cpu",
    )
    picture = tissue_picture(slide, tmp_path / "a.png", config)
    wsi2d.extract(wsi2d.find_slides([slide]), tmp_path / "features", config)
    stored = read_features(tmp_path / "features" / "round.h5").grid
    assert len(picture.grid) > 40
    np.testing.assert_array_equal(picture.grid.index, stored.index)
    np.testing.assert_array_equal(picture.grid.coords, stored.coords)
    for name in ("shape", "patch_px", "mpp", "patch_level0", "stride_level0"):
        assert getattr(picture.grid, name) == getattr(stored, name)


def test_area_is_that_of_the_ellipse(drawn: tuple[TissuePicture, Path]) -> None:
    area = math.pi * (RX * MPP / 1000) * (RY * MPP / 1000)
    assert drawn[0].tissue_mm2 == pytest.approx(area, rel=0.04)


def test_area_does_not_depend_on_the_resolution(slide: Path) -> None:
    area = math.pi * (RX * MPP / 1000) * (RY * MPP / 1000)
    for mpp, close_enough in ((5.3, 0.04), (24.0, 0.1)):
        assert found(slide, ExtractConfig(tissue=TissueConfig(mpp=mpp))).tissue_mm2 == pytest.approx(
            area, rel=close_enough
        )


def test_it_says_how_much_of_what(drawn: tuple[TissuePicture, Path]) -> None:
    picture, _ = drawn
    line = picture.describe()
    assert "\n" not in line
    assert line.startswith(f"round: {picture.tissue_mm2:.3g} mm² of tissue")
    assert f", {len(picture.grid)} patches of 64 px at 2 µm/px on a grid of 11 × 15" in line
    assert draw(picture).get_suptitle() == line


def test_a_large_area_is_a_plain_number() -> None:
    """A whole glass slide, 24 × 60 mm."""
    picture = imagined(1500, 600, np.ones((600, 1500), bool), mpp=40.0, patch_px=512, patch_mpp=40.0)
    assert " 1440 mm² of tissue" in picture.describe()


# --- the picture


def test_the_file_is_the_figure(drawn: tuple[TissuePicture, Path]) -> None:
    picture, out = drawn
    assert Shown(picture).file.getvalue() == out.read_bytes()
    assert sorted(os.listdir(out.parent)) == ["round.png", "round.tiff"]


def test_the_outline_lies_where_tissue_ends(drawn: tuple[TissuePicture, Path]) -> None:
    """All around the ellipse: green within a mask px (and what smoothing adds) of its edge, none farther away."""
    picture, _ = drawn
    shown = Shown(picture)
    near = math.ceil(1.5 * picture.tissue.downsample)
    for angle in np.linspace(0, 2 * np.pi, 48, endpoint=False):
        x, y = X + RX * np.cos(angle), Y + RY * np.sin(angle)
        assert shown.is_outlined(x, y, near), (x, y)
    rows, cols = np.nonzero(green(shown.png))
    right, up = cols + 0.5, len(shown.png) - rows - 0.5
    x, y = (shown.axes.transData.inverted().transform(np.stack([right, up], 1)) + 0.5).T
    away = np.hypot((x - X) / RX, (y - Y) / RY)
    assert len(rows) > 1500
    assert away.min() > 1 - 2 * near / RY
    assert away.max() < 1 + 2 * near / RY


def test_patches_are_as_they_are_and_a_veil_lies_over_the_rest(drawn: tuple[TissuePicture, Path]) -> None:
    """A third of the way into each cell, where no line is: the slide as it is, or mixed with grey."""
    picture, _ = drawn
    shown = Shown(picture)
    chosen = {(int(row), int(col)) for row, col in picture.grid.index}
    seen = {True: 0, False: 0}
    for row, col in np.ndindex(*picture.grid.shape):
        x, y = 64 * col + 21, 64 * row + 21
        near_the_bar = x < 250 and y > 550
        if shown.is_outlined(x, y, 4) or x >= WIDTH or y >= HEIGHT or near_the_bar:
            continue
        below = picture.overview[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(0)
        found_there = shown.around(x, y, 1).mean(0)
        off = {True: np.abs(found_there - below).max(), False: np.abs(found_there - veiled(below)).max()}
        seen[(row, col) in chosen] += 1
        assert off[(row, col) in chosen] < off[(row, col) not in chosen] / 2, (row, col, off)
    assert seen[True] > 20
    assert seen[False] > 10


def test_glass_far_away_is_veiled(drawn: tuple[TissuePicture, Path]) -> None:
    shown = Shown(drawn[0])
    for x, y in ((5, 5), (WIDTH - 5, 5), (WIDTH - 5, HEIGHT - 5), (WIDTH - 60, 40)):
        assert np.abs(shown.colour(x, y) - veiled(GLASS)).max() <= 1


def test_patches_are_framed(drawn: tuple[TissuePicture, Path]) -> None:
    """On the border between two chosen cells there is more blue than in their middle."""
    picture, _ = drawn
    shown = Shown(picture)
    for row in (3, 4):
        border = min((shown.around(64 * 6, 64 * row + y, 1) for y in (20, 32, 44)), key=lambda c: c[:, 0].min())
        middle = shown.around(64 * 6 + 32, 64 * row + 32, 1)
        assert border[:, 0].min() < middle[:, 0].min() - 15


def test_a_large_slide_is_drawn_small_and_in_place(paint_tissue: Any, ellipse: Any, tmp_path: Path) -> None:
    """Between the slide's px and the picture's there is a factor; outline and patches know it."""
    painting = paint_tissue(3000, 500, [ellipse(2000, 250, 800, 180)])
    Image.fromarray(painting.rgb).save(tmp_path / "wide.png", compress_level=1)
    out = tmp_path / "deep" / "out.png"
    picture = tissue_picture(str(tmp_path / "wide.png"), str(out), SMALL, slide_id="B2", slide_mpp=2.0)
    assert (picture.slide.slide_id, picture.slide.mpp, picture.slide.mpp_source) == ("B2", 2.0, "user")
    assert picture.overview.shape == (234, 1400, 3)
    assert max(Image.open(out).size) <= 1500
    shown = Shown(picture)
    for x, y in ((1200, 250), (2800, 250), (2000, 70), (2000, 430)):
        assert shown.is_outlined(x, y, 6), (x, y)
    assert not green(shown.png[:, : shown.at(1150, 0)[1]]).any()
    row, col = picture.grid.index[0]
    assert shown.colour(64 * col + 32, 64 * row + 20)[0] > 215, "as it is"
    assert np.abs(shown.colour(64 * 10, 32) - veiled(GLASS)).max() <= 1


@pytest.mark.parametrize("size", [(960, 640), (1001, 777), (997, 650)])
def test_tissue_at_the_slides_edge_is_outlined_there(tmp_path: Path, size: tuple[int, int]) -> None:
    """Whether or not the last mask px reaches over the edge."""
    width, height = size
    rgb = np.full((height, width, 3), PINK, np.uint8)
    rgb[: height // 2, : width // 2] = GLASS
    Image.fromarray(rgb).save(tmp_path / "full.png", compress_level=1)
    picture = found(tmp_path / "full.png", mpp=0.5)
    assert picture.tissue.mask[-1, -1]
    shown = Shown(picture)
    for edge, x, y in (
        ("right", width, 0.3 * height), ("right", width, 0.8 * height), ("lower", 0.3 * width, height),
        ("lower", 0.8 * width, height), ("left", 0, 0.8 * height), ("upper", 0.8 * width, 0),
        ("inner", 0.5 * width, 0.2 * height), ("inner", 0.2 * width, 0.5 * height),
    ):  # fmt: skip
        assert shown.is_outlined(x, y, 20 if edge == "inner" else 2), edge


def test_holes_are_outlined(paint_tissue: Any, ellipse: Any, tmp_path: Path) -> None:
    painting = paint_tissue(600, 400, [ellipse(300, 200, 280, 180)], holes=[ellipse(300, 200, 90, 90)])
    Image.fromarray(painting.rgb).save(tmp_path / "ring.png", compress_level=1)
    shown = Shown(found(tmp_path / "ring.png", mpp=2.0))
    for x, y in ((210, 200), (390, 200), (300, 110), (300, 290), (20, 200), (580, 200)):
        assert shown.is_outlined(x, y, 8), (x, y)
    assert not shown.is_outlined(300, 200, 40)


@pytest.mark.parametrize("grey", [244, 0])
def test_a_slide_without_tissue(tmp_path: Path, grey: int) -> None:
    Image.fromarray(np.full((300, 400, 3), grey, np.uint8)).save(tmp_path / "blank.png")
    picture = found(tmp_path / "blank.png", mpp=2.0)
    assert picture.tissue_mm2 == 0
    assert picture.describe().startswith("blank: 0 mm² of tissue")
    assert ", 0 patches of 64 px" in picture.describe()
    shown = Shown(picture)
    assert not green(shown.png).any()
    assert np.abs(shown.colour(200, 100) - veiled(grey)).max() <= 1


@pytest.mark.parametrize("size", [(700, 40), (40, 700), (1, 1)])
def test_grids_of_one_row_or_column(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    rgb = np.full((height, width, 3), PINK, np.uint8)
    Image.fromarray(rgb).save(tmp_path / "strip.png")
    config = SMALL.model_copy(update={"tissue": TissueConfig(min_piece_um2=0)})
    picture = found(tmp_path / "strip.png", config, mpp=2.0)
    assert picture.grid.shape == (math.ceil(height / 64), math.ceil(width / 64))
    shown = Shown(picture)
    if min(size) >= 40:  # else a patch has less tissue than it must
        assert len(picture.grid) > 0.9 * math.prod(picture.grid.shape)
        assert (shown.colour(width // 2 + 5, height // 2) == PINK).all()


def test_patches_finer_than_the_picture_have_no_frames_and_are_quick() -> None:
    """Of 75,000 patches of 3 px each; frames would be all there is to see."""
    mask = np.zeros((625, 1875), bool)
    mask[:, 200:] = True
    picture = imagined(60_000, 20_000, mask, mpp=0.25, patch_px=64)
    assert len(picture.grid) > 60_000
    start = time.perf_counter()
    shown = Shown(picture)
    assert time.perf_counter() - start < 30, "some 2 s on a machine that does nothing else"
    inside = shown.png[shown.at(0, 2000)[0] : shown.at(0, 16_000)[0], shown.at(9000, 0)[1] : shown.at(55_000, 0)[1]]
    assert (inside == 255).all(), "as it is, and no line"
    assert np.abs(shown.colour(3000, 8000) - veiled(255)).max() <= 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$HOME", "a$^$b", "x$_{$y", "$b$", "100 %s {0}", "a_b^c", "日本", "a\tb"])
def test_a_slides_name_is_drawn_as_it_is(tmp_path: Path, name: str) -> None:
    """It is no formula, and what the font lacks is no reason for a warning."""
    import matplotlib

    picture = imagined(64, 64, np.ones((1, 1), bool), mpp=0.5, patch_px=64)
    picture = replace(picture, slide=replace(picture.slide, slide_id=name))
    save_figure(draw(picture), tmp_path / "a.png")
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # letters as letters
        save_figure(draw(picture), tmp_path / "a.svg")
    assert f">{name}: " in (tmp_path / "a.svg").read_text("utf-8")


# --- files


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.pdf", "a.svg"])
def test_formats(drawn: tuple[TissuePicture, Path], tmp_path: Path, name: str) -> None:
    save_figure(draw(drawn[0]), tmp_path / "deep" / name)
    head = (tmp_path / "deep" / name).read_bytes()[:200]
    assert {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<svg"}[name[-3:].lower()] in head or b"<?xml" in head
    assert os.listdir(tmp_path / "deep") == [name]


@pytest.mark.parametrize("name", ["a.jpeg", "a", "a.tiff", "png", ".png", "a.png.gz"])
def test_other_formats_are_refused_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tissue_picture(tmp_path / "no such slide.svs", tmp_path / "deep" / name)
    assert str(caught.value) == f"out {tmp_path / 'deep' / name}: must end in .png, .pdf or .svg"
    with pytest.raises(ConfigError):
        check_suffix(Path(name))
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
def test_a_picture_that_fails_leaves_nothing(
    drawn: tuple[TissuePicture, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    figure, out = draw(drawn[0]), tmp_path / "a.png"
    out.write_bytes(b"an older picture")

    def fails(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(b"half")
        raise error

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)) as caught:
        save_figure(figure, out)
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"{out}: cannot be written (No space left on device); ")
    assert out.read_bytes() == b"an older picture"
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("name", ["taken/a.png", "folder.png"])
def test_a_picture_that_cannot_be_written(drawn: tuple[TissuePicture, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(StorageError) as caught:
        save_figure(draw(drawn[0]), tmp_path / name)
    assert str((tmp_path / name).parent if "taken" in name else tmp_path / name) in str(caught.value)
    assert not list(tmp_path.rglob("*.partial"))


def damage_nothing(path: Path) -> None:
    """What is missing needs no damage."""


def cut(path: Path) -> None:
    """Half of a file is gone."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blot(path: Path) -> None:
    """The pixels are others; the header is well."""
    content = path.read_bytes()
    path.write_bytes(content[:3000] + b"\xff" * (len(content) // 2) + content[3000 + len(content) // 2 :])


@pytest.mark.parametrize("what", ["missing", "text", "cut", "blotted", "no pixel size"])
def test_a_slide_that_cannot_be_read(write_slide: Any, tmp_path: Path, what: str) -> None:
    path = tmp_path / "bad.tiff"
    harm: Callable[[Path], Any] = {"cut": cut, "blotted": blot}.get(what, damage_nothing)
    if what == "text":
        path.write_text("no slide")
    elif what != "missing":
        rgb = np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8)
        write_slide(path, rgb, mpp=None if what == "no pixel size" else 0.5, levels=1)
    harm(path)
    with pytest.raises(SlideError, match=r"^slide 'bad': ") as caught:
        tissue_picture(path, tmp_path / "deep" / "bad.png", SMALL)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "deep").exists()


# --- the scale bar


class Bar:
    """Axes that note what a scale bar draws on them."""

    transAxes = None

    def plot(self, x: list[float], y: list[float], **options: Any) -> None:
        """The bar, in shares of the picture's width."""
        self.span = x[1] - x[0]

    def text(self, x: float, y: float, text: str, **options: Any) -> None:
        """Its label."""
        self.label = text


def bar_of(width_px: int, mpp: float) -> tuple[float, str]:
    """Length in µm as the label says it, and the label; the bar's own length must be the same."""
    axes = Bar()
    scale_bar(axes, width_px, mpp)
    number, unit = axes.label.split(" ")
    length = float(number) * {"mm": 1000, "µm": 1}[unit]
    assert axes.span * width_px * mpp == pytest.approx(length)
    return length, axes.label


@pytest.mark.parametrize(
    ("width_px", "mpp", "label"),
    [
        (1400, 0.5, "100 µm"),  # a fifth is 140 µm
        (1400, 0.25, "50 µm"),
        (1400, 1.0, "200 µm"),
        (1400, 20.0, "5 mm"),
        (1400, 4.0, "1 mm"),
        (700, 7.0, "500 µm"),
        (1, 0.5, "0.1 µm"),
        (1000, 0.5, "100 µm"),  # a fifth to the px
        (1000, 1.0, "200 µm"),
        (1000, 25.0, "5 mm"),
        (500, 50.0, "5 mm"),
        (100, 50.0, "1 mm"),
        (1400, 80.0, "20 mm"),
    ],
)
def test_scale_bars_are_round(width_px: int, mpp: float, label: str) -> None:
    assert bar_of(width_px, mpp)[1] == label


def test_scale_bars_of_any_slide_are_about_a_fifth() -> None:
    """Never more than a fifth, never less than half of that: the next of 1, 2, 5 is 2.5 times as long at most."""
    generator = np.random.default_rng(0)
    for width_px, mpp in zip(generator.integers(1, 2000, 500), 10 ** generator.uniform(-2, 3, 500), strict=True):
        length, _ = bar_of(int(width_px), float(mpp))
        assert 0.4 / 5 - 1e-6 <= length / (width_px * mpp) <= 1 / 5 + 1e-6
        assert f"{length:e}"[:8] in {"1.000000", "2.000000", "5.000000"}


@pytest.mark.parametrize("power", [1.0, 100.0, 1000.0, 10_000.0])
def test_scale_bars_next_to_a_power_of_ten(power: float) -> None:
    """A logarithm rounds: that of a number just below 1000 is 3."""
    for target in (np.nextafter(power, 0), power, np.nextafter(power, np.inf)):
        length, _ = bar_of(5, float(target))
        assert 0.4 - 1e-6 <= length / power <= 1 + 1e-6


def test_the_bar_in_the_picture_is_as_long_as_it_says(drawn: tuple[TissuePicture, Path]) -> None:
    """900 px of 2 µm: a fifth is 360 µm, so the bar is one of 200 µm, 100 px."""
    shown = Shown(drawn[0])
    (label,) = shown.axes.texts
    assert label.get_text() == "200 µm"
    rows, cols = np.nonzero((shown.png[:, : shown.at(450, 0)[1]] < 30).all(-1))
    bar = rows == np.bincount(rows).argmax()
    found_px = np.ptp(cols[bar]) + 1
    expected = shown.at(100, 0)[1] - shown.at(0, 0)[1]
    assert abs(found_px - expected) <= 6, "its ends stand out by half a line's width"
