"""Attention drawn over the slide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi2d.explain.attention import SlideAttention, slide_attention
from wsi2d.explain.canvas import DPI, add_title, check_suffix, save_figure, scale_bar
from wsi2d.slides.patching import PatchGrid
from wsi2d.slides.reader import open_slide
from wsi2d.slides.reader_pool import ReaderPool

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR_MAP = "viridis"
OPACITY = 0.55
_PANEL_PX = 900  # longer side of the slide as drawn
_TOP_PERCENTILE = 99.0


def heatmap(
    run: Path | str,
    slide: Path | str,
    out: Path | str,
    *,
    slides: Path | str | None = None,
    features: Path | str | None = None,
    slide_mpp: float | None = None,
    device: str = "auto",
) -> SlideAttention:
    """Draw the attention of a run's model over a slide: the slide beside it, empty cells transparent, a legend.

    Args:
        run: the run folder.
        slide: a slide's id or a slide file; see :func:`wsi2d.explain.attention.slide_attention`, also for the rest.
        out: PNG, PDF or SVG to write.

    Raises:
        ConfigError: a suffix that cannot be drawn.
        StorageError: the picture cannot be written.
        RunError, SlideError, FeatureStoreError: the run, the slide or its features cannot be found or do not fit.
    """
    out = Path(out)
    check_suffix(out)
    attention = slide_attention(
        run, slide, slides=slides, features=features, slide_mpp=slide_mpp, device=device
    )  # fmt: skip
    figure = draw(attention)
    save_figure(figure, out)
    return attention


def draw(attention: SlideAttention) -> Figure:
    """A figure with the slide on the left and the attention over it on the right."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    slide = attention.slide
    with (
        ReaderPool() as pool,
        open_slide(slide.path, slide_id=slide.slide_id, mpp=attention.slide_mpp, pool=pool) as reader,
    ):
        downsample = max(1.0, max(reader.slide.width, reader.slide.height) / _PANEL_PX)
        picture, mpp = reader.read_overview(downsample), reader.slide.mpp
    values = attention.on_grid()
    scale = Normalize(0.0, colour_limit(values), clip=True)
    layer = overlay(scale(values), attention.grid, picture.shape[:2], downsample, colormaps[COLOUR_MAP])

    height, width = picture.shape[:2]
    figure = Figure(figsize=((2 * width + 260) / DPI, (height + 110) / DPI), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(picture)
    right.imshow(picture)
    right.imshow(layer)
    for axes in (left, right):
        axes.set_axis_off()
    scale_bar(left, width, downsample * mpp)
    bar = figure.colorbar(ScalarMappable(scale, COLOUR_MAP), ax=right, fraction=0.04, pad=0.02, extend="max")
    bar.set_label("attention (1 = the same for every patch)")
    add_title(figure, caption(attention))
    return figure


def caption(attention: SlideAttention) -> str:
    """One line: which slide, what the model says of it, who spoke, and what is known."""
    prediction = attention.prediction
    if attention.classes:
        best = int(np.argmax(prediction.scores))
        says = f"{attention.classes[best]} {prediction.scores[best]:.2f}"
    else:
        says = f"risk {prediction.risk:.2f}"
    who = f"fold {attention.folds[0]}" if len(attention.folds) == 1 else f"mean of {len(attention.folds)} folds"
    known = f"; known: {attention.truth}" if attention.truth else ""
    return f"{attention.slide.slide_id}: {says} ({who}{known})"


def overlay(
    values: np.ndarray,
    grid: PatchGrid,
    shape: tuple[int, int],
    downsample: float,
    colour_map: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Cells as a picture to lay over the slide.

    Args:
        values: ``[rows, cols]`` in 0 to 1, NaN (or masked) where there is no patch.
        grid: where the cells are.
        shape: height and width of the picture, px.
        downsample: level-0 px per picture px.
        colour_map: from values to RGBA.

    Returns:
        float ``[height, width, 4]`` RGBA, transparent where there is no patch. A cell covers its pitch around its
        patch's centre, so overlapping patches do not hide each other.
    """
    values = np.ma.filled(np.ma.masked_invalid(values), np.nan)
    x, y = grid.origin
    rows, cols = _cell_of(shape[0], downsample, grid, y), _cell_of(shape[1], downsample, grid, x)
    inside = (rows >= 0)[:, None] & (rows < grid.shape[0])[:, None] & (cols >= 0) & (cols < grid.shape[1])
    cells = values[np.ix_(rows.clip(0, grid.shape[0] - 1), cols.clip(0, grid.shape[1] - 1))]
    shown = inside & ~np.isnan(cells)
    layer = np.asarray(colour_map(np.nan_to_num(cells)))
    layer[..., 3] = np.where(shown, OPACITY, 0.0)
    return layer


def colour_limit(values: np.ndarray) -> float:
    """The value at the top of the colour scale: the 99th percentile, and at least 2 (twice the even share)."""
    return max(2.0, float(np.nanpercentile(values, _TOP_PERCENTILE)))


def _cell_of(length: int, downsample: float, grid: PatchGrid, origin: float) -> np.ndarray:
    """Row (or column) of the grid in which each pixel's centre lies."""
    centre = (np.arange(length) + 0.5) * downsample - origin
    cell: np.ndarray = np.floor((centre - (grid.patch_level0 - grid.stride_level0) / 2) / grid.stride_level0)
    return cell.astype(int)
