"""`wsi2d evaluate RUN --cohort --features`: a run's models on a cohort that they have not seen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def run(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of classes a and b; read only."""
    from wsi2d.training.crossval import train

    path = tiny.write_study(tmp_path_factory.mktemp("inside"))
    train(path)
    return path.with_name("run")


@pytest.fixture
def other(tiny: ModuleType, tmp_path: Path) -> Path:
    """Another hospital's slides, with its own column names."""
    tiny.write_study(tmp_path / "study", seed=7)
    table = (tmp_path / "study/cohort.csv").read_text().replace("slide_id,case_id,label", "slide,patient,kind")
    (tmp_path / "theirs.csv").write_text(table)
    shutil.move(tmp_path / "study/features", tmp_path / "theirs")
    return tmp_path


COLUMNS = "--slide-column slide --case-column patient --label kind"


def test_another_cohort_is_predicted_and_scored(cli: Any, run: Path, other: Path, tiny: ModuleType) -> None:
    (other / "theirs" / "s03x.h5").unlink()
    out = other / "out.csv"
    places = (other / "theirs.csv", "--features", other / "theirs", "--out", out, run)
    result = cli(f"evaluate --json {COLUMNS} --cohort", *places)
    assert result.code == 0, result.err
    metrics = json.loads(result.out)
    assert (metrics["slides"], metrics["cases"]) == (13, 11)
    rows = tiny.read_table(out)
    assert {row["label"] for row in rows} == {"a", "b"}
    assert {row["case_id"] for row in rows} == {f"p{k:02d}" for k in range(12) if k != 3}
    assert "1 slides have no features and are left out (the first is 's03x')" in " ".join(result.err.split())
    assert not (run / "external").exists()


def test_predictions_lie_in_the_run_where_nothing_is_said(cli: Any, run: Path, other: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(run, tmp_path / "run")
    result = cli(f"evaluate {COLUMNS} --cohort", other / "theirs.csv", "--features", other / "theirs", mine)
    assert result.code == 0, result.err
    assert (mine / "external/theirs.csv").read_text().count("\n") == 15
    assert "14 slides of another cohort predicted" in " ".join(result.err.split())


def test_classes_that_are_not_there_are_told_and_strangers_refused(
    cli: Any, fails: Callable[..., str], run: Path, other: Path
) -> None:
    table = other / "theirs.csv"
    text = table.read_text()
    table.write_text("\n".join(line for line in text.splitlines() if ",b," not in line) + "\n")
    arguments = (table, "--features", other / "theirs", "--out", other / "o.csv", run)
    result = cli(f"evaluate {COLUMNS} --bootstrap 0 --cohort", *arguments)
    assert result.code == 0, result.err
    assert "no slide of the cohort is b" in " ".join(result.err.split())
    table.write_text(text.replace(",b,", ",z,"))
    assert "has kind 'z', which is not among classes a, b" in fails(f"evaluate {COLUMNS} --cohort", *arguments)


def test_features_of_another_kind_are_refused(
    fails: Callable[..., str], run: Path, other: Path, tiny: ModuleType
) -> None:
    numbers = tiny.np.zeros((8, tiny.DIM), "float32")
    tiny.write_features(other / "theirs", "s00x", numbers, mpp=1.0)
    arguments = (other / "theirs.csv", "--features", other / "theirs", "--out", other / "o.csv", run)
    line = fails(f"evaluate {COLUMNS} --cohort", *arguments)
    assert "s00x.h5: has mpp 1.0, not 0.5" in line
    assert not (other / "o.csv").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    ("--cohort {table} {run}", "another cohort needs both --cohort and --features"),
    (f"{COLUMNS} --cohort {{table}} --features {{nowhere}} {{run}}", "no slide of"),
    ("--cohort {table} --features {features} {table}", "is a table; another cohort needs the folder of a run"),
])  # fmt: skip
def test_what_does_not_fit_together(
    arguments: str, words: str, fails: Callable[..., str], run: Path, other: Path
) -> None:
    places = {"table": other / "theirs.csv", "features": other / "theirs", "nowhere": other / "nowhere", "run": run}
    assert words in fails("evaluate " + arguments.format(**places))
