"""`wsi2d evaluate`: a table, or JSON and nothing else."""

import csv
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wsi2d.training.crossval import train


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run of this test's own; its study is not beside it, and evaluation does not need it."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_json_alone(cli: Any, run: Path) -> None:
    before = (run / "metrics.json").read_text("utf-8")
    result = cli("evaluate --json", run)
    assert result.code == 0
    assert result.out == before, "nothing but the file's content, which is what it was"
    assert result.err == ""
    values = json.loads(result.out)
    assert values["schema"] == "wsi2d-metrics/1"
    assert values["bootstrap"] == 20, "the run's own setting"
    assert set(values["metrics"]) == {"auc", "f1", "accuracy", "balanced_accuracy", "auprc", "ece"}


def test_table(cli: Any, run: Path) -> None:
    result = cli("evaluate", run)
    assert result.code == 0
    auc = json.loads((run / "metrics.json").read_text("utf-8"))["metrics"]["auc"]
    low, high = auc["mean_interval"]
    assert f"{auc['mean']:.3f} ± {auc['sd']:.3f} [{low:.3f}, {high:.3f}]" in result.out
    assert "each fold" in result.out
    assert " ".join(f"{v:.3f}" for v in auc["per_fold"]) in " ".join(result.out.split())
    assert all(len(line) <= 80 for line in result.out.splitlines())


def test_bootstrap(cli: Any, run: Path) -> None:
    few = json.loads(cli("evaluate --json --bootstrap 5", run).out)
    assert few["bootstrap"] == 5
    assert json.loads((run / "metrics.json").read_text("utf-8")) == few, "the file says what was printed"
    none = json.loads(cli("evaluate --json --bootstrap 0", run).out)
    assert none["metrics"]["auc"]["mean_interval"] is None
    assert none["metrics"]["auc"]["mean"] == few["metrics"]["auc"]["mean"]
    result = cli("evaluate --bootstrap 0", run)
    assert result.code == 0
    assert "[" not in result.out.replace("[95%]", "")


def test_notes_are_said(cli: Any, run: Path) -> None:
    (run / "notes.json").write_text('["fold 0: 3 patients leak between its [sides]"]', "utf-8")
    assert "note: fold 0: 3 patients leak between its [sides]" in " ".join(cli("evaluate", run).out.split())
    assert json.loads(cli("evaluate --json", run).out)["notes"] == ["fold 0: 3 patients leak between its [sides]"]


def test_survival(cli: Any, tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.write_study(tmp_path, "survival")
    train(path)
    result = cli("evaluate", path.with_name("run"))
    assert result.code == 0
    assert "c_index" in result.out
    words = " ".join(result.out.split())
    assert "pairs of patients of the same fold" in words
    assert "not on one scale: of these take mean or stratified, not pooled" in words
    assert "Stratified by fold: hazard ratio" in words
    assert all(len(line) <= 80 for line in result.out.splitlines())
    run = path.with_name("run")
    values = json.loads(cli("evaluate --json", run).out)
    assert (values["kind"], values["unit"], values["slides"], values["cases"]) == ("survival", "case", 14, 12)
    assert set(values["metrics"]) == {"c_index", "c_index_uno", "auc_at", "brier_integrated", "observed_expected"}
    details = values["survival"]
    assert details["censoring_from"] == "training"
    assert details["risk_groups"]["cut_from"] == "training"
    assert "training patients' median of each fold" in " ".join(result.out.split())
    assert (run / "risk_groups.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((run / "risk_groups.csv").open()))
    assert [row["group"] for row in rows] == ["low", "high"]
    assert sum(int(row["patients"]) for row in rows) == 12
    assert float(rows[1]["p_value"]) == details["risk_groups"]["p_value"]
    assert float(rows[1]["stratified_p_value"]) == details["risk_groups"]["stratified"]["p_value"]
    other = json.loads(cli("evaluate --json --at 20 --cut 99", run).out)["survival"]
    assert (other["at"], other["risk_groups"]["cut_from"], other["risk_groups"]["cuts"]) == (20, "given", [99, 99])
    assert [group["patients"] for group in other["risk_groups"]["groups"]] == [12, 0]
    assert other["risk_groups"]["hazard_ratio"] is None


def test_a_table_alone(cli: Any, fails: Any, run: Path, tmp_path: Path) -> None:
    """The run's numbers, but for its own seed's, and nothing is written."""
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(run / "predictions.csv", alone / "theirs.csv")
    values = json.loads(cli("evaluate --json --bootstrap 20", alone / "theirs.csv").out)
    assert values == json.loads((run / "metrics.json").read_text("utf-8"))
    assert "slides: true by row" in cli("evaluate --bootstrap 5", alone / "theirs.csv").out
    ordered = json.loads(cli("evaluate --json --ordered --bootstrap 0", alone / "theirs.csv").out)
    assert "quadratic_kappa" in ordered["metrics"]
    assert [path.name for path in alone.iterdir()] == ["theirs.csv"]
    assert "cannot be read" in fails("evaluate", alone / "none.csv")


def test_patients_are_counted_where_asked(cli: Any, fails: Any, run: Path) -> None:
    result = cli("evaluate --unit case --bootstrap 0", run)
    assert result.code == 0
    assert "patients: true by row, predicted by column" in " ".join(result.out.split())
    values = json.loads((run / "metrics.json").read_text("utf-8"))
    assert (values["unit"], values["slides"], values["cases"]) == ("case", 14, 12)
    assert sum(sum(row) for row in values["confusion"]["counts"]) == 12
    assert "unit: Input should be 'slide' or 'case'" in fails("evaluate --unit patient", run)


def test_what_is_not_defined_is_a_dash(cli: Any, run: Path) -> None:
    """A fold whose test side has one class has no AUC."""
    lines = (run / "predictions.csv").read_text("utf-8").splitlines()
    kept = [line for line in lines if not (line.split(",")[2] == "1" and line.split(",")[3] == "b")]
    (run / "predictions.csv").write_text("\n".join(kept) + "\n", "utf-8")
    assert json.loads(cli("evaluate --json", run).out)["metrics"]["auc"]["per_fold"][1] is None
    result = cli("evaluate", run)
    assert result.code == 0
    assert "–" in result.out
    assert "nan" not in result.out.lower()


def test_mistakes(fails: Any, run: Path, tmp_path: Path) -> None:
    assert "bootstrap" in fails("evaluate --bootstrap -1", run)
    assert "at" in fails("evaluate --at 0", run)
    assert "no config.yaml" in fails("evaluate", tmp_path)
    (run / "predictions.csv").unlink()
    assert "train it to the end first" in fails("evaluate", run)


def test_patches_elsewhere(cli: Any, fails: Any, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run.parent, tmp_path / "study")
    finished_run = tmp_path / "study" / finished_run.name
    before = (finished_run / "predictions.csv").read_bytes()
    result = cli("evaluate --shuffle-positions --flip --bootstrap 10", finished_run)
    table = finished_run / "ablations" / "flip+shuffle-positions.csv"
    assert result.code == 0
    assert f"A: {finished_run}\nB: {table}\n" in result.out
    assert table.exists()
    assert (finished_run / "predictions.csv").read_bytes() == before
    assert "is a table; patches elsewhere need the folder of a run" in fails("evaluate --flip", table)
