"""`wsi2d evaluate`: a table, or JSON and nothing else."""

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
    assert set(values["metrics"]) == {"auc", "f1", "accuracy", "balanced_accuracy"}


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
    assert "not on one scale, prefer the mean" in " ".join(result.out.split())
    values = json.loads(cli("evaluate --json", path.with_name("run")).out)
    assert (values["kind"], values["unit"], values["slides"], values["cases"]) == ("survival", "case", 14, 12)


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
    assert "no config.yaml" in fails("evaluate", tmp_path)
    (run / "predictions.csv").unlink()
    assert "train it to the end first" in fails("evaluate", run)
