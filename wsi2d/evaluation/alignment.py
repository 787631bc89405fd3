"""Two tables of predictions brought into one order, or refused where they do not predict the same."""

from __future__ import annotations

import numpy as np
import pandas as pd

from wsi2d.config import BagUnit
from wsi2d.errors import RunError
from wsi2d.evaluation.predictions import PredictionTable

_NAMES = {"slide": "slide", "case": "patient"}


def aligned(first: PredictionTable, second: PredictionTable, names: tuple[str, str], unit: BagUnit) -> PredictionTable:
    """The second table with its slides, or its patients, in the order of the first.

    Args:
        first, second: the tables.
        names: of the two, for errors.
        unit: ``slide``: each slide must be in both; ``case``: each patient, with whichever slides.

    Raises:
        RunError: they are not predictions of the same; the line names the first difference.
    """
    both, what = f"{names[0]} and {names[1]}", _NAMES[unit]
    if first.kind != second.kind:
        raise RunError(f"compare {both}: one is {first.kind}, the other {second.kind}; give two runs of one task")
    if set(first.classes) != set(second.classes):
        name = sorted(set(first.classes) ^ set(second.classes))[0]
        raise RunError(f"compare {both}: class '{name}' is in one of them only; give two runs of one task")
    a, b = (_by_id_and_fold(table, name, unit) for table, name in zip((first, second), names, strict=True))
    ids = [set(rows.index.get_level_values(0)) for rows in (a, b)]
    if ids[0] != ids[1]:
        only = sorted(ids[0] ^ ids[1])
        where = names[0] if only[0] in ids[0] else names[1]
        raise RunError(
            f"compare {both}: {len(only)} {what}s are in one of them only, the first is '{only[0]}' of {where}; give "
            f"runs on the same {what}s"
        )
    apart = sorted(set(a.index) ^ set(b.index))
    if apart:
        fold, name = apart[0][1], apart[0][0]
        raise RunError(
            f"compare {both}: {what} '{name}' is in fold {fold} of one of them only; give runs on the same splits"
        )
    _refuse_other_truth(first.kind, a, b, both, what)
    place = pd.Series(np.arange(len(a)), a.index)
    place = place[~place.index.duplicated()]
    rows = b.iloc[np.argsort(place.loc[b.index].to_numpy(), kind="stable")].reset_index(drop=True)
    return PredictionTable(first.kind, first.classes, rows)


def other_slides(first: PredictionTable, second: PredictionTable) -> int:
    """How many patients are predicted from other slides in the second table than in the first; those of whom a table
    names no slides are left out."""
    found: list[dict[str, set[str]]] = []
    for table in (first, second):
        slides: dict[str, set[str]] = {}
        for case, names in zip(table.rows["case_id"], table.slide_ids(), strict=True):
            slides.setdefault(case, set()).update(names)
        found.append({case: names for case, names in slides.items() if names != {case}})
    return sum(found[0][case] != found[1][case] for case in found[0].keys() & found[1].keys())


def _refuse_other_truth(kind: str, a: pd.DataFrame, b: pd.DataFrame, both: str, what: str) -> None:
    a, b = (rows[~rows.index.duplicated()] for rows in (a, b))
    b = b.loc[a.index]
    for column in ("case_id", *(["label"] if kind == "classification" else ["time", "event"])):
        other = a[column].to_numpy() != b[column].to_numpy()
        if other.any():
            row = int(np.flatnonzero(other)[0])
            raise RunError(
                f"compare {both}: {what} '{a.index[row][0]}' has {column} '{a[column].iloc[row]}' and "
                f"'{b[column].iloc[row]}'; give runs on the same cohort"
            )


def _by_id_and_fold(table: PredictionTable, name: str, unit: BagUnit) -> pd.DataFrame:
    fold = pd.to_numeric(table.rows["fold"], errors="coerce").fillna(0).astype(int)
    rows = table.rows.set_index(pd.MultiIndex.from_arrays([table.rows[f"{unit}_id"], fold], names=["id", "in_fold"]))
    if unit == "slide" and rows.index.has_duplicates:
        slide = rows.index[rows.index.duplicated()][0][0]
        raise RunError(f"predictions {name}: slide '{slide}' is there twice; leave one row of it in each fold")
    return rows
