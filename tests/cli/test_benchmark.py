"""`wsi2d benchmark`: models and their controls trained on the same folds, one table, nothing trained twice."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image


@pytest.fixture(scope="module")
def study(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's YAML file, with figures that others published."""
    folder = tmp_path_factory.mktemp("benchmark")
    path: Path = tiny.write_study(folder, published={"Theirs": {"auc": 0.75}})
    return path


def test_a_benchmark(cli: Any, study: Path, tiny: ModuleType) -> None:
    out = study.with_name("bm")
    command = ["benchmark --models mamba2d-mil,abmil --seeds 3,4 --set training.epochs=1", study, "--out", out]
    first = cli(*command)
    assert first.code == 0
    names = ["mamba2d-mil", "mamba2d-mil-no-scan", "mamba2d-mil-one-row", "abmil"]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == sorted(names)
    for name in names:
        for seed in (3, 4):
            config = yaml.safe_load((out / name / f"seed-{seed}" / "config.yaml").read_text("utf-8"))
            assert config["seed"] == seed
            assert config["training"]["epochs"] == 1
    no_scan, one_row = (
        yaml.safe_load((out / f"mamba2d-mil-{n}" / "seed-3" / "config.yaml").read_text("utf-8"))["model"]
        for n in ("no-scan", "one-row")
    )
    assert (no_scan["scan"], no_scan["layout"], one_row["scan"], one_row["layout"]) == (False, "grid", True, "row")
    assert one_row["dim"] == tiny.MODEL["dim"], "the configuration's options hold for its model and its controls"
    table = json.loads((out / "benchmark.json").read_text("utf-8"))
    assert [row["name"] for row in table["rows"]] == names
    assert (table["seeds"], table["folds"], table["published"]) == ([3, 4], [0, 1], {"Theirs": {"auc": 0.75}})
    for row in table["rows"]:
        assert row["cost"]["parameters"] > 100
        assert row["cost"]["seconds_an_epoch"] > 0
        assert len(row["scores"]["auc"]["per_seed"]) == 2
    assert "Theirs (published)" in (out / "benchmark.md").read_text("utf-8")
    with Image.open(out / "benchmark.png") as picture:
        assert picture.width > 400
    assert all(len(line) <= 80 for line in first.out.splitlines() if "→" not in line)
    before = {name: data for name, data in tiny.result_bytes(out).items() if name.endswith(".safetensors")}
    second = cli(*command, "--json")
    assert json.loads(second.out)["rows"] == table["rows"]
    after = {name: data for name, data in tiny.result_bytes(out).items() if name.endswith(".safetensors")}
    assert after == before, "nothing is trained twice"


def test_without_controls(cli: Any, study: Path) -> None:
    out = study.with_name("few")
    settings = "--set training.epochs=1 --set evaluation.bootstrap=0"
    result = cli(f"benchmark --models abmil --no-controls {settings}", study, "--out", out)
    assert result.code == 0
    assert [p.name for p in out.iterdir() if p.is_dir()] == ["abmil"]
    assert json.loads((out / "benchmark.json").read_text("utf-8"))["rows"][0]["scores"]["auc"]["interval"] is None


def test_mistakes(fails: Any, study: Path) -> None:
    assert "did you mean 'mamba2d-mil'?" in fails("benchmark --models mamba2dmil", study)
    assert "'abmil' is there twice" in fails("benchmark --models abmil,abmil", study)
    assert "--seeds: 'x' is no seed" in fails("benchmark --models abmil --seeds 0,x", study)
    assert "give one or more, each once" in fails("benchmark --models abmil --seeds 1,1", study)
    assert "models: none" in fails("benchmark --models ,", study)
