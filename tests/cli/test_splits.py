"""`wsi2d splits`: folds of both kinds of task, what cannot be split, and the audit of folds of others."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wsi2d.config import ClassificationTask, SurvivalTask
from wsi2d.data.cohort import load_cohort
from wsi2d.data.splits import make_splits, read_splits


@pytest.fixture
def cohort(tiny: ModuleType, tmp_path: Path) -> Path:
    """A cohort table of 30 patients, the first five with two slides."""
    rows = []
    for i in range(30):
        status = "dead" if i % 3 else "alive"
        for part in "ab" if i < 5 else "a":
            rows.append([f"s{i}{part}", f"p{i}", ("low", "high")[i % 2], 3.5 * i + 1, status])
    tiny.write_table(tmp_path / "cohort.csv", ["slide_id", "case_id", "grade", "months", "status"], rows)
    return tmp_path / "cohort.csv"


def test_classification(cli: Any, cohort: Path, tmp_path: Path) -> None:
    result = cli("splits make --label grade --folds 3 --seed 4 --out", tmp_path / "s", cohort)
    assert result.code == 0, result.err
    made = read_splits(tmp_path / "s")
    task = ClassificationTask(label="grade")
    assert made == make_splits(load_cohort(cohort, task), folds=3, seed=4), "the same as the library's call"
    everybody = {f"p{i}" for i in range(30)}
    assert sorted(case for fold in made for case in fold.test) == sorted(everybody), "everybody is tested once"
    for fold in made:
        assert set(fold.train) | set(fold.val) | set(fold.test) == everybody
        assert len(fold.train) + len(fold.val) + len(fold.test) == 30
    assert "35 slides of 30 patients; grade: high 17, low 18" in result.out
    sizes = ", ".join(f"{len(f.train)}/{len(f.val)}/{len(f.test)}" for f in made)
    assert f"3 folds (patients in train/val/test: {sizes})" in result.out


def test_survival(cli: Any, cohort: Path, tmp_path: Path) -> None:
    options = "--time months --event status=dead --folds 4 --val-share 0.3"
    result = cli(f"splits make {options} --out", tmp_path / "s", cohort)
    assert result.code == 0, result.err
    task = SurvivalTask(time="months", event="status=dead")
    made = read_splits(tmp_path / "s")
    assert made == make_splits(load_cohort(cohort, task), folds=4, seed=0, val_share=0.3)
    assert "status=dead (event): 20 patients, censored: 10" in result.out, "the polarity is said with its counts"
    for fold in made:
        died = [case for case in fold.test if int(case[1:]) % 3]
        assert 4 <= len(died) <= 6, "stratified"


def test_polarity_is_as_declared(cli: Any, cohort: Path, tmp_path: Path) -> None:
    result = cli("splits make --time months --event status=alive --folds 3 --out", tmp_path / "s", cohort)
    assert "status=alive (event): 10 patients, censored: 20" in result.out


def test_columns_of_other_names(cli: Any, tiny: ModuleType, tmp_path: Path) -> None:
    rows = [[f"i{i}", f"w{i}", "xy"[i % 2]] for i in range(16)]
    tiny.write_table(tmp_path / "c.csv", ["image", "who", "kind"], rows)
    command = "splits make --label kind --folds 2 --slide-column image --case-column"
    assert cli(command, "who", tmp_path / "c.csv", "--out", tmp_path / "a").code == 0
    assert read_splits(tmp_path / "a")[0].test[0].startswith("w")
    assert cli(command, "image", tmp_path / "c.csv", "--out", tmp_path / "b").code == 0
    assert read_splits(tmp_path / "b")[0].test[0].startswith("i")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "give either --label COLUMN, or --time COLUMN and --event COLUMN=VALUE"),
        ("--label grade --time months", "give either --label COLUMN, or"),
        ("--label grade --event status=dead", "give either --label COLUMN, or"),
        ("--time months", "survival needs both"),
        ("--event status=dead", "survival needs both"),
        ("--time months --event status", "event must be COLUMN=VALUE"),
        ("--time months --event status=died", "no row has status=died; status holds alive, dead"),
        ("--time month --event status=dead", "no column 'month'; did you mean 'months'?"),
        ("--label grad", "no column 'grad'; did you mean 'grade'?"),
        ("--label grade --folds 1", "must be at least 2"),
        ("--label grade --folds 15", "use fewer folds or merge classes"),
        ("--label grade --case-column patient", "no column 'patient'"),
        ("--label grade --val-share 1.5", "val"),
    ],
)
def test_mistakes(fails: Any, cohort: Path, tmp_path: Path, options: str, words: str) -> None:
    assert words in fails("splits make", cohort, *options.split(), "--out", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_no_cohort(fails: Any, tmp_path: Path) -> None:
    line = fails("splits make", tmp_path / "none.csv", "--label", "x", "--out", tmp_path / "s")
    assert line.startswith(f"cohort {tmp_path / 'none.csv'}: no such file; give the path of a CSV table")


@pytest.mark.parametrize("below", [False, True], ids=["a file", "below a file"])
def test_out_that_cannot_be(fails: Any, tmp_path: Path, below: bool) -> None:
    """It is told before the cohort is read."""
    (tmp_path / "taken").write_text("in the way")
    out = tmp_path / "taken" / "s" if below else tmp_path / "taken"
    line = fails("splits make", tmp_path / "none.csv", "--label", "x", "--out", out)
    assert line.startswith(f"out {out}: ")
    assert line.endswith("; give another --out")


def test_other_ways_to_split(cli: Any, cohort: Path, tmp_path: Path) -> None:
    result = cli("splits make --label grade --folds 3 --repeats 2 --out", tmp_path / "r", cohort)
    assert result.code == 0, result.err
    assert len(read_splits(tmp_path / "r")) == 6
    result = cli("splits make --label grade --holdout 0.2 --out", tmp_path / "h", cohort)
    assert result.code == 0, result.err
    assert [len(fold.test) for fold in read_splits(tmp_path / "h")] == [6]
    result = cli("splits make --label grade --site-preserving --out", tmp_path / "s", cohort)
    assert result.code == 2
    assert "patient 'p0' bears no TCGA barcode that tells the site; leave sites out" in " ".join(result.err.split())


@pytest.mark.parametrize(("options", "words"), [
    ("--label grade --holdout 0.2 --folds 5", "--holdout makes one fold; leave out --folds and --repeats"),
    ("--label grade --holdout 0.2 --repeats 1", "--holdout makes one fold; leave out --folds and --repeats"),
    ("--label grade --case-pattern (", "--case-pattern must be a regular expression"),
    ("--label grade --preset tcga-brca", "--preset tcga-brca and --label both say what is stratified by"),
    ("--preset published-classification", "--preset published-classification does not say what is stratified by"),
    ("--preset tcga-brc", "preset 'tcga-brc': unknown; there are"),
])  # fmt: skip
def test_options_that_would_not_be_read(fails: Any, cohort: Path, tmp_path: Path, options: str, words: str) -> None:
    assert words in fails("splits make", cohort, *options.split(), "--out", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_patients_are_found_by_a_pattern(cli: Any, tiny: ModuleType, tmp_path: Path) -> None:
    rows = [[f"w{i // 2}-{i}", "xy"[i // 2 % 2]] for i in range(40)]
    tiny.write_table(tmp_path / "c.csv", ["slide_id", "kind"], rows)
    command = "splits make --label kind --folds 2 --case-pattern '^w[0-9]+' --out"
    result = cli(command, tmp_path / "s", tmp_path / "c.csv")
    assert result.code == 0, result.err
    (first, second) = read_splits(tmp_path / "s")
    assert sorted(first.test + second.test) == sorted(f"w{i}" for i in range(20))


@pytest.mark.parametrize("extra", ["--site-preserving", ""])
def test_a_preset_reads_its_published_table(cli: Any, shared_dir: Path, tmp_path: Path, extra: str) -> None:
    table = shared_dir / "tcga/classification/TCGA-BRCA-label.csv"
    result = cli(f"splits make --preset tcga-brca --folds 3 {extra} --out", tmp_path / "s", table)
    assert result.code == 0, result.err
    assert "1033 slides of" in result.out
    folds = read_splits(tmp_path / "s")
    assert len(folds) == 3
    assert all(case.startswith("TCGA-") for fold in folds for case in fold.test)


# --- audit ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def leaky(tmp_path: Path) -> tuple[Path, Path]:
    """A cohort of three patients, and splits in which one of them is on two sides."""
    cohort, splits = tmp_path / "cohort.csv", tmp_path / "splits"
    cohort.write_text("case_id,slide_id,grade\np,p1,a\np,p2,a\nq,q1,b\nr,r1,b\n")
    splits.mkdir()
    (splits / "splits_0.csv").write_text(",train,val,test\n0,p1,q1,p2\n1,,,r1\n")
    return cohort, splits


def test_audit_names_shared_patients_and_ends_with_1(cli: Any, leaky: tuple[Path, Path]) -> None:
    result = cli("splits audit --label grade", *leaky)
    assert result.code == 1
    assert "SHARED PATIENTS: 1 (1 in train and test): p\n" in result.out
    assert "test  2 slides; 2 patients; a 1, b 1" in result.out
    assert result.out.endswith("\npatients on two sides in fold 0\n")


def test_a_side_that_mending_empties_is_warned_of(cli: Any, leaky: tuple[Path, Path], tmp_path: Path) -> None:
    result = cli("splits audit --fix", tmp_path / "fixed", *leaky)
    assert "warning: fold 0: its train side is empty once patients are on one side each" in " ".join(result.err.split())


def test_splits_are_not_mended_where_they_lie(fails: Any, leaky: tuple[Path, Path]) -> None:
    before = (leaky[1] / "splits_0.csv").read_text()
    for splits in (leaky[1], leaky[1] / "splits_0.csv"):
        assert "is where the splits lie that are mended" in fails("splits audit --fix", leaky[1], leaky[0], splits)
    assert (leaky[1] / "splits_0.csv").read_text() == before


def test_audit_finds_patients_in_barcodes(cli: Any, tmp_path: Path) -> None:
    names = [f"TCGA-AA-000{k}-01Z-00-DX{n}" for k in range(3) for n in (1, 2)]
    (tmp_path / "c.csv").write_text("slide_id\n" + "\n".join(names))
    (tmp_path / "s").mkdir()
    (tmp_path / "s/splits_0.csv").write_text(f",train,val,test\n0,{names[0]},{names[2]},{names[1]}\n")
    result = cli("splits audit", tmp_path / "c.csv", tmp_path / "s")
    assert result.code == 1
    assert "SHARED PATIENTS: 1 (1 in train and test): TCGA-AA-0000" in result.out
    assert result.out.startswith("6 slides, 3 patients, 1 fold\n")


def test_audit_prints_json_alone_and_mends_the_splits(cli: Any, leaky: tuple[Path, Path], tmp_path: Path) -> None:
    cohort, splits = leaky
    result = cli("splits audit --json --fix", tmp_path / "fixed", cohort, splits)
    assert result.code == 1
    assert json.loads(result.out)["folds"][0]["shared_cases"] == ["p"]
    assert (tmp_path / "fixed/splits_0.csv").read_text() == ",train,val,test\n0,,q1,p2\n1,,,r1\n"
    result = cli("splits audit", cohort, tmp_path / "fixed")
    assert result.code == 0
    assert result.out.endswith("\nno patient on two sides\n")


@pytest.mark.parametrize(("arguments", "says"), [
    ("nothing.csv splits", "cohort nothing.csv: no such file"),
    ("{cohort} nowhere", "splits nowhere: neither a folder or file nor a column"),
    ("{cohort} {splits} --time t", "survival needs both --time COLUMN and --event COLUMN=VALUE"),
    ("{cohort} {splits} --time t --event dead", "--event is 'dead', it should be COLUMN=VALUE"),
])  # fmt: skip
def test_audit_ends_with_2_where_there_is_nothing_to_look_at(
    arguments: str, says: str, cli: Any, leaky: tuple[Path, Path]
) -> None:
    result = cli("splits audit " + arguments.format(cohort=leaky[0], splits=leaky[1]))
    assert result.code == 2
    assert says in " ".join(result.err.split())
