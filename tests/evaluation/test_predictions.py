"""Tables of predictions: what is written reads back, what cannot be evaluated is refused."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wsi2d.errors import RunError
from wsi2d.evaluation.predictions import Prediction, predictions_frame, read_predictions

CLASSES = "slide_id,case_id,fold,label,prob_low,prob_high"
SURVIVAL = "slide_id,case_id,fold,time,event,risk"


def write(folder: Path, *lines: str) -> Path:
    path = folder / "predictions.csv"
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def failure(path: Path) -> str:
    with pytest.raises(RunError) as caught:
        read_predictions(path)
    message = str(caught.value)
    assert message.startswith(f"predictions {path}: ")
    assert "\n" not in message
    return message.removeprefix(f"predictions {path}: ")


def prediction(slide_id: str, scores: list[float], **known: object) -> Prediction:
    values = {"case_id": slide_id[:2], "fold": 0, "attention": np.ones(3, np.float32) / 3, **known}
    return Prediction(slide_id=slide_id, scores=np.array(scores), **values)


def test_classification_round_trip(tmp_path: Path) -> None:
    made = [
        prediction("007", [0.25, 0.75], label="high", fold=1),
        prediction("1e5", [1 / 3, 2 / 3], label="low", fold=0),
    ]
    frame = predictions_frame(made, "classification", ("low", "high"))
    assert list(frame) == CLASSES.split(",")
    frame.to_csv(tmp_path / "p.csv", index=False)
    table = read_predictions(tmp_path / "p.csv")
    assert (table.kind, table.classes) == ("classification", ("low", "high"))
    assert table.rows["slide_id"].tolist() == ["007", "1e5"]
    assert table.rows["case_id"].tolist() == ["00", "1e"]
    assert table.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(table.probabilities, [[0.25, 0.75], [1 / 3, 2 / 3]])


def test_survival_round_trip(tmp_path: Path) -> None:
    made = [
        prediction("a", [0.1, 0.2, 0.3], time=12.5, event=True, risk=-1.25),
        prediction("b", [0.4, 0.5, 0.6], time=3.0, event=False, risk=-0.5),
    ]
    frame = predictions_frame(made, "survival", ())
    assert list(frame) == [*SURVIVAL.split(","), "hazard_1", "hazard_2", "hazard_3"]
    frame.to_csv(tmp_path / "p.csv", index=False)
    table = read_predictions(tmp_path / "p.csv")
    assert (table.kind, table.classes) == ("survival", ())
    assert table.rows[["time", "event", "risk"]].to_numpy(float).tolist() == [[12.5, 1, -1.25], [3, 0, -0.5]]


def test_joined_slides_round_trip(tmp_path: Path) -> None:
    made = [
        prediction("p1", [0.25, 0.75], label="high", joined_slides=("a", "b"), joined_patches=(1, 2)),
        prediction("p2", [0.5, 0.5], label="low", joined_slides=("007",), joined_patches=(3,)),
    ]
    frame = predictions_frame(made, "classification", ("low", "high"))
    assert list(frame) == ["slide_id", "case_id", "fold", "joined_slides", "label", "prob_low", "prob_high"]
    frame.to_csv(tmp_path / "p.csv", index=False)
    table = read_predictions(tmp_path / "p.csv")
    assert table.joined
    assert table.slide_ids() == [("a", "b"), ("007",)]
    frame.drop(columns="joined_slides").to_csv(tmp_path / "p.csv", index=False)
    assert read_predictions(tmp_path / "p.csv").slide_ids() == [("p1",), ("p2",)]


def test_attention_of_each_slide() -> None:
    weights = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    joined = prediction("p", [1.0], attention=weights, joined_slides=("a", "b", "c"), joined_patches=(1, 2, 1))
    found = joined.attention_by_slide()
    assert {name: part.tolist() for name, part in found.items()} == {
        "a": weights[:1].tolist(),
        "b": weights[1:3].tolist(),
        "c": weights[3:].tolist(),
    }
    alone = prediction("s", [1.0], attention=weights).attention_by_slide()
    assert list(alone) == ["s"]
    assert alone["s"] is weights


def test_a_patient_is_one_row_where_rows_are_patients(tmp_path: Path) -> None:
    header = "slide_id,case_id,fold,joined_slides,label,prob_a,prob_b"
    rows = ["p,p,0,s1;s2,a,0.5,0.5", "p,p,1,s1;s2,a,0.5,0.5"]
    assert read_predictions(write(tmp_path, header, *rows)).joined, "once in each fold"
    message = failure(write(tmp_path, header, *rows, "q,p,1,s3,a,0.5,0.5"))
    assert message.startswith("patient 'p' has two rows in one fold, though joined_slides says that a row is a patient")


def test_unknown_truth_is_left_empty() -> None:
    frame = predictions_frame([prediction("a", [0.5, 0.5], fold=None)], "classification", ("x", "y"))
    assert frame.to_csv(index=False).splitlines()[1] == "a,a,,,0.5,0.5"
    frame = predictions_frame([prediction("a", [0.5], fold=None, risk=-0.5)], "survival", ())
    assert frame.to_csv(index=False).splitlines()[1] == "a,a,,,,-0.5,0.5"


def test_labels_and_ids_stay_text(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,case_id,fold,label,prob_0,prob_NA", "01,NA,0,NA,0.5,0.5", "02,nan,0,0,0.5,0.5")
    table = read_predictions(path)
    assert table.labels.tolist() == [1, 0]
    assert table.rows["case_id"].tolist() == ["NA", "nan"]


def test_columns_of_others_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path, f"note,{CLASSES}", "x,a,c,0,low,0.9,0.1", ",b,d,0,high,0.2,0.8")
    assert read_predictions(path).labels.tolist() == [0, 1]


def test_an_ensemble_has_no_fold(tmp_path: Path) -> None:
    assert len(read_predictions(write(tmp_path, CLASSES, "a,c,,low,0.9,0.1", "b,d,,high,0.2,0.8")).rows) == 2


@pytest.mark.parametrize("missing", CLASSES.split(",")[:4])
def test_missing_columns(tmp_path: Path, missing: str) -> None:
    header = CLASSES.replace(missing, "other")
    assert failure(write(tmp_path, header, "a,c,0,low,0.9,0.1")) == (
        f"no column '{missing}'; see docs/predictions.md for the schema"
    )


@pytest.mark.parametrize("missing", SURVIVAL.split(","))
def test_missing_survival_columns(tmp_path: Path, missing: str) -> None:
    header = SURVIVAL.replace(missing, "other")
    assert failure(write(tmp_path, header, "a,c,0,1,1,0.5")).startswith(f"no column '{missing}'")


@pytest.mark.parametrize("value", ["", "x", "nan", "inf"])
@pytest.mark.parametrize("column", ["prob_low", "prob_high"])
def test_probabilities_are_numbers(tmp_path: Path, column: str, value: str) -> None:
    row = dict(zip(CLASSES.split(","), ["b", "d", "0", "low", "0.9", "0.1"], strict=True)) | {column: value}
    message = failure(write(tmp_path, CLASSES, "a,c,0,low,0.9,0.1", ",".join(row.values())))
    assert message == f"slide 'b' has {column} '{value}'; prob_low, prob_high must hold numbers in every row"


@pytest.mark.parametrize("value", ["", "x", "nan", "inf"])
@pytest.mark.parametrize("column", ["time", "event", "risk"])
def test_outcomes_are_numbers(tmp_path: Path, column: str, value: str) -> None:
    row = dict(zip(SURVIVAL.split(","), ["b", "d", "0", "3", "1", "0.1"], strict=True)) | {column: value}
    message = failure(write(tmp_path, SURVIVAL, "a,c,0,2,0,0.4", ",".join(row.values())))
    assert message == f"slide 'b' has {column} '{value}'; time, event, risk must hold numbers in every row"


@pytest.mark.parametrize("value", ["2", "-1", "0.5"])
def test_events_are_zero_or_one(tmp_path: Path, value: str) -> None:
    # 1 and 2 is how another statistics package codes censored and dead: all would count as dead
    path = write(tmp_path, SURVIVAL, "a,c,0,2,1,0.4", f"b,d,0,3,{value},0.1")
    assert re.match(r"event must be 1 \(it happened\) or 0", failure(path))


@pytest.mark.parametrize("value", ["first", "0.5", "fold-1", "inf"])
def test_folds_are_whole_numbers_or_blank(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, CLASSES, "a,c,0,low,0.9,0.1", f"b,d,{value},high,0.1,0.9")
    assert failure(path) == f"fold '{value}' is no whole number; leave it blank for an ensemble"


def test_unknown_label(tmp_path: Path) -> None:
    path = write(tmp_path, CLASSES, "a,c,0,low,0.9,0.1", "b,d,0,middle,0.1,0.9")
    assert failure(path) == (
        "label 'middle' has no column 'prob_middle'; mend the label (there are low, high) or add the column"
    )


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00" * 9)
    for path in (tmp_path / "none.csv", tmp_path, tmp_path / "empty.csv", tmp_path / "binary.csv"):
        message = failure(path)
        assert message.startswith("cannot be read (")
        assert message.endswith("save it as CSV in UTF-8, with a header, or let `wsi2d train` make that of a run anew")
    assert failure(write(tmp_path, CLASSES)).startswith("has no rows; ")


def test_subset_keeps_kind_and_classes(tmp_path: Path) -> None:
    table = read_predictions(write(tmp_path, CLASSES, "a,c,0,low,0.9,0.1", "b,d,0,high,0.2,0.8"))
    part = table.subset(table.rows.iloc[1:])
    assert (part.kind, part.classes, part.labels.tolist()) == (table.kind, table.classes, [1])
    assert isinstance(part.rows, pd.DataFrame)


def test_follow_up_begins_at_0(tmp_path: Path) -> None:
    assert read_predictions(write(tmp_path, SURVIVAL, "a,a,0,0,1,0.5")).rows["time"].tolist() == [0]
    message = failure(write(tmp_path, SURVIVAL, "a,a,0,3,1,0.5", "b,b,0,-1,1,0.5"))
    assert message == "slide 'b' has a time below 0; mend it, follow-up begins at 0"


@pytest.mark.parametrize(("rows", "says"), [
    (("a,c,0,low,0.9,0.1", "b, ,0,low,0.9,0.1"), "line 3, slide 'b', has no case_id; name its patient"),
    (("a,c,0,low,0.9,0.1", "a,c,0,low,0.8,0.2"), "slide 'a' is there twice; leave one row of it in each fold"),
    (("a,c,,low,0.9,0.1", "a,c,,low,0.8,0.2"), "slide 'a' is there twice; leave one row of it in each fold"),
    (("a,c,0,low,1.5,-0.5",), "slide 'a' has a probability outside 0 to 1 (1.5, -0.5); give probabilities"),
    (("a,c,0,low,0.9,0.2",), "slide 'a' has probabilities that do not sum to 1 (0.9, 0.2); give probabilities of all"),
])  # fmt: skip
def test_rows_that_cannot_be_counted(tmp_path: Path, rows: tuple[str, ...], says: str) -> None:
    assert failure(write(tmp_path, CLASSES, *rows)).startswith(says)


def test_what_is_rounded_or_in_another_fold_is_taken(tmp_path: Path) -> None:
    rows = "a,c,0,low,0.333,0.6667", "a,c,1,low,0.9,0.1"
    assert len(read_predictions(write(tmp_path, CLASSES, *rows)).rows) == 2


@pytest.mark.parametrize("other", ["3,1", "2,0"])
def test_a_patient_has_one_outcome(tmp_path: Path, other: str) -> None:
    message = failure(write(tmp_path, SURVIVAL, "a,c,0,2,1,0.4", f"b,c,1,{other},0.1"))
    assert message.startswith("patient 'c' has rows with different times or events; give all his rows the same")
