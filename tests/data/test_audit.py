"""The audit of splits: on small tables with known faults, and on the published tables and splits."""

import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from wsi2d.config import ClassificationTask, SurvivalTask
from wsi2d.data.audit import Audit, Outcomes, audit, audit_cohort
from wsi2d.data.cohort import load_cohort
from wsi2d.data.splits import Fold, read_splits, resolve_fold, write_splits
from wsi2d.errors import CohortError, SplitError

SITES = ("A1", "A1", "B2", "B2", "C3", "C3")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six patients of three sites with two slides each; ids with a suffix."""
    rows = [
        {
            "case_id": f"TCGA-{site}-000{k}", "slide_id": f"TCGA-{site}-000{k}-01Z-00-DX{n}.svs",
            "grade": "high" if k % 2 else "low", "months": 10 * k + 1, "dead": k % 2,
        }
        for k, site in enumerate(SITES) for n in (1, 2)
    ]  # fmt: skip
    path = tmp_path / "cohort.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def case(k: int) -> str:
    return f"TCGA-{SITES[k]}-000{k}"


def slide(k: int, n: int = 1) -> str:
    return f"{case(k)}-01Z-00-DX{n}"


def written(folder: Path, *sides: tuple[list[str], list[str], list[str]]) -> str:
    write_splits([Fold(k, *(tuple(side) for side in three)) for k, three in enumerate(sides)], folder)
    return str(folder)


def one(found: Audit) -> dict[str, object]:
    """The only fold, as JSON has it."""
    folds: list[dict[str, object]] = json.loads(json.dumps(found.to_json()))["folds"]
    assert len(folds) == 1
    return folds[0]


def test_patients_on_two_sides_are_named_and_counted_for_each_pair(table: Path, tmp_path: Path) -> None:
    splits = written(tmp_path / "s", ([slide(0), slide(1), slide(2)], [slide(0, 2), slide(3)], [case(4), slide(2, 2)]))
    found = audit(table, splits)
    fold = one(found)
    assert found.leaks
    assert fold["shared_cases"] == [case(0), case(2)]
    assert fold["shared_between"] == {"train-val": 1, "train-test": 1}
    assert fold["shared_slides"] == []
    assert fold["missing"] == [f"{slide(1, 2)}", f"{slide(3, 2)}", slide(5), slide(5, 2)]


def test_clean_splits_have_nothing_to_say_but_sites(table: Path, tmp_path: Path) -> None:
    found = audit(table, written(tmp_path / "s", ([case(0), case(2), case(3)], [case(1)], [case(4), case(5)])))
    fold = one(found)
    assert not found.leaks
    assert (found.slides, found.patients) == (12, 6)
    assert fold["shared_sites"] == ["A1"]
    assert [fold[key] for key in ("shared_cases", "shared_slides", "missing", "unknown", "drift")] == [[]] * 5


def test_ids_may_have_a_suffix_on_either_side_and_be_of_cases_or_slides(table: Path, tmp_path: Path) -> None:
    splits = written(tmp_path / "s", ([slide(0) + ".svs", case(1)], [case(2)], [slide(3) + ".SVS", slide(4)]))
    fold = one(audit(table, splits))
    assert fold["unknown"] == []
    assert {name: side["slides"] for name, side in fold["sides"].items()} == {"train": 3, "val": 2, "test": 2}  # type: ignore[attr-defined]


def test_unknown_ids_are_told_and_their_barcode_still_names_the_patient(table: Path, tmp_path: Path) -> None:
    other = f"{case(0)}-01Z-00-DX9"
    fold = one(audit(table, written(tmp_path / "s", ([slide(0)], [slide(1)], [other, "nobody"]))))
    assert fold["unknown"] == [other, "nobody"]
    assert fold["shared_cases"] == [case(0)]


def test_a_column_of_the_cohort_may_hold_the_splits(table: Path) -> None:
    frame = pd.read_csv(table)
    frame["Data Split"] = ["Train"] * 7 + ["Validation"] + [""] + ["TEST"] * 3
    frame.to_csv(table, index=False)
    fold = one(audit(table, "Data Split", outcomes=Outcomes(label="grade")))
    assert fold["shared_cases"] == [case(3)]
    assert fold["missing"] == [slide(4)]
    assert fold["sides"]["train"]["classes"] == {"high": 3, "low": 4}  # type: ignore[index]
    frame.loc[3, "Data Split"] = "both"
    frame.to_csv(table, index=False)
    with pytest.raises(
        SplitError, match=r"'both' for slide 'TCGA-A1-0001-01Z-00-DX2.svs'; it must be train, val or test"
    ):
        audit(table, "Data Split")


def test_a_cohort_without_patients_says_so(table: Path, tmp_path: Path) -> None:
    pd.DataFrame({"image_id": ["a", "b", "c"]}).to_csv(table, index=False)
    found = audit(table, written(tmp_path / "s", (["a"], ["b"], ["c", "a"])))
    assert found.patients is None
    assert one(found)["shared_cases"] == []
    assert one(found)["shared_slides"] == ["a"]
    assert found.leaks


def test_patients_are_found_in_barcodes_where_no_column_names_them(table: Path, tmp_path: Path) -> None:
    pd.read_csv(table)[["slide_id", "grade"]].to_csv(table, index=False)
    sides = [slide(0), slide(1)], [slide(2)], [slide(3), slide(0, 2)]
    found = audit(table, written(tmp_path / "s", sides))
    assert found.leaks
    assert found.patients == 6
    assert one(found)["shared_cases"] == [case(0)]
    assert one(found)["sides"]["test"]["patients"] == 2  # type: ignore[index]
    task = ClassificationTask(label="grade")
    for columns in ({"case_column": "slide_id"}, {"case_pattern": r"TCGA-\w\w-\w{4}"}):
        cohort = load_cohort(table, task, **columns)
        assert resolve_fold(read_splits(tmp_path / "s")[0], cohort).leaked_cases == (case(0),)


def test_slides_are_not_counted_as_patients(table: Path, tmp_path: Path) -> None:
    pd.DataFrame({"slide_id": [slide(0), slide(0, 2), "a", "b"]}).to_csv(table, index=False)
    found = audit(table, written(tmp_path / "s", ([slide(0)], ["a"], [slide(0, 2), "b"]), (["a"], [slide(0)], ["b"])))
    assert found.patients is None
    assert all(side.patients is None for fold in found.folds for side in fold.sides.values())
    assert [fold.shared_cases for fold in found.folds] == [[case(0)], []]
    assert found.warnings()[-1] == "1 slides are held out by more than one fold"


def test_events_follow_up_and_drift_are_of_patients(table: Path, tmp_path: Path) -> None:
    splits = written(tmp_path / "s", ([case(0), case(1), case(2)], [case(3)], [case(4), case(5)]))
    fold = one(audit(table, splits, outcomes=Outcomes(time="months", event="dead=1.0")))
    assert fold["sides"]["train"]["events"] == 1  # type: ignore[index]
    assert fold["sides"]["train"]["median_time"] == 11  # type: ignore[index]
    assert fold["sides"]["test"]["events"] == 1  # type: ignore[index]


def test_times_that_are_none_are_null(table: Path, tmp_path: Path) -> None:
    pd.read_csv(table).assign(months="unknown").to_csv(table, index=False)
    splits = written(tmp_path / "s", ([case(0), case(1)], [case(3)], [case(4), case(5)]))
    found = audit(table, splits, outcomes=Outcomes(time="months"))
    assert json.dumps(found.to_json(), allow_nan=False)
    assert found.folds[0].sides["train"].median_time is None


def test_an_event_that_never_occurs_is_refused(table: Path, tmp_path: Path) -> None:
    splits = written(tmp_path / "s", ([case(0)], [case(1)], [case(2)]))
    with pytest.raises(CohortError, match="no row has dead=yes; dead holds 0, 1"):
        audit(table, splits, outcomes=Outcomes(time="months", event="dead=yes"))


def test_a_folder_without_splits_does_not_hide_a_column(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd.read_csv(table).assign(split=["train"] * 8 + ["test"] * 4).to_csv(table, index=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "split").mkdir()
    assert len(audit(table, "split").folds) == 1
    written(tmp_path / "split", ([case(0)], [case(1)], [case(2)]), ([case(1)], [case(0)], [case(2)]))
    assert len(audit(table, "split").folds) == 2


def test_drift_is_named_where_chance_would_hardly_give_it(tmp_path: Path) -> None:
    rows = [
        {"slide_id": f"s{k}", "case_id": f"c{k}", "grade": "ab"[k % 2], "months": 1 + k % 7, "dead": 1}
        for k in range(80)
    ]
    rows += [
        {"slide_id": f"t{k}", "case_id": f"d{k}", "grade": "a", "months": 50 + k % 7, "dead": 1} for k in range(40)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "c.csv", index=False)
    ids = [str(row["slide_id"]) for row in rows]
    outcomes = Outcomes("grade", "months", "dead=1")
    alike = one(audit(tmp_path / "c.csv", written(tmp_path / "x", (ids[:40], [], ids[40:80])), outcomes=outcomes))
    assert alike["drift"] == []
    apart = one(audit(tmp_path / "c.csv", written(tmp_path / "y", (ids[:80], [], ids[80:])), outcomes=outcomes))
    label, time = apart["drift"]  # type: ignore[misc]
    assert label.startswith("grade differs between train and test (chi-squared test, p = ")
    assert time.startswith("months differs between train and test (log-rank test, p = ")


def test_repaired_splits_keep_each_patient_where_it_is_scored_last(table: Path, tmp_path: Path) -> None:
    splits = written(
        tmp_path / "s", ([slide(0), slide(1), case(2)], [slide(0, 2), case(3)], [case(4), slide(2, 2), "x"])
    )
    found = audit(table, splits)
    assert found.repaired == (Fold(0, (slide(1),), (slide(0, 2), case(3)), (case(4), slide(2, 2))),)
    again = audit(table, written(tmp_path / "t", *((list(f.train), list(f.val), list(f.test)) for f in found.repaired)))
    assert not again.leaks


def test_patients_whom_two_folds_hold_out_are_named(table: Path, tmp_path: Path) -> None:
    splits = written(
        tmp_path / "s", ([case(0)], [case(1)], [slide(2), case(3)]), ([case(0)], [case(2)], [slide(2, 2), case(4)])
    )
    assert audit(table, splits).held_out_twice == (case(2),)


def test_a_zip_is_read_where_it_lies(table: Path, tmp_path: Path) -> None:
    packed = tmp_path / "z" / "cohort.csv.zip"
    packed.parent.mkdir()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("../outside.csv", table.read_text())
    assert audit(packed, written(tmp_path / "s", ([case(0)], [case(1)], [case(2)]))).patients == 6
    assert not (tmp_path / "outside.csv").exists()
    packed.write_bytes(packed.read_bytes()[:60])
    with pytest.raises(CohortError, match="not a readable zip"):
        audit(packed, str(tmp_path / "s"))


@pytest.mark.parametrize(("columns", "arguments", "says"), [
    ("a,b", {}, "no column of slides; there are a, b; name it with --slide-column"),
    ("slide_id,b", {"slide_column": "slid_id"}, "no column 'slid_id'; did you mean 'slide_id'?"),
    ("slide_id,b", {"outcomes": Outcomes(label="grade")}, "no column 'grade'"),
    ("slide_id,b", {"outcomes": Outcomes(time="b", event="dead=1")}, "no column 'dead'"),
])  # fmt: skip
def test_a_column_that_is_not_there_is_named(
    columns: str, arguments: dict[str, object], says: str, tmp_path: Path
) -> None:
    (tmp_path / "c.csv").write_text(f"{columns}\n1,2\n")
    with pytest.raises(CohortError) as error:
        audit(tmp_path / "c.csv", "b", **arguments)  # type: ignore[arg-type]
    assert says in str(error.value)


def test_splits_that_are_nowhere_are_refused(table: Path) -> None:
    with pytest.raises(SplitError, match="neither a folder or file nor a column of"):
        audit(table, "nowhere")


# --- what is said in short -----------------------------------------------------------------------------------------


def test_warnings_are_a_line_for_each_kind(tmp_path: Path) -> None:
    rows = [
        {
            "slide_id": f"TCGA-{'AB'[k % 2]}1-{k:04d}-x",
            "case_id": f"c{k}",
            "grade": "ab"[k // 40 % 2],
            "months": 1 + k % 7,
        }
        for k in range(160)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "c.csv", index=False)
    ids = [str(row["slide_id"]) for row in rows]
    sides = (ids[:40] + ids[80:120], [], ids[40:80]), (ids[:40], [], ids[80:120]), (ids[:80], [], ids[120:])
    found = audit(tmp_path / "c.csv", written(tmp_path / "s", *sides), outcomes=Outcomes(label="grade"))
    drift = found.folds[0].drift[0]
    assert found.warnings() == [
        "2 tissue source sites are on two sides, in 3 of 3 folds",
        "40 to 80 slides are on no side, in 3 of 3 folds",
        f"fold 0: {drift}; likewise in fold 2",
    ]
    assert audit(tmp_path / "c.csv", written(tmp_path / "t", (ids[::2], [], ids[1::2]))).warnings() == []


def test_patients_whom_two_folds_hold_out_are_counted(table: Path, tmp_path: Path) -> None:
    splits = written(
        tmp_path / "s", ([case(0)], [case(1)], [slide(2), case(3)]), ([case(0)], [case(2)], [slide(2, 2), case(4)])
    )
    assert audit(table, splits).warnings()[-1] == "1 patients are held out by more than one fold"


@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_a_cohort_that_is_loaded_has_the_same_report(table: Path, tmp_path: Path, kind: str) -> None:
    splits = written(tmp_path / "s", ([slide(0), slide(1), case(2)], [slide(0, 2), case(3)], [case(4), slide(2, 2)]))
    if kind == "classification":
        task, outcomes = ClassificationTask(label="grade"), Outcomes(label="grade")
    else:
        task, outcomes = SurvivalTask(time="months", event="dead=1"), Outcomes(time="months", event="dead=1")
    found = audit_cohort(load_cohort(table, task), read_splits(splits))
    assert found.to_json() == audit(table, splits, outcomes=outcomes).to_json()
    alone = load_cohort(table, task, case_column="slide_id")
    unknown = audit_cohort(alone, (Fold(0, ("a",), (), ("b",)),), patients_known=False)
    assert unknown.patients is None


# --- the published tables ------------------------------------------------------------------------------------------

SHARED_CASES = {"KIRC": [0] * 5, "KIRP": [0] * 5, "LUAD": [0] * 5, "STAD": [0] * 5, "UCEC": [15, 18, 15, 10, 18]}


@pytest.mark.parametrize("name", SHARED_CASES)
def test_published_survival_splits(name: str, shared_dir: Path, tmp_path: Path) -> None:
    """Counted by hand once from the files' columns."""
    table, splits = shared_dir / f"tcga/survival/{name}.csv", shared_dir / f"tcga/survival/TCGA_{name}_survival_kfold"
    found = audit(table, str(splits), outcomes=Outcomes(time="survival_months", event="censorship=0"))
    assert [len(fold.shared_cases) for fold in found.folds] == SHARED_CASES[name]
    assert all(fold.shared_sites and not fold.unknown and not fold.missing for fold in found.folds)
    write_splits(found.repaired, tmp_path / "fixed")
    assert not audit(table, str(tmp_path / "fixed")).leaks
    for before, after in zip(read_splits(splits), read_splits(tmp_path / "fixed"), strict=True):
        assert set(after.val) == set(before.val), "nobody is lost from the side that is scored"
    assert len(found.held_out_twice) == (34 if name == "UCEC" else 0)


@pytest.mark.parametrize(("name", "between"), [
    ("BRCA-label.csv", {"train-val": 10, "train-test": 12, "val-test": 1}),
    ("NSCLC-label.csv.zip", {"train-val": 8, "train-test": 7, "val-test": 1}),
])  # fmt: skip
def test_published_classification_splits(name: str, between: dict[str, int], shared_dir: Path) -> None:
    table = shared_dir / f"tcga/classification/TCGA-{name}"
    splits = shared_dir / f"tcga/classification/TCGA-{name.split('-')[0]}-split.csv"
    (fold,) = audit(table, str(splits), outcomes=Outcomes(label="oncotree_code")).folds
    assert fold.shared_between == between
    assert len(fold.unknown) == {"BRCA": 4, "NSCLC": 75}[name.split("-")[0]]


@pytest.mark.parametrize(("name", "column"), [("BRACS", "split"), ("DHMC", "Data Split")])
def test_published_splits_inside_a_table(name: str, column: str, shared_dir: Path) -> None:
    found = audit(shared_dir / f"tcga/classification/{name}.csv", column)
    assert found.patients is None
    assert not found.leaks
    assert not found.folds[0].missing
