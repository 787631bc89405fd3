"""Survival curves of a table of predictions, whichever of the two ways it holds them in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi2d.errors import RunError

HAZARD = "hazard_"
EDGE = "edge_"
CURVE = "surv_"
SURVIVAL = "survival_"


@dataclass(frozen=True)
class Curves:
    """Each row's probability of no event up to some times; between them it falls in a straight line.

    Attributes:
        times: ``[N, K]``, never falling along a row, in the unit of ``time``; the first is 0.
        survival: ``[N, K]``, from 1 down.
    """

    times: NDArray[np.float64]
    survival: NDArray[np.float64]

    @property
    def end(self) -> float:
        """The latest time that all rows know."""
        return float(self.times[:, -1].min())

    def at(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[N, T]`` at times ``[T]``; NaN past a row's last time."""
        rows = [np.interp(times, t, s, right=np.nan) for t, s in zip(self.times, self.survival, strict=True)]
        return np.stack(rows)


def read_curves(rows: pd.DataFrame, where: str = "predictions") -> Curves | None:
    """Curves from the columns ``surv_<time>``, else from ``edge_<i>`` with ``survival_<i>`` or ``hazard_<i>``.

    None where the table has none of these.

    Args:
        rows: a table with ``slide_id``.
        where: begins the line of an error.

    Raises:
        RunError: a number that is none, a probability outside 0 to 1, a curve that rises, an edge before the last one.
    """
    columns = [str(name) for name in rows]
    named = sorted((_suffix(name, CURVE, where), name) for name in columns if name.startswith(CURVE))
    if named:
        survival = _numbers(rows, [name for _, name in named], where)
        times = np.broadcast_to([time for time, _ in named], survival.shape)
    else:
        edges = sorted((_suffix(name, EDGE, where), name) for name in columns if name.startswith(EDGE))
        numbers = [int(i) for i, _ in edges]
        known = next((p for p in (SURVIVAL, HAZARD) if all(f"{p}{i}" in columns for i in numbers)), None)
        if not edges or known is None:
            return None
        times = _numbers(rows, [name for _, name in edges], where, blank=True)
        values = _numbers(rows, [f"{known}{i}" for i in numbers], where, blank=True)
        if known == SURVIVAL:
            survival = np.minimum.accumulate(np.where(np.isnan(times), 1.0, values), 1)
        else:
            survival = np.cumprod(1 - np.where(np.isnan(times), 0.0, values), 1)
        times = np.maximum.accumulate(np.nan_to_num(times, nan=-np.inf), 1)  # a fold of fewer bins leaves some blank
        if np.isinf(times[:, 0]).any():
            return None
    times = np.concatenate([np.zeros((len(rows), 1)), times], 1)
    survival = np.concatenate([np.ones((len(rows), 1)), survival], 1)
    if (np.diff(times, axis=1) < 0).any():
        raise RunError(f"{where}: times of a survival curve must not fall; put the edges in order, none below 0")
    wrong = ~((survival >= 0) & (survival <= 1)).all(1) | (np.diff(survival, axis=1) > 1e-9).any(1)
    if wrong.any():
        slide = rows["slide_id"].to_numpy()[wrong][0]
        raise RunError(
            f"{where}: slide '{slide}' has a survival curve that rises or leaves 0 to 1; mend its {CURVE}, "
            f"{SURVIVAL} or {HAZARD} columns, or leave them out"
        )
    return Curves(times, survival)


def _suffix(name: str, prefix: str, where: str) -> float:
    try:
        value = float(name.removeprefix(prefix))
    except ValueError:
        value = -1.0
    if not 0 <= value < np.inf or (prefix == EDGE and value != int(value)):
        what = "a time, as surv_12" if prefix == CURVE else "the number of a bin, as edge_1"
        raise RunError(f"{where}: column '{name}' must end in {what}; rename it")
    return value


def _numbers(rows: pd.DataFrame, names: list[str], where: str, *, blank: bool = False) -> NDArray[np.float64]:
    numbers = np.stack([pd.to_numeric(rows[name], errors="coerce").to_numpy(float) for name in names], 1)
    texts = rows[names].astype(str).apply(lambda column: column.str.strip()).to_numpy()
    wrong = ~np.isfinite(numbers) & ~(blank & ((texts == "") | (texts == "nan")))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise RunError(
            f"{where}: slide '{rows['slide_id'].to_numpy()[row]}' has {names[column]} '{texts[row, column]}'; it "
            "must be a number, or leave out all columns of the curve"
        )
    return numbers
