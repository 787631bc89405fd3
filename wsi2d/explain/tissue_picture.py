"""What extraction will cut: a slide with its tissue outlined and its patches drawn."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi2d.config import ExtractConfig
from wsi2d.explain.canvas import DPI, add_title, check_suffix, save_figure, scale_bar
from wsi2d.features.encoders.recommended import fit_patches
from wsi2d.slides.patching import PatchGrid, make_patch_grid
from wsi2d.slides.reader import Slide, SlideReader, open_slide
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.slides.tissue import TissueMask, segment_tissue

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_PX = 1400  # longer side of the slide as drawn
# Green and blue differ in lightness from stained tissue and glass for colour-blind eyes too; a pale rim keeps them
# apart from nuclei.
_OUTLINE, _PATCHES, _RIM = "#00a000", "#1f4fff", "#ffffffa0"
_SMALLEST_CELL_PX = 10.0  # below it lines would hide the slide
_RIMMED_CELL_PX = 40.0  # below it rims would
_LEAST_WITH_BAR_PX = 100  # a scale bar would hide a strip
_VEIL, _VEIL_GREY = 0.4, 158  # what is not cut is mixed with so much of that grey


@dataclass(frozen=True)
class TissuePicture:
    """A slide with what was found on it.

    Attributes:
        slide: the slide.
        tissue: its mask.
        grid: the patches that would be cut.
        overview: uint8 ``[height, width, 3]``.
        downsample: level-0 px per overview px.
    """

    slide: Slide
    tissue: TissueMask
    grid: PatchGrid
    overview: np.ndarray
    downsample: float

    @property
    def tissue_mm2(self) -> float:
        """Area of the tissue, mm²."""
        return float(self.tissue.mask.sum()) * (self.tissue.downsample * self.slide.mpp / 1000) ** 2

    def describe(self) -> str:
        """One line: how much tissue, and how many patches of what kind."""
        rows, cols = self.grid.shape
        area = f"{self.tissue_mm2:.3g}" if self.tissue_mm2 < 1000 else f"{self.tissue_mm2:.0f}"
        return (
            f"{self.slide.slide_id}: {area} mm² of tissue (saturation above "
            f"{self.tissue.threshold:.3f}), {len(self.grid)} patches of {self.grid.patch_px} px at {self.grid.mpp:g} "
            f"µm/px on a grid of {rows} × {cols}"
        )


def tissue_picture(
    slide: Path | str,
    out: Path | str,
    config: ExtractConfig | None = None,
    *,
    slide_id: str | None = None,
    slide_mpp: float | None = None,
    pool: ReaderPool | None = None,
) -> TissuePicture:
    """Find a slide's tissue and patches as :func:`wsi2d.extract` would, and draw them over it.

    Args:
        slide: the slide file.
        out: PNG, PDF or SVG to write.
        config: tissue and patches; where it does not say, those that its encoder was made for.
        slide_id: its name; the file name without suffix if not given.
        slide_mpp: level-0 pixel size, µm/px; goes before the header.
        pool: processes that read the slide; one of its own if not given.

    Raises:
        ConfigError: a suffix that cannot be drawn.
        SlideError: the slide cannot be read.
        StorageError: the picture cannot be written.
    """
    out, config = Path(out), fit_patches(config or ExtractConfig(), warn=False)
    check_suffix(out)
    own = nullcontext(pool) if pool is not None else ReaderPool(limit_s=config.read_limit_s)
    with own as readers, open_slide(slide, slide_id=slide_id, mpp=slide_mpp, pool=readers) as reader:
        tissue = segment_tissue(reader, config.tissue)
        picture = take(reader, tissue, make_patch_grid(reader.slide, tissue, config.patch))
    save_figure(draw(picture), out)
    return picture


def take(reader: SlideReader, tissue: TissueMask, grid: PatchGrid) -> TissuePicture:
    """An open slide with what was found on it, of a size that can be shown.

    Raises:
        SlideError: the slide cannot be read.
    """
    downsample = max(1.0, max(reader.slide.width, reader.slide.height) / _PANEL_PX)
    return TissuePicture(reader.slide, tissue, grid, reader.read_overview(downsample), downsample)


def draw(picture: TissuePicture) -> Figure:
    """A figure of the slide with the tissue's outline and the chosen patches, in the slide's own colours; a grey veil
    lies over what is not cut."""
    from matplotlib.figure import Figure

    height, width = picture.overview.shape[:2]
    figure = Figure(figsize=(max(width, 700) / DPI, (height + 90) / DPI), layout="constrained")
    axes = figure.subplots()
    squares = _squares(picture.grid) / picture.downsample
    axes.imshow(_veiled(picture.overview, squares))
    _add_frames(axes, squares - 0.5, picture.grid.patch_level0 / picture.downsample)
    _add_outline(axes, picture)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()
    if min(height, width) >= _LEAST_WITH_BAR_PX:
        scale_bar(axes, width, picture.downsample * picture.slide.mpp)
    add_title(figure, picture.describe(), fontsize=9)
    return figure


def _veiled(overview: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """The overview with a veil outside of squares ``[N, 4, 2]`` (x, y), overview px."""
    cut = np.zeros(overview.shape[:2], bool)
    ends = np.rint(squares[:, [0, 2]]).astype(int).clip(0)
    for (left, top), (right, bottom) in ends:
        cut[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    veiled = np.rint(overview * (1 - _VEIL) + _VEIL_GREY * _VEIL).astype(np.uint8)
    veiled[cut] = overview[cut]
    return veiled


def _add_frames(axes: Axes, squares: np.ndarray, side_px: float) -> None:
    from matplotlib.collections import PolyCollection

    if side_px >= _RIMMED_CELL_PX:
        axes.add_collection(PolyCollection(list(squares), facecolors="none", edgecolors=_RIM, linewidths=1.6))
    if side_px >= _SMALLEST_CELL_PX:
        width = min(0.6, side_px / 30)
        axes.add_collection(PolyCollection(list(squares), facecolors="none", edgecolors=_PATCHES, linewidths=width))


def _add_outline(axes: Axes, picture: TissuePicture) -> None:
    from matplotlib.patheffects import withStroke

    if not picture.tissue.mask.any():
        return
    mask = np.pad(picture.tissue.mask, 1)  # so that an outline along the slide's edge is closed
    shape = picture.slide.height, picture.slide.width
    ys, xs = (
        _centres(n, picture.tissue.downsample, size) / picture.downsample - 0.5
        for n, size in zip(picture.tissue.mask.shape, shape, strict=True)
    )
    outline = axes.contour(xs, ys, mask, levels=[0.5], colors=_OUTLINE, linewidths=1.4)
    outline.set_path_effects([withStroke(linewidth=2.8, foreground=_RIM)])
    outline.set_clip_on(False)


def _squares(grid: PatchGrid) -> np.ndarray:
    """Corners of the patches, level-0 px: ``[N, 4, 2]`` (x, y)."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * grid.patch_level0
    squares: np.ndarray = grid.coords[:, None, :] + corners
    return squares


def _centres(count: int, side: float, size: int) -> np.ndarray:
    """Centres of mask px and of one beyond each end, level-0 px; the last px ends where the slide does."""
    borders = np.minimum(np.arange(count + 1) * side, size)
    centres = (borders[:-1] + borders[1:]) / 2
    return np.concatenate([[-centres[0]], centres, [2 * borders[-1] - centres[-1]]])
