"""What a run folder says of the patients that were trained on."""

from pathlib import Path

import pytest

from wsi2d.errors import RunError
from wsi2d.evaluation.training_side import training_outcomes

COHORT = "slide_id,case_id,time,event,patches\n01,a,3.5,True,9\n02,a,3.5,True,9\n03,b,8.0,False,9\n04,c,2.0,False,9\n"


def run_folder(folder: Path, cohort: str = COHORT, train: tuple[str, ...] = ("a", "b")) -> Path:
    (folder / "splits").mkdir()
    rows = "".join(f"{i},{case},{'c' if i == 0 else ''},\n" for i, case in enumerate(train))
    (folder / "splits" / "splits_0.csv").write_text(",train,val,test\n" + rows, "utf-8")
    (folder / "cohort.csv").write_text(cohort, "utf-8")
    return folder


@pytest.mark.parametrize("train", [("a", "b"), ("01", "02", "03")], ids=["cases", "slides"])
def test_each_patient_once(tmp_path: Path, train: tuple[str, ...]) -> None:
    time, event = training_outcomes(run_folder(tmp_path, train=train))[0]
    assert (time.tolist(), event.tolist()) == ([3.5, 8.0], [True, False])


def test_a_folder_that_knows_nothing(tmp_path: Path) -> None:
    assert training_outcomes(tmp_path) == {}
    assert training_outcomes(run_folder(tmp_path, train=("x",))) == {}


@pytest.mark.parametrize("cohort", ["", "slide_id,case_id\n01,a\n", COHORT.replace("3.5", "soon")])
def test_a_table_that_cannot_be_used(tmp_path: Path, cohort: str) -> None:
    with pytest.raises(RunError, match=r"cohort.csv: no table with slide_id, case_id, time and event; restore it"):
        training_outcomes(run_folder(tmp_path, cohort))
