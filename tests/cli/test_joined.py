"""Patients whose slides are one bag, on the command line: trained, predicted, evaluated, compared."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

CASES = ["--set", "data.bag=case"]


@pytest.fixture(scope="module")
def joined_run(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on patients (its study lies beside it); read only."""
    from wsi2d.training.crossval import train

    path = tiny.write_study(tmp_path_factory.mktemp("joined"), data={"bag": "case"})
    train(path)
    return Path(path.with_name("run"))


def test_train_and_evaluate(cli: Any, tiny: ModuleType, tmp_path: Path, joined_run: Path) -> None:
    study = tiny.write_study(tmp_path / "study")
    result = cli("train", study, *CASES)
    assert result.code == 0, result.err
    assert tiny.result_bytes(study.with_name("run")) == tiny.result_bytes(joined_run)
    assert "14 slides, 12 patients, 2 folds" in result.out
    values = json.loads((study.with_name("run") / "metrics.json").read_text("utf-8"))
    assert (values["unit"], values["slides"], values["cases"]) == ("case", 14, 12)
    again = json.loads(cli("evaluate --json --bootstrap 20", study.with_name("run") / "predictions.csv").out)
    assert again == values, "the table alone says that its rows are patients"


def test_labels_that_differ_are_one_line(fails: Any, tiny: ModuleType, tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "study")
    table = study.with_name("cohort.csv")
    table.write_text(table.read_text("utf-8").replace("s01y,p01,b", "s01y,p01,a"), "utf-8")
    assert "patient 'p01': label is b of slide 's01x' and a of 's01y'" in fails("train", study, *CASES)
    assert "data.bag: Input should be 'slide' or 'case'" in fails("train", study, "--set", "data.bag=patient")


def test_predict(cli: Any, fails: Any, tiny: ModuleType, joined_run: Path, tmp_path: Path) -> None:
    for k, name in enumerate(("q1-a", "q1-b", "q2-a")):
        numbers = np.random.default_rng(k).normal(size=(7, tiny.DIM)).astype(np.float32)
        tiny.write_features(tmp_path / "new", name, numbers)
    (tmp_path / "who.csv").write_text("slide,who\nq1-a,q1\nq1-b,q1\nq2-a,q2\n", "utf-8")
    place = [joined_run, tmp_path / "new", "--out", tmp_path / "out.csv"]
    result = cli("predict --slide-column slide --case-column who --cohort", tmp_path / "who.csv", *place)
    assert result.code == 0, result.err
    assert result.out == f"2 patients predicted → {tmp_path / 'out.csv'}\n"
    assert [row["joined_slides"] for row in tiny.read_table(tmp_path / "out.csv")] == ["q1-a;q1-b", "q2-a"]
    result = cli("predict", *place)
    assert result.out == f"3 patients predicted → {tmp_path / 'out.csv'}\n"
    assert "without a cohort each slide is taken for a patient" in " ".join(result.err.split())
    assert "no column 'slide_id'" in fails("predict --cohort", tmp_path / "who.csv", *place)


def test_another_cohort(cli: Any, tiny: ModuleType, joined_run: Path, tmp_path: Path) -> None:
    other = tiny.write_study(tmp_path / "other", seed=7)
    places = [other.with_name("cohort.csv"), "--features", other.parent / "features", "--out", tmp_path / "out.csv"]
    result = cli("evaluate --json --allow-leakage --cohort", *places, joined_run)
    assert result.code == 0, result.err
    assert "12 patients of another cohort predicted" in " ".join(result.err.split())
    values = json.loads(result.out)
    assert (values["unit"], values["slides"], values["cases"]) == ("case", 14, 12)
    assert any("12 patients of this cohort were in the run's own" in note for note in values["notes"]), values["notes"]


def test_a_run_on_patients_is_compared_with_one_on_slides(cli: Any, joined_run: Path, finished_run: Path) -> None:
    values = json.loads(cli("compare --json --bootstrap 20", finished_run, joined_run).out)
    assert (values["unit"], values["cases"], values["notes"]) == ("case", 12, [])
    first, second = (
        json.loads(cli(f"evaluate --json --unit case --bootstrap 0 {run / 'predictions.csv'}").out)["metrics"]
        for run in (finished_run, joined_run)
    )
    for name, metric in values["metrics"].items():
        assert (metric["first"], metric["second"]) == pytest.approx((first[name]["mean"], second[name]["mean"]))
    result = cli("compare --bootstrap 20", finished_run, joined_run)
    assert result.code == 0
    assert "DeLong's test takes them" not in result.out, "a row is a patient"
