"""Tissue where it was painted, nothing on empty glass, and shares of tissue to fractions of a pixel."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from wsi2d.config import PatchConfig, TissueConfig
from wsi2d.errors import SlideError
from wsi2d.slides.glass import glass_colour
from wsi2d.slides.ink import ink_on_glass
from wsi2d.slides.patching import make_patch_grid
from wsi2d.slides.reader import open_slide
from wsi2d.slides.tissue import TissueMask, saturation_threshold, segment_tissue


def segment(tmp_path: Path, rgb: np.ndarray, *, mpp: float = 2.0, **config: Any) -> TissueMask:
    Image.fromarray(rgb).save(tmp_path / "slide.png")
    with open_slide(tmp_path / "slide.png", mpp=mpp) as reader:
        return segment_tissue(reader, TissueConfig(**config))


def at_level0(mask: TissueMask, shape: tuple[int, ...]) -> np.ndarray:
    """The mask's value at the centre of each level-0 pixel."""
    rows, cols = (((np.arange(n) + 0.5) / mask.downsample).astype(int) for n in shape[:2])
    return mask.mask[np.ix_(rows, cols)]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize(("mpp", "size"), [(2.0, (420, 500)), (0.5, (1100, 1300)), (1.7, (380, 450))])
def test_a_painted_ellipse_is_found(
    tmp_path: Path, paint_tissue: Callable[..., Any], ellipse: type, mpp: float, size: tuple[int, int]
) -> None:
    height, width = size
    painting = paint_tissue(width, height, [ellipse(0.45 * width, 0.55 * height, 0.3 * width, 0.35 * height)])
    mask = segment(tmp_path, painting.rgb, mpp=mpp)
    assert mask.downsample == pytest.approx(8 / mpp)
    assert mask.mask.shape == tuple(int(np.ceil(n * mpp / 8)) for n in size)
    assert iou(at_level0(mask, size), painting.tissue) >= 0.9
    assert 0.04 <= mask.threshold <= 0.1


def test_it_is_found_in_a_jpeg_slide_with_levels(
    tmp_path: Path, write_slide: Callable[..., Path], paint_tissue: Callable[..., Any], ellipse: type
) -> None:
    painting = paint_tissue(1600, 1200, [ellipse(500, 500, 400, 300), ellipse(1300, 900, 200, 200)])
    with open_slide(write_slide(tmp_path / "a.tiff", painting.rgb, mpp=0.5)) as reader:
        mask = segment_tissue(reader)
    assert iou(at_level0(mask, painting.tissue.shape), painting.tissue) >= 0.9


def test_a_mask_no_finer_than_the_slide(tmp_path: Path, paint_tissue: Callable[..., Any], ellipse: type) -> None:
    painting = paint_tissue(90, 80, [ellipse(45, 40, 30, 25)])
    mask = segment(tmp_path, painting.rgb, mpp=20.0)
    assert (mask.downsample, mask.mask.shape) == (1.0, (80, 90))
    assert iou(mask.mask, painting.tissue) >= 0.9


# At 2 µm/px a circle of r px has an area of 4πr² µm². The closing's radius of 32 µm is 16 px.
SMALL_HOLE, LARGE_HOLE = (250, 30), (550, 75)  # x and r; 11,310 and 70,686 µm²
SMALL_PIECE, LARGE_PIECE = (60, 20), (250, 60)  # 5,027 and 45,239 µm²


def test_holes_are_filled_by_area(tmp_path: Path, paint_tissue: Callable[..., Any], ellipse: type) -> None:
    holes = [ellipse(x, 200, r, r) for x, r in (SMALL_HOLE, LARGE_HOLE)]
    painting = paint_tissue(800, 400, [ellipse(400, 200, 370, 180)], holes=holes)

    def open_at(mask: TissueMask) -> list[bool]:
        return [not at_level0(mask, painting.rgb.shape)[200, x] for x, _ in (SMALL_HOLE, LARGE_HOLE)]

    assert open_at(segment(tmp_path, painting.rgb)) == [False, True]
    assert open_at(segment(tmp_path, painting.rgb, min_hole_um2=1_000)) == [True, True]
    assert open_at(segment(tmp_path, painting.rgb, min_hole_um2=100_000)) == [False, False]
    kept = segment(tmp_path, painting.rgb, min_hole_um2=0, close_um=0)
    assert iou(at_level0(kept, painting.rgb.shape), painting.tissue) >= 0.95


def test_pieces_are_dropped_by_area(tmp_path: Path, paint_tissue: Callable[..., Any], ellipse: type) -> None:
    pieces = [ellipse(x, 100, r, r) for x, r in (SMALL_PIECE, LARGE_PIECE)]
    painting = paint_tissue(400, 200, pieces)

    def kept(mask: TissueMask) -> list[bool]:
        return [bool(at_level0(mask, painting.rgb.shape)[100, x]) for x, _ in (SMALL_PIECE, LARGE_PIECE)]

    assert kept(segment(tmp_path, painting.rgb)) == [False, True]
    assert kept(segment(tmp_path, painting.rgb, min_piece_um2=1_000)) == [True, True]
    assert kept(segment(tmp_path, painting.rgb, min_piece_um2=0)) == [True, True]
    assert kept(segment(tmp_path, painting.rgb, min_piece_um2=100_000)) == [False, False]


def test_areas_are_of_micrometres_at_every_magnification(
    tmp_path: Path, paint_tissue: Callable[..., Any], ellipse: type
) -> None:
    for mpp in (1.0, 2.0, 4.0):
        scale = 2.0 / mpp
        pieces = [ellipse(x * scale, 100 * scale, r * scale, r * scale) for x, r in (SMALL_PIECE, LARGE_PIECE)]
        painting = paint_tissue(round(400 * scale), round(200 * scale), pieces)
        mask = at_level0(segment(tmp_path, painting.rgb, mpp=mpp), painting.rgb.shape)
        at = [bool(mask[round(100 * scale), round(x * scale)]) for x, _ in (SMALL_PIECE, LARGE_PIECE)]
        assert at == [False, True]


def test_the_closing_joins_across_small_gaps_only(
    tmp_path: Path, paint_tissue: Callable[..., Any], ellipse: type
) -> None:
    rgb = paint_tissue(600, 300, [ellipse(300, 150, 5000, 5000)]).rgb.copy()
    rgb[:, 190:210], rgb[:, 380:440] = 244, 244  # gaps of 40 and of 120 µm; the closing spans 64
    mask = at_level0(segment(tmp_path, rgb, min_hole_um2=0), rgb.shape)
    assert mask[40:260, 200].all()
    assert not mask[40:260, 410].any()


@pytest.mark.parametrize("kind", ["even", "noisy", "white", "black"])
def test_empty_glass_has_no_tissue(tmp_path: Path, kind: str) -> None:
    rgb = np.full((300, 400, 3), {"white": 255, "black": 0}.get(kind, 244), np.uint8)
    if kind == "noisy":
        rgb -= np.random.default_rng(0).integers(0, 4, rgb.shape, np.uint8)
    mask = segment(tmp_path, rgb, min_piece_um2=0, min_hole_um2=0)
    assert not mask.mask.any()
    with open_slide(tmp_path / "slide.png", mpp=2.0) as reader:
        assert len(make_patch_grid(reader.slide, mask, PatchConfig(patch_px=64, mpp=2.0, min_tissue=0))) == 0


def test_glass_at_the_edge_is_no_hole_however_small(tmp_path: Path) -> None:
    """A slide of 150 × 200 µm without tissue, and one with tissue but for a corner: both less than a hole's area."""
    blank = np.full((300, 400, 3), 240, np.uint8)
    assert not segment(tmp_path, blank, mpp=0.5).mask.any()
    corner = np.full((1200, 1200, 3), (200, 90, 160), np.uint8)
    corner[:200, :300] = 240
    mask = segment(tmp_path, corner, mpp=0.5, close_um=0.0, min_piece_um2=0.0)
    assert not mask.mask[:10, :15].any()
    assert mask.mask[20:, 30:].all()


@pytest.mark.parametrize("min_hole_um2", [0.0, 40_000.0])
def test_tissue_that_fills_the_picture_is_all_tissue(
    tmp_path: Path, paint_tissue: Callable[..., Any], ellipse: type, min_hole_um2: float
) -> None:
    rgb = paint_tissue(400, 300, [ellipse(200, 150, 5000, 5000)]).rgb
    assert segment(tmp_path, rgb, min_hole_um2=min_hole_um2).mask.all()


def test_black_borders_and_grey_marks_are_no_tissue(
    tmp_path: Path, paint_tissue: Callable[..., Any], ellipse: type
) -> None:
    painting = paint_tissue(400, 300, [ellipse(250, 150, 120, 120)])
    rgb = painting.rgb.copy()
    rgb[:, :60] = (9, 0, 3)  # saturated by the letter, black to the eye
    rgb[250:, :] = np.where(painting.tissue[250:, :, None], rgb[250:], 150)
    assert iou(at_level0(segment(tmp_path, rgb), rgb.shape), painting.tissue) >= 0.9
    assert at_level0(segment(tmp_path, rgb, min_value=0), rgb.shape)[100, 30]


def test_the_threshold_is_otsus_within_its_bounds() -> None:
    generator = np.random.default_rng(0)
    config = TissueConfig(min_saturation=0.04, max_saturation=0.3)
    two = np.concatenate([generator.normal(0.02, 0.01, 5000), generator.normal(0.4, 0.05, 5000)])
    assert ((two > saturation_threshold(two, config)) == (two > 0.15)).mean() > 0.99
    assert saturation_threshold(two + 0.3, config) == 0.3
    assert saturation_threshold(two * 0.05, config) == 0.04
    assert saturation_threshold(np.full(9, 0.2), config) == 0.2
    assert saturation_threshold(np.zeros(9), config) == 0.04


# --- the colour of glass

CLEAR, YELLOW, DIM = (243, 243, 242), (236, 230, 210), (200, 204, 210)


def on_glass(painting: Any, glass: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A painting on other glass, which takes its share of the light everywhere, with a scanner's noise."""
    light = painting.rgb / 244 * np.array(glass)
    noisy = light + np.random.default_rng(seed).normal(0, 0.8, light.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


def glass_of(rgb: np.ndarray, min_value: float = 0.0) -> list[float]:
    """The glass that is found, 0 to 255."""
    colour = glass_colour(rgb, min_value)
    assert (colour.shape, colour.dtype) == ((3,), np.float32)
    return [float(level) for level in colour * 255]


@pytest.fixture(scope="module")
def round_piece(paint_tissue: Callable[..., Any], ellipse: type) -> Any:
    """An ellipse that takes a third of its picture."""
    return paint_tissue(400, 300, [ellipse(180, 160, 130, 100)])


@pytest.mark.parametrize("glass", [CLEAR, YELLOW, DIM, (255, 250, 245), (210, 230, 225)])
def test_glass_is_what_was_painted(round_piece: Any, glass: tuple[int, int, int]) -> None:
    assert glass_of(on_glass(round_piece, glass)) == pytest.approx(glass, abs=1.5)


def test_white_that_a_scanner_filled_in_is_not_the_glass(round_piece: Any) -> None:
    rgb = on_glass(round_piece, YELLOW)
    rgb[:, :40] = rgb[:60] = rgb[260:] = rgb[:, 330:] = 255
    assert (rgb == 255).all(-1).mean() > 0.4
    assert glass_of(rgb) == pytest.approx(YELLOW, abs=1.5)


def test_what_was_not_scanned_is_not_the_glass(round_piece: Any) -> None:
    rgb = on_glass(round_piece, YELLOW)
    rgb[:, 200:] = 0
    assert glass_of(rgb, 0.1) == pytest.approx(YELLOW, abs=1.5)
    assert glass_of(rgb, 1.1) == [255, 255, 255]


@pytest.mark.parametrize("level", [0, 20, 255])
def test_pictures_of_one_level(level: int) -> None:
    """What is black was not scanned; what is white may well be the glass."""
    rgb = np.full((80, 90, 3), level, np.uint8)
    assert glass_of(rgb, 0.12) == [255, 255, 255]


def test_where_tissue_fills_the_picture_glass_is_white(paint_tissue: Callable[..., Any], ellipse: type) -> None:
    assert glass_of(paint_tissue(400, 300, [ellipse(200, 150, 5000, 5000)]).rgb) == [255, 255, 255]
    pink = np.full((80, 90, 3), (225, 150, 190), np.uint8)
    assert glass_of(pink) == [255, 255, 255], "even and bright, but too strong a colour"


def test_a_pale_and_even_piece_is_not_the_glass() -> None:
    """It is larger, and nearly grey; what shines through most is what is empty."""
    rgb = np.full((200, 300, 3), CLEAR, np.uint8)
    rgb[:, 60:] = (225, 206, 214)
    assert glass_of(rgb) == pytest.approx(CLEAR, abs=1.5)


def test_a_speck_of_light_is_not_the_glass(round_piece: Any) -> None:
    rgb = on_glass(round_piece, DIM)
    rgb[5:9, 5:9] = (252, 252, 251)
    assert glass_of(rgb) == pytest.approx(DIM, abs=1.5)


@pytest.mark.parametrize("glass", [YELLOW, DIM])
def test_tissue_on_other_glass(tmp_path: Path, round_piece: Any, glass: tuple[int, int, int]) -> None:
    rgb = on_glass(round_piece, glass)
    assert iou(at_level0(segment(tmp_path, rgb), rgb.shape), round_piece.tissue) >= 0.9


def test_glass_that_is_given_is_the_glass(tmp_path: Path, round_piece: Any) -> None:
    """Right, it changes nothing; said to be white, what is yellow is saturated by 26/236."""
    rgb = on_glass(round_piece, YELLOW)
    found, given = segment(tmp_path, rgb), segment(tmp_path, rgb, glass="236,230,210")
    assert iou(found.mask, given.mask) > 0.99
    assert segment(tmp_path, rgb, glass="255,255,255").mask.mean() > 0.95


def test_glass_that_cannot_be_found_can_be_given(tmp_path: Path, round_piece: Any) -> None:
    """Glass of too strong a tint to be believed: a filter was left in the light."""
    rgb = on_glass(round_piece, (240, 225, 180))
    assert glass_of(rgb) == [255, 255, 255]
    assert segment(tmp_path, rgb).mask.mean() > 0.95
    mask = segment(tmp_path, rgb, glass=[240, 225, 180])
    assert iou(at_level0(mask, rgb.shape), round_piece.tissue) >= 0.9


# --- ink

INKS = {"blue": (50, 70, 170), "green": (30, 140, 80), "red": (190, 40, 60), "black": (40, 40, 45)}
STROKE = (slice(40, 260), slice(470, 500))  # on glass; at 8 µm/px a fine pen's 0.24 mm
INNER = (slice(150, 180), slice(120, 240))  # within the ellipse


@pytest.fixture(scope="module")
def beside_room(paint_tissue: Callable[..., Any], ellipse: type) -> Any:
    """An ellipse with glass to its right."""
    return paint_tissue(560, 300, [ellipse(190, 160, 150, 110)])


def with_ink(painting: Any, colour: str, place: tuple[slice, slice]) -> np.ndarray:
    """A stroke of a marker, nearly even as they are."""
    rgb = on_glass(painting, CLEAR)
    noise = np.random.default_rng(1).normal(0, 1, rgb[place].shape)
    rgb[place] = (np.array(INKS[colour]) + noise).round().clip(0, 255).astype(np.uint8)
    return rgb


@pytest.mark.parametrize("colour", INKS)
def test_ink_on_glass_is_dropped_or_kept(tmp_path: Path, beside_room: Any, colour: str) -> None:
    rgb = with_ink(beside_room, colour, STROKE)
    dropped = at_level0(segment(tmp_path, rgb, mpp=8.0), rgb.shape)
    assert not dropped[:, 400:].any(), "nor its rim"
    assert iou(dropped, beside_room.tissue) >= 0.9
    kept = at_level0(segment(tmp_path, rgb, mpp=8.0, ink="keep"), rgb.shape)
    assert kept[STROKE].mean() > 0.95
    assert (kept[:, :400] == dropped[:, :400]).all()


@pytest.mark.parametrize("colour", INKS)
def test_the_same_stroke_within_tissue_stays(tmp_path: Path, beside_room: Any, colour: str) -> None:
    """What lies below it is tissue; blood, pigment and a blue stain look like ink."""
    rgb = with_ink(beside_room, colour, INNER)
    mask = at_level0(segment(tmp_path, rgb, mpp=8.0), rgb.shape)
    assert mask[INNER].all()
    assert iou(mask, beside_room.tissue) >= 0.9


def test_a_stroke_across_the_edge_is_dropped_on_glass_only(tmp_path: Path, beside_room: Any) -> None:
    """It begins in the ellipse's middle and ends 1.1 mm beside it."""
    across = (slice(150, 180), slice(190, 480))
    rgb = with_ink(beside_room, "blue", across)
    mask = at_level0(segment(tmp_path, rgb, mpp=8.0, ink="drop"), rgb.shape)
    assert mask[150:180, 190:260].all()
    assert not mask[:, 400:].any()


def test_ink_alone_is_no_tissue(tmp_path: Path) -> None:
    for colour in INKS.values():
        rgb = np.full((300, 400, 3), 243, np.uint8)
        rgb[100:200, 100:300] = colour
        assert not segment(tmp_path, rgb, mpp=8.0).mask.any(), colour


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1), (40, 50)])
def test_ink_in_pictures_of_any_size(shape: tuple[int, int]) -> None:
    """White has none; a picture that is ink from edge to edge has no glass beside it to lie on."""
    for level, everywhere in ((np.ones(3), False), (np.array(INKS["blue"]) / 255, True)):
        balanced = np.broadcast_to(level, (*shape, 3)).astype(np.float32)
        found = ink_on_glass(balanced.__getitem__, np.full(shape, everywhere), smooth_px=1.0, mask_mpp=8.0)
        assert (found.shape, found.dtype) == (shape, np.bool_)
        assert not found.any()


# --- growing into what is paler


def test_tissue_goes_on_into_what_is_paler_and_touches_it(tmp_path: Path) -> None:
    """Saturations: 75/225 in the piece, 12/240 in its apron and in the same colour far away, 0 in the glass."""
    rgb = np.full((300, 560, 3), 240, np.uint8)
    rgb[80:220, 60:200] = (225, 150, 190)
    rgb[80:220, 200:300] = rgb[80:220, 400:500] = (240, 228, 236)
    apron, away = (slice(100, 200), slice(220, 285)), (slice(80, 220), slice(400, 500))
    for grow, reached in ((0.03, True), (0.045, True), (0.06, False), (0.5, False)):
        mask = at_level0(segment(tmp_path, rgb, glass="240,240,240", grow_saturation=grow), rgb.shape)
        assert mask[100:200, 70:190].all()
        assert (mask[apron].all(), mask[apron].any()) == (reached, reached), grow
        assert not mask[away].any()


def brute_coverage(mask: np.ndarray, x: float, y: float, side: float) -> float:
    """Overlap of a square with each tissue pixel, one after the other; all in mask px."""
    area = 0.0
    for row, col in np.argwhere(mask):
        down = min(row + 1, y + side) - max(row, y)
        across = min(col + 1, x + side) - max(col, x)
        area += max(down, 0.0) * max(across, 0.0)
    return area / side**2


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1), (5, 7), (23, 31)])
@pytest.mark.parametrize("downsample", [1.0, 3.3, 16.032])
def test_coverage_is_the_overlap_to_fractions_of_a_pixel(shape: tuple[int, int], downsample: float) -> None:
    generator = np.random.default_rng(7)
    mask = generator.random(shape) < 0.6
    tissue = TissueMask(mask, downsample, 0.1)
    height, width = shape
    for side in (0.4, 1.0, 2.7, 9.9):
        xy = generator.uniform((-side - 1, -side - 1), (width + 1, height + 1), (25, 2))
        xy = np.concatenate([xy, [[0.0, 0.0], [width - side, height - side], [-2 * side, 0], [width + 5, height + 5]]])
        share = tissue.coverage(xy * downsample, side * downsample)
        expected = [brute_coverage(mask, x, y, side) for x, y in xy]
        assert share.dtype == np.float64
        assert np.abs(share - expected).max() <= 1e-9


def test_coverage_at_whole_coordinates() -> None:
    tissue = TissueMask(np.array([[True, False], [True, True]]), 10.0, 0.1)
    assert tissue.coverage(np.array([[0, 0], [10, 0], [5, 5], [0, 0]]), 10.0).tolist() == [1.0, 0.0, 0.75, 1.0]
    assert tissue.coverage(np.empty((0, 2), np.int32), 10.0).shape == (0,)


@pytest.mark.parametrize(
    ("mask", "downsample"),
    [(np.ones(4, bool), 2.0), (np.ones((2, 2)), 2.0), (np.ones((2, 2), np.uint8), 2.0), (np.ones((2, 2), bool), 0.5)],
)
def test_a_mask_checks_itself(mask: np.ndarray, downsample: float) -> None:
    with pytest.raises(SlideError, match="tissue mask: "):
        TissueMask(mask, downsample, 0.1)


def test_cells_agree_with_tridents_on_a_real_slide(shared_dir: Path) -> None:
    folder = shared_dir / "peers" / "trident" / "20x_256px_0px_overlap" / "patches"
    with h5py.File(folder / "cmu-1-small-region_patches.h5") as file:
        theirs = {(int(y) // 256, int(x) // 256) for x, y in file["coords"]}
    with open_slide(shared_dir / "slides" / "cmu-1-small-region.svs") as reader:
        grid = make_patch_grid(reader.slide, segment_tissue(reader), PatchConfig(patch_px=256, min_tissue=0.05))
    ours = {(int(row), int(col)) for row, col in grid.index}
    assert len(theirs) == 58
    assert len(ours & theirs) / len(ours | theirs) >= 0.8


def test_a_real_slide_without_pixel_size(shared_dir: Path) -> None:
    with open_slide(shared_dir / "slides" / "tcga-cr-7395-01a-01-ts1.svs", mpp=0.5) as reader:
        mask = segment_tissue(reader)
    assert 0.3 < mask.mask.mean() < 0.98
