"""`wsi2d splits make`: both kinds of task, and what cannot be split."""

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
