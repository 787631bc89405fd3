"""Predictions as a table anyone can read (schema in ``docs/predictions.md``), checked when read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi2d.data.cohort_bags import SLIDES_APART
from wsi2d.errors import RunError
from wsi2d.evaluation.curve_columns import EDGE, HAZARD, SURVIVAL, read_curves
from wsi2d.evaluation.curves import SurvivalCurve

TaskKind = Literal["classification", "survival"]

PROBABILITY = "prob_"
_MEDIAN = "median_time"
RISK_CUT = "risk_cut"
JOINED_SLIDES = "joined_slides"
_TEXTS = ("slide_id", "case_id", "label", JOINED_SLIDES)
_ROUNDED = 1e-3  # by how much probabilities may miss 1
_ANEW = "let `wsi2d train` make that of a run anew"


@dataclass(frozen=True)
class Prediction:
    """What a model says of one slide, or of a patient whose slides are one bag.

    Attributes:
        slide_id, case_id: slide and patient; the patient twice where the slides are joined.
        fold: index of the fold whose model spoke, None for an ensemble.
        scores: class probabilities ``[classes]``, or for survival hazards ``[bins]``, empty where the model puts out a
            log-risk.
        attention: float32 ``[N]``, one weight a patch, in the feature file's order; those of several slides one after
            the other.
        risk: for survival, higher is worse.
        label, time, event: what is known of the slide, where anything is.
        curve: for survival, the probability of no event up to any time; None where it is not known.
        edges: the times at which the curve is tabulated: the inner edges of the fold's bins, in the cohort's unit.
        risk_cut: median risk of the patients that the model was trained on.
        joined_slides: the slides of the patient's bag; empty where the prediction is of a slide.
        joined_patches: how many patches each of them has.
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
    curve: SurvivalCurve | None = None
    edges: tuple[float, ...] = ()
    risk_cut: float | None = None
    joined_slides: tuple[str, ...] = ()
    joined_patches: tuple[int, ...] = ()

    def attention_by_slide(self) -> dict[str, NDArray[np.float32]]:
        """Attention of each slide's patches; it sums to 1 over all of them together."""
        if not self.joined_slides:
            return {self.slide_id: self.attention}
        parts = np.split(self.attention, np.cumsum(self.joined_patches)[:-1])
        return dict(zip(self.joined_slides, parts, strict=True))


@dataclass(frozen=True)
class PredictionTable:
    """Predictions with their truth.

    Attributes:
        kind: ``classification`` or ``survival``.
        classes: class names in the order of the probability columns; empty for survival.
        rows: columns ``slide_id``, ``case_id``, ``fold`` and, for classification, ``label`` and ``prob_<class>``; for
            survival ``time``, ``event`` (0 or 1) and ``risk`` (higher is worse), and where they are known ``risk_cut``
            and the columns of survival curves (:func:`wsi2d.evaluation.curve_columns.read_curves`); where a row is a
            patient's, ``joined_slides``.
    """

    kind: TaskKind
    classes: tuple[str, ...]
    rows: pd.DataFrame

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """``[N, classes]``, rows sum to 1."""
        return self.rows[[PROBABILITY + c for c in self.classes]].to_numpy(float)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices ``[N]``."""
        return np.array([self.classes.index(label) for label in self.rows["label"]])

    @property
    def joined(self) -> bool:
        """Whether a row is a patient, of all whose slides a model made one bag."""
        return JOINED_SLIDES in self.rows

    def slide_ids(self) -> list[tuple[str, ...]]:
        """The slides that went into each row."""
        if not self.joined:
            return [(name,) for name in self.rows["slide_id"]]
        return [tuple(names.split(SLIDES_APART)) for names in self.rows[JOINED_SLIDES]]

    def subset(self, rows: pd.DataFrame) -> PredictionTable:
        """The same kind of table with other rows."""
        return PredictionTable(self.kind, self.classes, rows)


def predictions_frame(predictions: list[Prediction], kind: TaskKind, classes: tuple[str, ...]) -> pd.DataFrame:
    """Predictions as the table that ``predictions.csv`` holds; what is unknown is left empty."""
    records = []
    for p in predictions:
        record: dict[str, object] = {"slide_id": p.slide_id, "case_id": p.case_id, "fold": p.fold}
        record |= {JOINED_SLIDES: SLIDES_APART.join(p.joined_slides)} if p.joined_slides else {}
        if kind == "classification":
            record["label"] = p.label
            record |= {PROBABILITY + c: float(s) for c, s in zip(classes, p.scores, strict=True)}
        else:
            record |= {"time": p.time, "event": None if p.event is None else int(p.event), "risk": p.risk}
            record |= {} if p.risk_cut is None else {RISK_CUT: p.risk_cut}
            record |= {f"{HAZARD}{i}": float(h) for i, h in enumerate(p.scores, 1)}
            if p.curve is not None:
                record[_MEDIAN] = p.curve.median()
                record |= {f"{EDGE}{i}": time for i, time in enumerate(p.edges, 1)}
                record |= {f"{SURVIVAL}{i}": float(s) for i, s in enumerate(p.curve.at(p.edges), 1)}
        records.append(record)
    return pd.DataFrame.from_records(records)


def read_predictions(path: Path | str) -> PredictionTable:
    """Read a ``predictions.csv``, ours or anyone's with these columns.

    Raises:
        RunError: missing file or columns, unknown labels, numbers that are none, folds that are no whole numbers,
            events that are neither 0 nor 1, times below 0, a cut that differs within a fold, survival curves that rise,
            a blank patient, a slide with two rows in a fold, a patient with several times or events, probabilities that
            are none, or a patient with two rows in a fold where a row is a patient.
    """
    path = Path(path)
    try:
        rows = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False)
    except (OSError, ValueError) as error:
        raise RunError(
            f"predictions {path}: cannot be read ({' '.join(str(error).split())}); save it as CSV in UTF-8, with a "
            f"header, or {_ANEW}"
        ) from error
    if rows.empty:
        raise RunError(f"predictions {path}: has no rows; put one in for each slide, or {_ANEW}")
    classes = tuple(c.removeprefix(PROBABILITY) for c in rows.columns if c.startswith(PROBABILITY))
    kind: TaskKind = "classification" if classes else "survival"
    needed = ("label", *(PROBABILITY + c for c in classes)) if classes else ("time", "event", "risk")
    for name in ("slide_id", "case_id", "fold", *needed):
        if name not in rows:
            raise RunError(f"predictions {path}: no column '{name}'; see docs/predictions.md for the schema")
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
    _check_ids(rows, path)
    if JOINED_SLIDES in rows:
        _check_joined(rows, path)
    if kind == "survival":
        _check_survival(rows, path)
    if classes and not set(rows["label"]) <= set(classes):
        unknown = sorted(set(rows["label"]) - set(classes))
        raise RunError(
            f"predictions {path}: label '{unknown[0]}' has no column '{PROBABILITY}{unknown[0]}'; mend the label "
            f"(there are {', '.join(classes)}) or add the column"
        )
    if classes:
        _check_probabilities(rows, classes, path)
    return PredictionTable(kind, classes, rows)


def _check_ids(rows: pd.DataFrame, path: Path) -> None:
    blank = rows["case_id"].str.strip() == ""
    if blank.any():
        first = int(np.argmax(blank))
        raise RunError(
            f"predictions {path}: line {first + 2}, slide '{rows['slide_id'].iloc[first]}', has no case_id; name its "
            "patient, or repeat slide_id where each slide is a patient of its own"
        )
    twice = rows.duplicated(["slide_id", "fold"]) & (JOINED_SLIDES not in rows)
    if twice.any():
        raise RunError(
            f"predictions {path}: slide '{rows['slide_id'][twice].iloc[0]}' is there twice; leave one row of it in "
            "each fold"
        )


def _check_probabilities(rows: pd.DataFrame, classes: tuple[str, ...], path: Path) -> None:
    values = rows[[PROBABILITY + c for c in classes]].to_numpy(float)
    for wrong, what in (
        (((values < -_ROUNDED) | (values > 1 + _ROUNDED)).any(1), "a probability outside 0 to 1"),
        (np.abs(values.sum(1) - 1) > _ROUNDED, "probabilities that do not sum to 1"),
    ):
        if wrong.any():
            first = int(np.argmax(wrong))
            raise RunError(
                f"predictions {path}: slide '{rows['slide_id'].iloc[first]}' has {what} "
                f"({', '.join(f'{v:g}' for v in values[first])}); give probabilities of all classes, not logits"
            )


def _check_joined(rows: pd.DataFrame, path: Path) -> None:
    twice = rows.duplicated(["case_id", "fold"])
    if twice.any():
        raise RunError(
            f"predictions {path}: patient '{rows['case_id'][twice].iloc[0]}' has two rows in one fold, though "
            f"{JOINED_SLIDES} says that a row is a patient; leave one of them, or leave that column out"
        )


def _check_survival(rows: pd.DataFrame, path: Path) -> None:
    if not rows["event"].isin([0, 1]).all():
        raise RunError(f"predictions {path}: event must be 1 (it happened) or 0 in every row")
    if (rows["time"] < 0).any():
        slide = rows["slide_id"][rows["time"] < 0].iloc[0]
        raise RunError(f"predictions {path}: slide '{slide}' has a time below 0; mend it, follow-up begins at 0")
    outcomes = rows[["case_id", "time", "event"]].drop_duplicates()
    several = outcomes["case_id"][outcomes["case_id"].duplicated()]
    if len(several):
        raise RunError(
            f"predictions {path}: patient '{several.iloc[0]}' has rows with different times or events; give all his "
            "rows the same"
        )
    if RISK_CUT in rows and rows[RISK_CUT].astype(str).str.strip().isin(["", "nan"]).any():
        del rows[RISK_CUT]  # some folds were trained before cuts were kept
    if RISK_CUT in rows:
        cut = pd.to_numeric(rows[RISK_CUT], errors="coerce")
        if not np.isfinite(cut.to_numpy(float)).all() or (cut.groupby(rows["fold"]).nunique() > 1).any():
            raise RunError(
                f"predictions {path}: {RISK_CUT} must be one number in all rows of a fold; mend it, or leave the "
                "column out"
            )
        rows[RISK_CUT] = cut
    read_curves(rows, f"predictions {path}")
