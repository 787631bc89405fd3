"""Receptive fields drawn: a panel a run, all on one logarithmic scale, axes in patches and in micrometres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi2d.errors import ConfigError
from wsi2d.explain.canvas import add_title, check_suffix, save_figure
from wsi2d.explain.receptive_field import ReceptiveField
from wsi2d.explain.receptive_runs import RunField

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, LogNorm
    from matplotlib.figure import Figure

COLOUR_MAP = "viridis"
_UNSEEN, _NONE, _MARK = "#d4d4d4", "#ffffff", "#ff2d20"
_PANEL_IN = 3.5  # side of a panel with its axes, inches
_DECADES = 5  # that the colour scale spans at most
_SHOWN = 0.99  # share of the gradient that the window takes in, of every run
_LEAST, _MOST = 3, 250  # cells that a window shows to each side of the centre


def receptive_picture(fields: Sequence[RunField], out: Path, *, columns: int = 2, reach: int | None = None) -> Figure:
    """Draw the fields of some runs and write the picture.

    Args:
        fields: one a panel.
        out: png, pdf or svg.
        columns: panels beside each other.
        reach: cells shown to each side of the centre; by default as many as 99 % of every run's gradient need.

    Raises:
        ConfigError: the suffix is none of these, no fields, or a number that cannot be drawn.
        StorageError: it cannot be written.
    """
    check_drawing(out, len(fields), columns=columns, reach=reach)
    figure = draw(fields, columns=columns, reach=reach or window_of([f.field for f in fields]))
    save_figure(figure, out)
    return figure


def check_drawing(out: Path, panels: int, *, columns: int, reach: int | None) -> None:
    """Refuse what cannot be drawn, before anything is measured for it; arguments as of :func:`receptive_picture`.

    Raises:
        ConfigError: the suffix cannot be drawn, there are no panels, or a number makes no sense.
    """
    check_suffix(out)
    if panels < 1:
        raise ConfigError("receptive field: there are no runs; give one or more")
    if columns < 1:
        raise ConfigError(f"receptive field: columns must be at least 1, got {columns}")
    if reach is not None and not 1 <= reach <= _MOST:
        raise ConfigError(f"receptive field: reach must be from 1 to {_MOST}, got {reach}")


def draw(fields: Sequence[RunField], *, columns: int, reach: int) -> Figure:
    """A figure of the fields within ``reach`` cells to each side of the centre."""
    from matplotlib import rc_context
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    columns = min(columns, len(fields))
    lines = math.ceil(len(fields) / columns)
    windows = [on_window(f.field, reach) for f in fields]
    scale = scale_of(windows)
    with rc_context({"font.size": 11}):
        figure = Figure(figsize=(_PANEL_IN * columns + 0.3, (_PANEL_IN + 0.3) * lines + 1.1), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes in panels[len(fields) :]:
            axes.set_axis_off()
        for axes, field, window in zip(panels, fields, windows, strict=False):
            _panel(axes, field, window, scale, reach)
        bar = figure.colorbar(
            ScalarMappable(scale, _colours()), ax=list(panels), location="bottom", aspect=40, shrink=0.9, pad=0.02
        )
        bar.set_label("share of the gradient that a patch has")
        _legend(figure)
        add_title(figure, "Effective receptive field", fontsize=12)
    return figure


def on_window(field: ReceptiveField, reach: int) -> NDArray[np.float64]:
    """The share of each offset up to ``reach`` cells away in either direction, ``[2 reach + 1, 2 reach + 1]`` with the
    centre in the middle; NaN where no patch was seen."""
    window = np.full((2 * reach + 1, 2 * reach + 1), np.nan)
    near = (np.abs(field.offsets) <= reach).all(1)
    window[tuple((field.offsets[near] + reach).T)] = field.share[near]
    return window


def window_of(fields: Sequence[ReceptiveField]) -> int:
    """How many cells to each side of the centre are worth showing, of all fields."""
    return int(np.clip(math.ceil(max(field.radius_of(_SHOWN) for field in fields)), _LEAST, _MOST))


def scale_of(windows: Sequence[NDArray[np.float64]]) -> LogNorm:
    """One logarithmic scale for all windows: from the largest share down to the smallest, five decades at most."""
    from matplotlib.colors import LogNorm

    values = np.concatenate([window[window > 0] for window in windows])
    top = float(values.max())
    return LogNorm(min(max(float(values.min()), top * 10.0**-_DECADES), top / 10), top)


def _panel(axes: Axes, field: RunField, window: NDArray[np.float64], scale: LogNorm, reach: int) -> None:
    """One run: its window, the centre, the circles of half and of nine tenths, both axes."""
    from matplotlib.patches import Circle

    least = float(scale.vmin or 0)
    shown = np.where(window > 0, np.maximum(window, least), window)
    shown[window == 0] = least / 10  # below the scale: no gradient at all
    edge = reach + 0.5
    axes.imshow(
        np.ma.masked_invalid(shown), cmap=_colours(), norm=scale, extent=(-edge, edge, edge, -edge),
        interpolation="nearest",
    )  # fmt: skip
    axes.plot(0, 0, "+", color=_MARK, mew=1.5, ms=9)
    numbers = field.summary
    for radius, style in ((numbers.radius_50, "-"), (numbers.radius_90, "--")):
        if radius > 0:
            axes.add_patch(Circle((0, 0), radius, fill=False, color=_MARK, lw=1.1, ls=style))
    axes.set(xlim=(-edge, edge), ylim=(edge, -edge), xlabel="patches across", ylabel="patches down")
    axes.set_title(panel_title(field).replace("$", r"\$"), fontsize=11, linespacing=1.3)
    if field.pitch_um is not None:
        _micrometres(axes, field.pitch_um, edge)


def panel_title(field: RunField) -> str:
    """The run, whether it was trained, and how far it sees."""
    if field.field.single_point:
        return f"{field.title}\na single point: each patch alone"
    numbers = field.summary
    where = [_where(radius, field.pitch_um) for radius in (numbers.radius_50, numbers.radius_90)]
    return f"{field.title}\n50 % {where[0]},\n90 % {where[1]}"


def _where(cells: float, pitch_um: float | None) -> str:
    """Within which distance, in words."""
    if cells == 0:
        return "in the patch itself"
    patches = f"within {cells:.3g} patch{'' if cells == 1 else 'es'}"
    if pitch_um is None:
        return patches
    size = cells * pitch_um
    return f"{patches} ({size / 1000:.3g} mm)" if size >= 1000 else f"{patches} ({size:.3g} µm)"


def _micrometres(axes: Axes, pitch_um: float, edge: float) -> None:
    """The same lengths above and to the right, in µm, or in mm where that is shorter."""
    unit, size = ("mm", pitch_um / 1000) if edge * pitch_um >= 1000 else ("µm", pitch_um)
    both = (lambda patches: patches * size, lambda length: length / size)
    above, right = axes.secondary_xaxis("top", functions=both), axes.secondary_yaxis("right", functions=both)
    above.set_xlabel(unit)
    right.set_ylabel(unit)


def _colours() -> Colormap:
    from matplotlib import colormaps

    return colormaps[COLOUR_MAP].with_extremes(bad=_UNSEEN, under=_NONE)


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure.legend(
        handles=[
            Line2D([], [], ls="", marker="+", color=_MARK, mew=1.5, ms=9, label="the centre"),
            Line2D([], [], color=_MARK, label="holds 50 %"),
            Line2D([], [], color=_MARK, ls="--", label="holds 90 %"),
            Patch(fc=_NONE, ec="0.4", label="no gradient"),
            Patch(fc=_UNSEEN, ec="0.4", label="no tissue seen"),
        ],
        loc="outside lower center", ncols=3, frameon=False, fontsize=10, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
