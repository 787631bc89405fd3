"""Pictures of the relations: accuracy against distance, a line a model."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from relation_runs import CELLS, Row, accuracies
from relations import RELATIONS
from scipy.optimize import isotonic_regression

from wsi2d.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"marks": "marks under noise", "mosaic": "mosaic of stained tissue"}
_LEAST = 0.4  # the lowest accuracy that is shown
_APART = 0.042  # labels, in units of accuracy
_DPI, _COLOURS = 120, 256


@dataclass(frozen=True)
class Style:
    """How a model is drawn: colour and dashes by what it reads, a marker of its own."""

    colour: str
    dashes: str
    marker: str


# Colours by M. Okabe and K. Ito, "Color universal design" (2008): told apart with every kind of colour vision.
_PLANE, _FRONT, _CROSS, _LINE, _LOCAL = "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#767676"
STYLES = {
    "mamba2d-mil": Style(_PLANE, "-", "o"),
    "mamba2d-1": Style(_PLANE, "-", "^"),
    "mamba2d-shared": Style(_PLANE, "-", "s"),
    "mamba2d-causal": Style(_PLANE, "-", "d"),
    "wavefront": Style(_FRONT, "-.", "v"),
    "both-ways": Style(_LINE, "--", "D"),
    "raster-4": Style(_LINE, "--", "P"),
    "cross": Style(_CROSS, "--", "s"),
    "one-row": Style(_LINE, "--", "d"),
    "raster": Style(_LINE, "--", ">"),
    "serpentine": Style(_LINE, "--", "X"),
    "raster-causal": Style(_LINE, "--", "<"),
    "both-ways-causal": Style(_LINE, "--", "h"),
    "convolution": Style(_LOCAL, ":", "p"),
    "convolution-deep": Style(_LOCAL, ":", "*"),
    "order-free": Style(_LOCAL, ":", "."),
}


def spread_apart(values: Iterable[float], least: float, lowest: float, highest: float) -> list[float]:
    """Places for labels near values: in the same order, so far apart, and between two bounds where there is room."""
    wanted = np.array(list(values), float)
    order = np.argsort(wanted, kind="stable")
    steps = least * np.arange(len(wanted))
    # Seen from an upright pile, the nearest places that keep their order are a monotone regression.
    flat = isotonic_regression(wanted[order] - steps).x
    flat = np.clip(flat, lowest, max(lowest, highest - least * max(0, len(wanted) - 1)))
    places = np.empty(len(wanted))
    places[order] = flat + steps
    return places.tolist()


def draw_panel(axes: Axes, rows: list[Row], task: str, cells: str) -> None:
    """Every model on one task: its mean over seeds, a dot a seed, and a band from the lowest to the highest."""
    relation = RELATIONS[task]
    distances = relation.tested
    names = [name for name in STYLES if any(row["model"] == name for row in rows)]
    ends = []
    for name in names:
        mine, style = [row for row in rows if row["model"] == name], STYLES[name]
        values = np.array([accuracies(mine, [d]) for d in distances])
        axes.fill_between(distances, values.min(1), values.max(1), color=style.colour, alpha=0.06, lw=0)
        axes.plot(distances, values, ls="", marker=".", ms=2.5, color=style.colour, alpha=0.6)
        axes.plot(
            distances, values.mean(1), color=style.colour, ls=style.dashes, marker=style.marker, lw=1.4, ms=4.5,
            mec="white", mew=0.4, label=name,
        )  # fmt: skip
        ends.append(float(values[-1].mean()))
    labels = spread_apart(ends, _APART, _LEAST + 0.01, 1.01)
    for name, end, label in zip(names, ends, labels, strict=True):
        axes.annotate(
            name, (distances[-1], end), (1.05, label), textcoords=axes.get_yaxis_transform(), va="center", fontsize=8,
            color=STYLES[name].colour, annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "lw": 0.5, "color": STYLES[name].colour, "relpos": (0, 0.5), "shrinkA": 1,
                "shrinkB": 3,
            },
        )  # fmt: skip
    axes.axhline(0.5, color="black", lw=0.6, zorder=0)
    axes.axvspan(relation.trained[1] + 0.25, distances[-1] + 0.4, color="black", alpha=0.05, lw=0)
    axes.text(relation.trained[1] + 0.4, _LEAST + 0.01, "beyond training", fontsize=7.5, color="#444444", va="bottom")
    axes.set_xlim(distances[0] - 0.4, distances[-1] + 0.4)
    axes.set_ylim(_LEAST, 1.02)
    axes.set_xticks(distances)
    axes.set_title(TITLES[cells], fontsize=9.5)
    axes.set_xlabel("distance, cells")
    axes.spines[["top", "right"]].set_visible(False)


def draw_figure(rows: list[Row], task: str, out: Path) -> None:
    """A picture of one task, a panel a look of cells."""
    from matplotlib.figure import Figure

    panels = [cells for cells in CELLS if any((row["task"], row["cells"]) == (task, cells) for row in rows)]
    figure = Figure(figsize=(0.4 + 5.0 * len(panels), 4.0), layout="constrained")
    grid: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, cells in zip(grid[0], panels, strict=True):
        draw_panel(axes, [row for row in rows if (row["task"], row["cells"]) == (task, cells)], task, cells)
    grid[0, 0].set_ylabel("accuracy, mean and range of seeds")
    figure.suptitle("\n".join(textwrap.wrap(f"{task}: {RELATIONS[task].about}", 66 * len(panels))), fontsize=10)
    save_small(figure, out)


def save_small(figure: Figure, out: Path) -> None:
    """Write a PNG with as many colours as such a picture needs, complete or absent."""
    picture, small = io.BytesIO(), io.BytesIO()
    figure.savefig(picture, dpi=_DPI, format="png")
    Image.open(picture).convert("RGB").quantize(_COLOURS).save(small, "PNG", optimize=True)
    with whole_file(out) as part:
        part.write_bytes(small.getvalue())


def draw_figures(rows: list[Row], folder: Path) -> list[Path]:
    """``relation-<task>.png`` of each task that has results; returns what was written."""
    tasks = [task for task in RELATIONS if any(row["task"] == task for row in rows)]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"relation-{task}.png" for task in tasks]
    for task, path in zip(tasks, paths, strict=True):
        draw_figure([row for row in rows if row["task"] == task], task, path)
    return paths
