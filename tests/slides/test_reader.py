"""Reading patches and overviews: the right level, the right place, the right field of view."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi2d.errors import SlideError
from wsi2d.slides import reader as reader_module
from wsi2d.slides.pixel_size import HeaderPixelSize
from wsi2d.slides.reader import PixelSource, Slide, SlideReader, open_slide
from wsi2d.slides.tissue import segment_tissue


class FakeSource(PixelSource):
    """A slide in memory with exact levels, which notes every read."""

    header = HeaderPixelSize()

    def __init__(self, rgb: np.ndarray, downsamples: tuple[float, ...] = (1.0,)) -> None:
        self.height, self.width = rgb.shape[:2]
        self.level_downsamples = downsamples
        self._levels = [np.asarray(Image.fromarray(rgb).reduce(int(d))) for d in downsamples]
        self.reads: list[tuple[int, int, int, int, int]] = []
        self.closed = False

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Image.Image:
        self.reads.append((x, y, level, width, height))
        d = int(self.level_downsamples[level])
        if x % d or y % d:
            raise ValueError(f"({x}, {y}) is not on level {level}")
        picture = np.full((height, width, 3), 255, np.uint8)
        part = self._levels[level][y // d : y // d + height, x // d : x // d + width]
        picture[: part.shape[0], : part.shape[1]] = part
        return Image.fromarray(picture)

    def close(self) -> None:
        self.closed = True


def in_memory(rgb: np.ndarray, downsamples: tuple[float, ...] = (1.0,), mpp: float = 0.5) -> SlideReader:
    source = FakeSource(rgb, downsamples)
    return SlideReader(Slide("A1", Path("A1"), source.width, source.height, mpp, "user", downsamples), source)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def block_means(rgb: np.ndarray, size: int) -> np.ndarray:
    """Means of blocks in float64, the picture continued in white."""
    rows, cols = -(-rgb.shape[0] // size), -(-rgb.shape[1] // size)
    canvas = np.full((rows * size, cols * size, 3), 255.0)
    canvas[: rgb.shape[0], : rgb.shape[1]] = rgb
    return canvas.reshape(rows, size, cols, size, 3).mean((1, 3))


@pytest.mark.parametrize(
    ("downsample", "level"),
    [(0.5, 0), (1.0, 0), (1.98, 0), (1.99, 1), (2.0, 1), (3.9, 1), (4.0, 2), (15.8, 2), (15.9, 3), (100, 3)],
)
def test_best_level_is_the_coarsest_that_is_fine_enough(downsample: float, level: int) -> None:
    slide = Slide("A1", Path("A1"), 1000, 1000, 0.25, "header", (1.0, 2.0005, 4.0, 16.002))
    assert slide.best_level(downsample) == level


@pytest.mark.parametrize(
    "wrong",
    [
        {"slide_id": ""}, {"slide_id": "a/b"}, {"slide_id": "a\\b"}, {"slide_id": ".."},
        {"width": 0}, {"height": -1}, {"mpp": 0.0}, {"mpp": -1.0}, {"mpp": math.nan}, {"mpp": math.inf},
    ],
)  # fmt: skip
def test_a_slide_checks_itself(wrong: dict[str, Any]) -> None:
    right = {"slide_id": "A1", "path": Path("A1"), "width": 9, "height": 9, "mpp": 0.5, "mpp_source": "user"}
    with pytest.raises(SlideError):
        Slide(**{**right, **wrong}, level_downsamples=(1.0,))


@pytest.mark.parametrize(
    ("size_level0", "patch_px", "read"),
    [
        (64, 64, (0, 64)),  # as it is
        (128, 64, (1, 64)),  # a level that fits exactly
        (129.2, 64, (1, 65)),  # a little coarser than the level
        (126, 64, (0, 126)),  # more than 1 % finer than level 1
        (192, 64, (1, 96)),  # between two levels: the finer one
        (256, 64, (2, 64)),
        (1024, 64, (2, 256)),  # coarser than the last level
        (32, 64, (0, 32)),  # finer than the first
        (100.3, 64, (0, 101)),
    ],
)
def test_one_read_from_the_best_level(size_level0: float, patch_px: int, read: tuple[int, int]) -> None:
    reader = in_memory(noise(1200, 1200), (1.0, 2.0, 4.0))
    patch = reader.read_patch(16, 32, size_level0=size_level0, patch_px=patch_px)
    assert (patch.shape, patch.dtype) == ((patch_px, patch_px, 3), np.uint8)
    level, side = read
    assert reader._source.reads == [(16, 32, level, side, side)]


def test_a_patch_at_a_levels_own_resolution_is_not_resampled() -> None:
    rgb = noise(256, 256)
    reader = in_memory(rgb, (1.0, 2.0))
    assert np.array_equal(reader.read_patch(3, 5, size_level0=64, patch_px=64), rgb[5:69, 3:67])
    halved = np.asarray(Image.fromarray(rgb).reduce(2))
    assert np.array_equal(reader.read_patch(4, 6, size_level0=128, patch_px=64), halved[3:67, 2:66])
    assert np.array_equal(reader.read_patch(4, 6, size_level0=128 * (1 + 1e-12), patch_px=64), halved[3:67, 2:66])


@pytest.mark.parametrize("size_level0", [256.0, 256.513, 300.7, 511.999, 199.2, 130.01])
def test_a_fractional_size_shows_its_own_field_of_view(size_level0: float) -> None:
    # Waves of 40 px along x and along y; where they stand in the patch is told by their phase, at both of its ends.
    wave = np.rint(127.5 + 120 * np.sin(2 * np.pi * np.arange(600) / 40)).astype(np.uint8)
    rgb = np.stack(np.broadcast_arrays(wave[None], wave[:, None], np.uint8(0)), -1)
    patch = in_memory(rgb).read_patch(20, 40, size_level0=size_level0, patch_px=128).astype(float)
    centres = (np.arange(128) + 0.5) * size_level0 / 128 - 0.5
    for profile, corner in ((patch[..., 0].mean(0), 20), (patch[..., 1].mean(1), 40)):
        for part in (slice(4, 44), slice(84, 124)):  # not the edge: there a resampling filter is one-sided
            angle = 2 * np.pi * (corner + centres[part]) / 40
            basis = np.stack([np.sin(angle), np.cos(angle), np.ones(40)], -1)
            (sine, cosine, _), *_ = np.linalg.lstsq(basis, profile[part], rcond=None)
            assert abs(np.arctan2(cosine, sine) * 40 / (2 * np.pi)) <= 0.02
            assert np.hypot(sine, cosine) == pytest.approx(120, rel=0.1)


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
@pytest.mark.parametrize(("x", "y"), [(-20, -30), (370, 240), (-20, 240), (1000, 1000)])
def test_over_the_edge_is_white(
    tmp_path: Path, write_slide: Callable[..., Path], compression: str, x: int, y: int
) -> None:
    rgb = np.full((256, 384, 3), (150, 60, 90), np.uint8)
    with open_slide(write_slide(tmp_path / "a.tiff", rgb, compression=compression)) as reader:
        patch = reader.read_patch(x, y, size_level0=64, patch_px=64)
    canvas = np.full((3000, 3000, 3), 255, np.uint8)
    canvas[1000:1256, 1000:1384] = rgb
    expected = canvas[1000 + y : 1064 + y, 1000 + x : 1064 + x]
    assert np.abs(patch.astype(int) - expected).max() <= (0 if compression == "deflate" else 2)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_20x_and_40x_give_the_same_field_of_view(
    tmp_path: Path,
    write_slide: Callable[..., Path],
    paint_tissue: Callable[..., Any],
    ellipse: type,
    levels: int,
    compression: str,
) -> None:
    at_40x = paint_tissue(1024, 768, [ellipse(500, 380, 420, 330)], seed=3).rgb
    at_20x = np.asarray(Image.fromarray(at_40x).reduce(2))
    paths = [
        write_slide(tmp_path / "20x.tiff", at_20x, mpp=0.5, levels=levels, compression=compression),
        write_slide(tmp_path / "40x.tiff", at_40x, mpp=0.25, levels=levels, compression=compression),
    ]
    with open_slide(paths[0]) as coarse, open_slide(paths[1]) as fine:
        for x, y in ((0, 0), (128, 64), (256, 192), (448, 320)):
            for mpp in (0.5, 0.75, 1.0):
                a, b = (
                    r.read_patch(
                        round(x * 0.5 / r.slide.mpp),
                        round(y * 0.5 / r.slide.mpp),
                        size_level0=96 * mpp / r.slide.mpp,
                        patch_px=96,
                    ).astype(float)
                    for r in (coarse, fine)
                )
                difference = np.abs(a - b)
                assert difference.mean() <= 2.0
                inner = difference[2:-2, 2:-2].max(-1)  # at a patch's edge a filter has no neighbours to look at
                assert np.quantile(inner, 0.99) <= 12
                # The measure is sharp enough to see an error of one pixel in 96.
                assert np.abs(a[:, 1:] - b[:, :-1]).mean() > 2 * difference.mean() or a.std() < 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1), (5, 7), (63, 65), (96, 160)])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_overview_is_the_mean_of_blocks(shape: tuple[int, int], size: int) -> None:
    rgb = noise(*shape)
    overview = in_memory(rgb).read_overview(size)
    expected = block_means(rgb, size)
    assert (overview.shape, overview.dtype) == (expected.shape, np.uint8)
    # Rows and columns are rounded one after the other, and a half goes up.
    assert np.abs(overview - expected).max() <= 1.0
    if overview.size > 1000:
        assert -0.02 <= (overview - expected).mean() <= (0.02 + 1 / size if size > 1 else 0)


@pytest.mark.parametrize("downsample", [1.0, 3.0, 4.0, 7.6, 16.032])
def test_overview_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch, downsample: float) -> None:
    rgb = np.asarray(Image.fromarray(noise(16, 20)).resize((403, 310), Image.Resampling.BICUBIC))
    whole = in_memory(rgb).read_overview(downsample).astype(int)
    monkeypatch.setattr(reader_module, "_BLOCK_PX", 64)
    reader = in_memory(rgb)
    parts = reader.read_overview(downsample).astype(int)
    reads = reader._source.reads
    assert len(reads) > 20
    assert max(max(width, height) for *_, width, height in reads) <= 64 + math.ceil(downsample)
    # Blocks begin on whole level-0 pixels: the same where the downsample is whole, but for the order in which rows and
    # columns are rounded; elsewhere half a pixel off at most.
    if downsample == int(downsample):
        assert np.abs(whole - parts).max() <= 1
        assert (whole != parts).mean() < 0.01
    else:
        steepest = max(np.abs(np.diff(rgb.astype(int), axis=axis)).max() for axis in (0, 1))
        assert np.abs(whole - parts).max() <= 1 + steepest
        assert abs((whole - parts).mean()) < 0.25


def test_overview_reads_the_coarse_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_BLOCK_PX", 64)
    rgb = noise(512, 768)
    reader = in_memory(rgb, (1.0, 4.0))
    overview = reader.read_overview(16.0)
    assert {level for _, _, level, _, _ in reader._source.reads} == {1}
    assert np.abs(overview - block_means(rgb, 16)).max() <= 1.5  # two roundings, the level's and the result's


def test_overview_of_a_slide_file(tmp_path: Path, write_slide: Callable[..., Path]) -> None:
    rgb = np.asarray(Image.fromarray(noise(20, 30)).resize((600, 400), Image.Resampling.BICUBIC))
    path = write_slide(tmp_path / "a.tiff", rgb, compression="deflate", levels=1)
    with open_slide(path) as reader:
        assert np.abs(reader.read_overview(16.0) - block_means(rgb, 16)).max() <= 1.0


def test_overview_never_enlarges() -> None:
    with pytest.raises(SlideError, match=r"slide 'A1': downsample must be at least 1, got 0\.5$"):
        in_memory(noise(8, 8)).read_overview(0.5)


def test_threads_read_what_one_thread_reads(tmp_path: Path, write_slide: Callable[..., Path]) -> None:
    path = write_slide(tmp_path / "a.tiff", noise(512, 512), compression="jpeg")
    corners = [(x, y) for y in range(0, 512, 64) for x in range(0, 512, 64)]
    with open_slide(path) as reader, ThreadPoolExecutor(4) as pool:

        def read(corner: tuple[int, int]) -> np.ndarray:
            return reader.read_patch(*corner, size_level0=64, patch_px=48)

        for one, other in zip(map(read, corners), pool.map(read, corners), strict=True):
            assert np.array_equal(one, other)


def test_what_a_decoder_raises_becomes_one_line() -> None:
    reader = in_memory(noise(64, 64), (1.0, 2.0))
    with pytest.raises(SlideError) as error:
        reader.read_patch(1, 0, size_level0=64, patch_px=32)
    assert str(error.value) == (
        "slide 'A1': cannot be read at (1, 0) of level 1 ((1, 0) is not on level 1); "
        "the file is damaged, re-copy or re-export it"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"slide 'gone': .*gone\.svs does not exist"):
        open_slide(tmp_path / "gone.svs")


def test_the_id_is_the_file_name_or_what_is_given(tmp_path: Path) -> None:
    Image.fromarray(noise(9, 9)).save(tmp_path / "TCGA-01.uuid.png")
    with open_slide(tmp_path / "TCGA-01.uuid.png", mpp=0.5) as reader:
        assert reader.slide.slide_id == "TCGA-01.uuid"
    with open_slide(str(tmp_path / "TCGA-01.uuid.png"), slide_id="B2", mpp=0.5) as reader:
        assert reader.slide.slide_id == "B2"


def test_files_are_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FakeSource(noise(9, 9))
    monkeypatch.setattr(reader_module, "open_source", lambda path, slide_id: source)
    (tmp_path / "a.svs").touch()
    with open_slide(tmp_path / "a.svs", mpp=0.5):
        assert not source.closed
    assert source.closed
    source.closed = False
    with pytest.raises(SlideError, match="no pixel size"):
        open_slide(tmp_path / "a.svs")
    assert source.closed


# --- what a slide says of itself and cannot be


def set_tags(path: Path, **tags: int) -> Path:
    """Give the first page of a TIFF other values."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in tags.items():
            file.pages[0].tags[name].overwrite(value)
    return path


def a_small_slide(write_slide: Callable[..., Path], path: Path) -> Path:
    return write_slide(path, noise(256, 384), levels=1, compression="deflate")


def claiming(side: int, path: Path) -> Path:
    """A slide that says it is a square of large tiles, few enough to be listed in its file."""
    return set_tags(path, ImageWidth=side, ImageLength=side, TileWidth=2**13, TileLength=2**13)


@pytest.mark.parametrize("tag", ["ImageWidth", "ImageLength"])
def test_a_side_longer_than_any_slides_is_refused(tmp_path: Path, write_slide: Callable[..., Path], tag: str) -> None:
    path = set_tags(a_small_slide(write_slide, tmp_path / "a.tiff"), **{tag: 2**22})
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    line = str(caught.value)
    assert line.startswith("slide 'a': ")
    assert str(2**22) in line
    assert line.endswith("damaged, re-copy or re-export it")


def test_more_pixels_than_a_file_can_hold_are_refused(tmp_path: Path, write_slide: Callable[..., Path]) -> None:
    """A million million px in some 300 KB; each side for itself would be possible."""
    path = claiming(2**20, a_small_slide(write_slide, tmp_path / "a.tiff"))
    assert path.stat().st_size < 2**19
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    assert f"a file of {path.stat().st_size:,} bytes says it has {2**20}×{2**20} px" in str(caught.value)
    assert str(caught.value).endswith("re-copy or re-export it")


def test_the_file_is_closed_when_it_is_refused(tmp_path: Path, write_slide: Callable[..., Path]) -> None:
    path = claiming(2**20, a_small_slide(write_slide, tmp_path / "a.tiff"))
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("this system has no /proc to look for open files in")
    with pytest.raises(SlideError):
        open_slide(path)
    assert str(path) not in {os.path.realpath(link) for link in folder.iterdir()}


def test_slides_as_long_as_they_come_are_not_refused() -> None:
    for side in (300_000, 2**21):
        assert Slide("A1", Path("A1"), side, 1, 0.25, "user", (1.0,)).width == side
    with pytest.raises(SlideError, match=r"slide 'A1': says it has 2097153×1 px; the file is damaged"):
        Slide("A1", Path("A1"), 2**21 + 1, 1, 0.25, "user", (1.0,))


def test_empty_slides_of_many_pixels_are_not_refused(tmp_path: Path) -> None:
    """Blank tiles compress by a factor of thousands."""
    path = tmp_path / "blank.tiff"
    blank = np.full((4096, 4096, 3), 255, np.uint8)
    tifffile.imwrite(path, blank, tile=(512, 512), photometric="rgb", compression="deflate", metadata=None)
    assert 200 * path.stat().st_size < 4096 * 4096
    with open_slide(path, mpp=0.5) as reader:
        assert reader.slide.width == 4096


def test_an_overview_too_large_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pixel size a hundred times too large makes an overview of ten thousand times the px."""
    monkeypatch.setattr(reader_module, "_MOST_OVERVIEW_PX", 50 * 30)
    reader = in_memory(noise(60, 100), mpp=25.0)
    assert reader.read_overview(2.0).shape == (30, 50, 3)
    reads = len(reader._source.reads)
    with pytest.raises(SlideError) as caught:
        reader.read_overview(1.9)
    assert str(caught.value) == ("slide 'A1': an overview of 53×32 px is too large; is its pixel size of 25 µm right?")
    assert len(reader._source.reads) == reads


def test_tissue_of_a_slide_with_an_impossible_pixel_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_MOST_OVERVIEW_PX", 10_000)
    Image.fromarray(noise(120, 100)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp=0.5) as reader:
        segment_tissue(reader)
    with (
        open_slide(tmp_path / "a.png", mpp=500.0) as reader,
        pytest.raises(SlideError, match=r"slide 'a': an overview of 100×120 px .* pixel size of 500 µm right\?$"),
    ):
        segment_tissue(reader)
