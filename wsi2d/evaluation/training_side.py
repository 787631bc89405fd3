"""What a run folder knows of the patients that each fold was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from wsi2d.data.cohort import plain_slide_id
from wsi2d.data.splits import read_splits
from wsi2d.errors import RunError
from wsi2d.evaluation.survival import Outcomes


def training_outcomes(run: Path) -> dict[int, Outcomes]:
    """Time and event of each fold's training patients, from a run's ``cohort.csv`` and ``splits/``; empty where the
    folder has none of these.

    Raises:
        RunError: the cohort's table cannot be used.
        SplitError: nor can the splits.
    """
    path, splits = run / "cohort.csv", run / "splits"
    if not (path.exists() and splits.is_dir()):
        return {}
    try:
        cohort = pd.read_csv(path, dtype={"slide_id": str, "case_id": str}, keep_default_na=False)
        cases = cohort[["case_id", "time", "event"]].assign(
            time=pd.to_numeric(cohort["time"]), event=cohort["event"].astype(str).isin(["True", "1"])
        )
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{path}: no table with slide_id, case_id, time and event; restore it, or delete it and do without the "
            "training side's censoring"
        ) from error
    outcomes = {}
    for fold in read_splits(splits):
        ids, slides = set(fold.train), set(map(plain_slide_id, fold.train))
        known = cases[cohort["case_id"].isin(ids) | cohort["slide_id"].isin(slides)].drop_duplicates("case_id")
        if len(known):
            outcomes[fold.index] = known["time"].to_numpy(np.float64), known["event"].to_numpy(bool)
    return outcomes
