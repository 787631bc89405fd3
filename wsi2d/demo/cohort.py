"""The demo's cohort: every slide holds both kinds of patch in shares drawn alike; only their arrangement differs.

In one class the rarer kind forms a compact nest at a random place, in the other it is scattered over the tissue.
Survival depends on the same arrangement. A model that is blind to position has nothing to go by.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi2d.demo.painting import CELL_PX, MPP, Layout, Painter, write_slide
from wsi2d.errors import ConfigError
from wsi2d.files import write_text

ARRANGEMENTS = ("scattered", "nest")
HAZARD_RATIO = 8.0
_LEAST_OF_A_KIND = 6  # patients of each class and of each outcome, what five folds need
_LEAST_SLIDES = 14  # of 13 patients, so that there are as many
_TWO_SLIDES = 0.1  # share of patients with two slides
_TWO_PIECES = 0.3  # share of slides with two pieces of tissue
_AT_40X = 0.2  # share of slides scanned at twice the resolution
_POSITIVE_SHARE = (0.15, 0.25)
_MADE_WITH = "demo.json"
_CELLS_A_SIDE = (18, 22)
_OUTLINE_PX = 4
_MEDIAN_MONTHS = 40.0  # of the scattered class, before censoring
_CENSOR_MONTHS = (12.0, 120.0)


@dataclass(frozen=True)
class DemoCohort:
    """Where a demo cohort lies, and what the best possible answer to its survival question reaches.

    Attributes:
        slides: folder of slide files.
        table: the cohort CSV (``slide_id, case_id, arrangement, months, status``).
        arrangement_c_index: C-index over patients of knowing the arrangement and nothing else.
    """

    slides: Path
    table: Path
    arrangement_c_index: float


def make_demo_cohort(
    out: Path | str, *, slides: int = 60, seed: int = 0, on_slide: Callable[[], None] | None = None
) -> DemoCohort:
    """Write the demo's slides and cohort table; the same seed gives the same files. Slides that are there are kept.

    Args:
        out: folder; gets ``slides/`` and ``cohort.csv``.
        slides: how many, at least 14.
        seed: of everything random.
        on_slide: called after each slide.

    Raises:
        ConfigError: too few slides, a negative seed, or the folder holds another demo.
    """
    if slides < _LEAST_SLIDES:
        raise ConfigError(f"slides: the demo needs at least {_LEAST_SLIDES}, got {slides}")
    if seed < 0:
        raise ConfigError(f"seed: must be at least 0, got {seed}")
    out = Path(out)
    _claim_folder(out, {"slides": slides, "seed": seed})
    table = _cohort_table(slides, np.random.default_rng([seed, 0]))
    painter = Painter()
    for number, row in enumerate(table.itertuples()):
        path = out / "slides" / f"{row.slide_id}.tiff"
        if path.exists():
            continue
        generator = np.random.default_rng([seed, 1, number])
        scale = 2 if generator.random() < _AT_40X else 1
        picture = painter.paint(draw_layout(str(row.arrangement), generator), generator, scale=scale)
        write_slide(picture, path, mpp=MPP / scale)
        if on_slide:
            on_slide()
    write_text(out / "cohort.csv", table.to_csv(index=False))
    return DemoCohort(out / "slides", out / "cohort.csv", _arrangement_c_index(table))


def _claim_folder(out: Path, made_with: dict[str, int]) -> None:
    """Make the folder, or check that what it holds is this very demo."""
    path = out / _MADE_WITH
    if path.exists():
        earlier = json.loads(path.read_text("utf-8"))
        if earlier != made_with:
            raise ConfigError(
                f"out {out}: holds the demo of {earlier['slides']} slides, seed {earlier['seed']}; give another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise ConfigError(f"out {out}: is not empty; give another --out")
    (out / "slides").mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(made_with) + "\n")


def draw_layout(arrangement: str, generator: np.random.Generator) -> Layout:
    """A random outline, and the rarer kind of patch in a nest or scattered over the cells wholly inside it."""
    rows, cols = generator.integers(_CELLS_A_SIDE[0], _CELLS_A_SIDE[1] + 1, 2)
    # Slides do not end on the patch grid, but on a multiple of 4 px, so that their levels are exactly 2 and 4 times
    # coarser and a patch read from any of them holds its own pixels alone.
    height, width = (int(n) * CELL_PX + 4 * int(generator.integers(CELL_PX // 4)) for n in (rows, cols))
    pieces = _pieces(height, width, generator)
    inside = [_cells_inside(piece) for piece in pieces]
    every = np.concatenate(inside)
    count = round(generator.uniform(*_POSITIVE_SHARE) * len(every))
    if arrangement == "nest":
        home = inside[int(np.argmax([len(cells) for cells in inside]))]
        chosen = _nest(home, min(count, len(home)), generator)
    else:
        chosen = every[generator.choice(len(every), count, replace=False)]
    positive = np.zeros((height // CELL_PX + 1, width // CELL_PX + 1), bool)
    positive[tuple(chosen.T)] = True
    return Layout(np.any(pieces, axis=0), positive)


def _pieces(height: int, width: int, generator: np.random.Generator) -> list[NDArray[np.bool_]]:
    if generator.random() >= _TWO_PIECES:
        return [_blob(height, width, (0.5, 0.5), (0.45, 0.45), generator)]
    # Along the longer side: a large piece and a smaller one, with a gap.
    pieces = [((0.33, 0.5), (0.29, 0.43)), ((0.82, 0.5), (0.13, 0.3))]
    if width > height:
        pieces = [((x, y), (b, a)) for (y, x), (a, b) in pieces]
    return [_blob(height, width, centre, radius, generator) for centre, radius in pieces]


def _blob(
    height: int, width: int, centre: tuple[float, float], radius: tuple[float, float], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """An irregular outline around a centre, in steps of a few px; centre and radii are shares of height and width."""
    rows, cols = -(-height // _OUTLINE_PX), -(-width // _OUTLINE_PX)
    y = ((np.arange(rows) + 0.5) * _OUTLINE_PX / height - centre[0])[:, None] / radius[0]
    x = ((np.arange(cols) + 0.5) * _OUTLINE_PX / width - centre[1])[None] / radius[1]
    angle = np.arctan2(y, x)
    edge = np.full_like(angle, 0.85)
    for wave in range(2, 12):
        edge += generator.normal(0, 0.1 / wave) * np.cos(wave * angle + generator.uniform(0, 2 * np.pi))
    outline = np.hypot(y, x) < np.minimum(edge, 1.0)
    return outline.repeat(_OUTLINE_PX, 0).repeat(_OUTLINE_PX, 1)[:height, :width]


def _cells_inside(piece: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(row, col) of the cells that lie wholly on a piece of tissue."""
    rows, cols = piece.shape[0] // CELL_PX, piece.shape[1] // CELL_PX
    blocks = piece[: rows * CELL_PX, : cols * CELL_PX].reshape(rows, CELL_PX, cols, CELL_PX)
    return np.argwhere(blocks.all((1, 3)))


def _nest(cells: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The cells nearest to a random one, with a ragged edge."""
    centre = cells[generator.integers(len(cells))]
    distance = np.hypot(*(cells - centre).T) + generator.normal(0, 0.4, len(cells))
    return cells[np.argsort(distance)[:count]]


def _cohort_table(slides: int, generator: np.random.Generator) -> pd.DataFrame:
    """One row a slide; some patients have two. Classes are balanced over patients, survival is drawn by patient, and
    drawn again in the rare case that too few die or too few are censored for the folds."""
    doubles = round(slides * _TWO_SLIDES / (1 + _TWO_SLIDES))
    patients = slides - doubles
    arrangement = generator.permutation(np.resize(ARRANGEMENTS, patients))
    rate = np.log(2) / _MEDIAN_MONTHS * np.where(arrangement == "nest", HAZARD_RATIO, 1.0)
    dead = np.zeros(patients, bool)
    while min(dead.sum(), (~dead).sum()) < _LEAST_OF_A_KIND:
        death = generator.exponential(1 / rate)
        censoring = generator.uniform(*_CENSOR_MONTHS, patients)
        dead = death <= censoring
    months = np.maximum(np.minimum(death, censoring).round(1), 0.1)
    status = np.where(dead, "dead", "alive")
    two = set(generator.choice(patients, doubles, replace=False).tolist())
    rows = []
    for p in range(patients):
        for part in range(2 if p in two else 1):
            case = f"P{p + 1:03d}"
            rows.append((f"{case}-{'AB'[part]}", case, arrangement[p], months[p], status[p]))
    return pd.DataFrame(rows, columns=["slide_id", "case_id", "arrangement", "months", "status"])


def _arrangement_c_index(table: pd.DataFrame) -> float:
    """What knowing the arrangement, and nothing else, is worth."""
    from wsi2d.evaluation.survival import survival_metrics

    cases = table.drop_duplicates("case_id")
    risk = (cases["arrangement"] == "nest").to_numpy().astype(np.float64)
    return survival_metrics(cases["months"].to_numpy(float), (cases["status"] == "dead").to_numpy(), risk)["c_index"]
