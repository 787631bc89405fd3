"""What is said of survival beyond single numbers: time points, calibration, groups of high and low risk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from wsi2d.config import EvaluationConfig
from wsi2d.evaluation.predictions import RISK_CUT
from wsi2d.evaluation.risk_groups import RiskGroups, kaplan_meier, risk_groups
from wsi2d.evaluation.survival import SurvivalTable

_MOST_GROUPS, _PATIENTS_A_GROUP = 5, 10


@dataclass(frozen=True)
class CalibrationGroup:
    """Patients of like predicted risk: the share with an event up to the time point, expected and observed.

    Attributes:
        patients: how many.
        expected: mean of the predictions.
        observed: by Kaplan-Meier; NaN where nobody is followed that long.
        interval: of the observed share.
    """

    patients: int
    expected: float
    observed: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class SurvivalDetails:
    """Beside the metrics of a survival table.

    Attributes:
        at: time of ``auc_at``, ``observed_expected`` and the calibration, in the unit of ``time``.
        censoring_from: whose censoring weighs each fold's numbers: ``training`` patients', or the ``predictions``' own.
            Pooled numbers always take the predictions' own.
        brier_times: first and last time of ``brier_integrated``; None where there are no curves.
        calibration: groups of all folds' patients, from low to high; empty where there are no curves.
        risk_groups: high against low.
    """

    at: float
    censoring_from: str
    brier_times: tuple[float, float] | None
    calibration: tuple[CalibrationGroup, ...]
    risk_groups: RiskGroups


def survival_details(
    patients: SurvivalTable, rows: pd.DataFrame, config: EvaluationConfig, *, trained: bool
) -> SurvivalDetails:
    """Calibration and risk groups of all folds' patients.

    Args:
        patients: ``[N]``.
        rows: the same patients with ``fold`` and, where it is known, ``risk_cut``.
        config: coverage, and a cut where one is given.
        trained: the training patients' outcomes are known.
    """
    cuts = rows[RISK_CUT].to_numpy(float) if RISK_CUT in rows else None
    groups = risk_groups(
        patients.time, patients.event, patients.risk, rows["fold"].to_numpy(),
        cut=config.cut, training_cuts=cuts, confidence=config.confidence,
    )  # fmt: skip
    times = (float(patients.grid[0]), float(patients.grid[-1])) if len(patients.grid) > 1 else None
    calibration = _calibration(patients, config.confidence)
    return SurvivalDetails(patients.at, "training" if trained else "predictions", times, calibration, groups)


def _calibration(patients: SurvivalTable, confidence: float) -> tuple[CalibrationGroup, ...]:
    if patients.at_survival is None or not np.isfinite(patients.at_survival).all():
        return ()
    count = min(_MOST_GROUPS, max(1, len(patients.time) // _PATIENTS_A_GROUP))
    parts = np.array_split(np.argsort(-patients.at_survival, kind="stable"), count)
    found = []
    for part in parts:
        time, event = patients.time[part], patients.event[part]
        observed, low, high = math.nan, math.nan, math.nan
        if time.max() >= patients.at:
            curve = kaplan_meier(time, event, confidence)
            step = int(np.searchsorted(curve.time, patients.at, side="right")) - 1
            observed, low, high = 1 - curve.survival[step], 1 - curve.high[step], 1 - curve.low[step]
        expected = float(1 - patients.at_survival[part].mean())
        found.append(CalibrationGroup(len(part), expected, observed, (low, high)))
    return tuple(found)
