"""What extraction will cut: a slide with its tissue outlined and its patches drawn."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi2d.config import ExtractConfig
from wsi2d.explain.canvas import DPI, add_title, check_suffix, save_figure, scale_bar
from wsi2d.slides.patching import PatchGrid, make_patch_grid
from wsi2d.slides.reader import Slide, open_slide
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.slides.tissue import TissueMask, segment_tissue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL_PX = 1400  # longer side of the slide as drawn
_OUTLINE = "#00a000"
_PATCHES = "#1f4fff"
_SMALLEST_CELL_PX = 3.0  # below it lines would hide the slide


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
        config: tissue and patches.
        slide_id: its name; the file name without suffix if not given.
        slide_mpp: level-0 pixel size, µm/px; goes before the header.
        pool: processes that read the slide; one of its own if not given.

    Raises:
        ConfigError: a suffix that cannot be drawn.
        SlideError: the slide cannot be read.
        StorageError: the picture cannot be written.
    """
    out, config = Path(out), config or ExtractConfig()
    check_suffix(out)
    own = nullcontext(pool) if pool is not None else ReaderPool(limit_s=config.read_limit_s)
    with own as readers, open_slide(slide, slide_id=slide_id, mpp=slide_mpp, pool=readers) as reader:
        tissue = segment_tissue(reader, config.tissue)
        grid = make_patch_grid(reader.slide, tissue, config.patch)
        downsample = max(1.0, max(reader.slide.width, reader.slide.height) / _PANEL_PX)
        picture = TissuePicture(reader.slide, tissue, grid, reader.read_overview(downsample), downsample)
    save_figure(draw(picture), out)
    return picture


def draw(picture: TissuePicture) -> Figure:
    """A figure of the slide with the tissue's outline and the chosen patches."""
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    height, width = picture.overview.shape[:2]
    figure = Figure(figsize=(max(width, 700) / DPI, (height + 90) / DPI), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture.overview)
    squares = _squares(picture.grid) / picture.downsample - 0.5
    side = picture.grid.patch_level0 / picture.downsample
    line = 0.6 if side >= _SMALLEST_CELL_PX else 0.0
    axes.add_collection(PolyCollection(list(squares), facecolors=f"{_PATCHES}28", edgecolors=_PATCHES, linewidths=line))
    mask = np.pad(picture.tissue.mask, 1)  # so that an outline along the slide's edge is closed
    shape = picture.slide.height, picture.slide.width
    ys, xs = (
        _centres(n, picture.tissue.downsample, size) / picture.downsample - 0.5
        for n, size in zip(picture.tissue.mask.shape, shape, strict=True)
    )
    if mask.any():
        outline = axes.contour(xs, ys, mask, levels=[0.5], colors=_OUTLINE, linewidths=1.2)
        outline.set_clip_on(False)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()
    scale_bar(axes, width, picture.downsample * picture.slide.mpp)
    add_title(figure, picture.describe(), fontsize=9)
    return figure


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
