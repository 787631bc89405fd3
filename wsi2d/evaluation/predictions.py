"""Predictions as a table anyone can read (schema in ``docs/formats.md``), checked when read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi2d.errors import RunError

TaskKind = Literal["classification", "survival"]

_PROBABILITY = "prob_"
_HAZARD = "hazard_"
_ANEW = "let `wsi2d train` make that of a run anew"


@dataclass(frozen=True)
class Prediction:
    """What a model says of one slide.

    Attributes:
        slide_id, case_id: slide and patient.
        fold: index of the fold whose model spoke, None for an ensemble.
        scores: class probabilities ``[classes]``, or hazards ``[bins]`` for survival.
        attention: float32 ``[N]``, one weight a patch, in the feature file's order.
        risk: for survival, higher is worse.
        label, time, event: what is known of the slide, where anything is.
    """

    slide_id: str
    case_id: str
    fold: int | None
    scores: NDArray[np.float64]
    attention: NDArray[np.float32]
    risk: float | None = None
    label: str | None = None
    time: float | None = None
    event: bool | None = None


@dataclass(frozen=True)
class PredictionTable:
    """Predictions with their truth.

    Attributes:
        kind: ``classification`` or ``survival``.
        classes: class names in the order of the probability columns; empty for survival.
        rows: columns ``slide_id``, ``case_id``, ``fold`` and, for classification, ``label`` and ``prob_<class>``; for
            survival ``time``, ``event`` (0 or 1) and ``risk`` (higher is worse).
    """

    kind: TaskKind
    classes: tuple[str, ...]
    rows: pd.DataFrame

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """``[N, classes]``, rows sum to 1."""
        return self.rows[[_PROBABILITY + c for c in self.classes]].to_numpy(float)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices ``[N]``."""
        return np.array([self.classes.index(label) for label in self.rows["label"]])

    def subset(self, rows: pd.DataFrame) -> PredictionTable:
        """The same kind of table with other rows."""
        return PredictionTable(self.kind, self.classes, rows)


def predictions_frame(predictions: list[Prediction], kind: TaskKind, classes: tuple[str, ...]) -> pd.DataFrame:
    """Predictions as the table that ``predictions.csv`` holds; what is unknown is left empty."""
    records = []
    for p in predictions:
        record: dict[str, object] = {"slide_id": p.slide_id, "case_id": p.case_id, "fold": p.fold}
        if kind == "classification":
            record["label"] = p.label
            record |= {_PROBABILITY + c: float(s) for c, s in zip(classes, p.scores, strict=True)}
        else:
            record |= {"time": p.time, "event": None if p.event is None else int(p.event), "risk": p.risk}
            record |= {f"{_HAZARD}{i}": float(h) for i, h in enumerate(p.scores, 1)}
        records.append(record)
    return pd.DataFrame.from_records(records)


def read_predictions(path: Path | str) -> PredictionTable:
    """Read a ``predictions.csv``, ours or anyone's with these columns.

    Raises:
        RunError: missing file or columns, unknown labels, numbers that are none, folds that are no whole numbers, or
            events that are neither 0 nor 1.
    """
    path = Path(path)
    try:
        rows = pd.read_csv(path, dtype={"slide_id": str, "case_id": str, "label": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise RunError(
            f"predictions {path}: cannot be read ({' '.join(str(error).split())}); save it as CSV in UTF-8, with a "
            f"header, or {_ANEW}"
        ) from error
    if rows.empty:
        raise RunError(f"predictions {path}: has no rows; put one in for each slide, or {_ANEW}")
    classes = tuple(c.removeprefix(_PROBABILITY) for c in rows.columns if c.startswith(_PROBABILITY))
    kind: TaskKind = "classification" if classes else "survival"
    needed = ("label", *(_PROBABILITY + c for c in classes)) if classes else ("time", "event", "risk")
    for name in ("slide_id", "case_id", "fold", *needed):
        if name not in rows:
            raise RunError(f"predictions {path}: no column '{name}'; see docs/formats.md for the schema")
    numeric = [c for c in needed if c != "label"]
    for name in numeric:
        numbers = pd.to_numeric(rows[name], errors="coerce")
        bad = ~np.isfinite(numbers.to_numpy(float))
        if bad.any():
            raise RunError(
                f"predictions {path}: slide '{rows['slide_id'][bad].iloc[0]}' has {name} '{rows[name][bad].iloc[0]}'; "
                f"{', '.join(numeric)} must hold numbers in every row"
            )
        rows[name] = numbers
    wrong = rows["fold"].astype(str).str.strip().ne("") & (pd.to_numeric(rows["fold"], errors="coerce") % 1 != 0)
    if wrong.any():
        raise RunError(
            f"predictions {path}: fold '{rows['fold'][wrong].iloc[0]}' is no whole number; leave it blank for an "
            "ensemble"
        )
    if kind == "survival" and not rows["event"].isin([0, 1]).all():
        raise RunError(f"predictions {path}: event must be 1 (it happened) or 0 in every row")
    if classes and not set(rows["label"]) <= set(classes):
        unknown = sorted(set(rows["label"]) - set(classes))
        raise RunError(
            f"predictions {path}: label '{unknown[0]}' has no column '{_PROBABILITY}{unknown[0]}'; mend the label "
            f"(there are {', '.join(classes)}) or add the column"
        )
    return PredictionTable(kind, classes, rows)
