"""`wsi2d compare`: two tables, or JSON and nothing else."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest


@pytest.fixture
def other(finished_run: Path, tmp_path: Path) -> Path:
    """A table of the same slides, in which the better half of the answers is reversed."""
    table = pd.read_csv(finished_run / "predictions.csv")
    table.loc[::2, ["prob_a", "prob_b"]] = table.loc[::2, ["prob_b", "prob_a"]].to_numpy()
    table.to_csv(tmp_path / "other.csv", index=False)
    return tmp_path / "other.csv"


def test_tables(cli: Any, finished_run: Path, other: Path) -> None:
    before = (finished_run / "metrics.json").read_bytes()
    result = cli("compare --bootstrap 20", finished_run, other)
    assert result.code == 0
    assert f"A: {finished_run}\nB: {other}\n" in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines()[2:])
    words = " ".join(result.out.split())
    assert "Nadeau and Bengio" in words
    assert "note: some patients have several slides" in words
    assert (finished_run / "metrics.json").read_bytes() == before, "a comparison writes nothing"


def test_json_alone(cli: Any, finished_run: Path, other: Path) -> None:
    result = cli("compare --json --bootstrap 20 --seed 3", finished_run, other)
    values = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert (values["first"], values["second"]) == (str(finished_run), str(other))
    assert (values["slides"], values["cases"], values["folds"], values["bootstrap"]) == (14, 12, [0, 1], 20)
    metrics = json.loads((finished_run / "metrics.json").read_text("utf-8"))["metrics"]
    assert values["metrics"]["auc"]["first"] == pytest.approx(metrics["auc"]["mean"])
    assert values["metrics"]["auc"]["delong"]["p_value"] > 0
    assert values["metrics"]["accuracy"]["delong"] is None
    backwards = json.loads(cli("compare --json --bootstrap 20 --seed 3", other, finished_run).out)
    for name, metric in values["metrics"].items():
        assert backwards["metrics"][name]["mean"] == pytest.approx(-metric["mean"])
        assert backwards["metrics"][name]["mean_p"] == pytest.approx(metric["mean_p"])


def test_mistakes(fails: Any, finished_run: Path, other: Path, tmp_path: Path) -> None:
    assert "no predictions.csv" in fails("compare", finished_run, tmp_path)
    assert "cannot be read" in fails("compare", finished_run, tmp_path / "none.csv")
    assert "bootstrap" in fails("compare --bootstrap -1", finished_run, other)
    lines = other.read_text("utf-8").splitlines()
    other.write_text("\n".join(lines[:-1]) + "\n", "utf-8")
    assert "1 slides are in one of them only" in fails("compare", finished_run, other)
