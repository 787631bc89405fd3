"""What a run folder says of the patients that were trained on."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wsi2d.config import EvaluationConfig
from wsi2d.errors import RunError
from wsi2d.evaluation.evaluate import evaluate_table
from wsi2d.evaluation.predictions import read_predictions
from wsi2d.evaluation.training_side import training_outcomes

COHORT = "slide_id,case_id,time,event,patches\n01,a,3.5,True,9\n02,a,3.5,True,9\n03,b,8.0,False,9\n04,c,2.0,False,9\n"


def run_folder(folder: Path, cohort: str = COHORT, train: tuple[str, ...] = ("a", "b")) -> Path:
    (folder / "splits").mkdir()
    rows = "".join(f"{i},{case},{'c' if i == 0 else ''},\n" for i, case in enumerate(train))
    (folder / "splits" / "splits_0.csv").write_text(",train,val,test\n" + rows, "utf-8")
    (folder / "cohort.csv").write_text(cohort, "utf-8")
    return folder


@pytest.mark.parametrize(
    "train", [("a", "b"), ("01", "02", "03"), ("01.svs", "03.SVS")], ids=["cases", "slides", "files"]
)
def test_each_patient_once(tmp_path: Path, train: tuple[str, ...]) -> None:
    time, event = training_outcomes(run_folder(tmp_path, train=train))[0]
    assert (time.tolist(), event.tolist()) == ([3.5, 8.0], [True, False])


def test_censoring_is_said_to_be_of_training_only_where_every_fold_is_known(tmp_path: Path) -> None:
    rows = [(f"s{k}", f"p{k}", k % 2, 3.0 + k, k % 3 > 0, 9.0 - k, 0.9 - k / 40) for k in range(20)]
    frame = pd.DataFrame(rows, columns=["slide_id", "case_id", "fold", "time", "event", "risk", "surv_5"])
    frame["surv_25"] = frame["surv_5"] / 2
    frame.astype({"event": int}).to_csv(tmp_path / "p.csv", index=False)
    table, short = read_predictions(tmp_path / "p.csv"), (np.array([2.0, 9.0]), np.array([True, False]))
    few = EvaluationConfig(bootstrap=0)
    half = evaluate_table(table, few, training={0: short})
    alone = evaluate_table(table, few)
    assert half.survival is not None
    assert alone.survival is not None
    assert half.survival.censoring_from == "predictions"
    assert half.metrics["c_index_uno"] == alone.metrics["c_index_uno"]
    whole = evaluate_table(table, few, training={0: short, 1: short})
    assert whole.survival is not None
    assert whole.survival.brier_times is not None
    assert alone.survival.brier_times is not None
    assert whole.survival.censoring_from == "training"
    assert whole.survival.brier_times[1] < 9, "nobody who was trained on was followed for longer"
    assert alone.survival.brier_times[1] > 9
    assert math.isfinite(whole.metrics["brier_integrated"].mean)


def test_a_folder_that_knows_nothing(tmp_path: Path) -> None:
    assert training_outcomes(tmp_path) == {}
    assert training_outcomes(run_folder(tmp_path, train=("x",))) == {}


@pytest.mark.parametrize("cohort", ["", "slide_id,case_id\n01,a\n", COHORT.replace("3.5", "soon")])
def test_a_table_that_cannot_be_used(tmp_path: Path, cohort: str) -> None:
    with pytest.raises(RunError, match=r"cohort.csv: no table with slide_id, case_id, time and event; restore it"):
        training_outcomes(run_folder(tmp_path, cohort))
