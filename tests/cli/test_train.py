"""`wsi2d train`: the same as the library's call; overrides on the line."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wsi2d.config_files import load_run_config


@pytest.fixture
def study(tiny: ModuleType, tmp_path: Path) -> Path:
    """The YAML file of a study of this test's own."""
    return tiny.write_study(tmp_path / "study")


def test_train(cli: Any, tiny: ModuleType, finished_run: Path, study: Path) -> None:
    result = cli("train", study)
    assert result.code == 0, result.err
    run = study.with_name("run")
    assert tiny.result_bytes(run) == tiny.result_bytes(finished_run)
    assert tiny.files_of(run) == tiny.files_of(finished_run)
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))["metrics"]
    for name, values in metrics.items():
        assert name in result.out
        assert f"{values['mean']:.3f} ± {values['sd']:.3f}" in result.out
        assert f"{values['pooled']:.3f}" in result.out
    assert "14 slides, 12 patients, 2 folds" in result.out
    assert result.out.rstrip().endswith(f"→ {run}")
    assert "14 slides of 12 patients; label: a 7, b 7" in result.err


def test_set(cli: Any, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = "--set training.epochs=1 --set model.name=abmil --set model.dim=4 --set out=here --set seed=3"
    result = cli(f"train {options}", study)
    assert result.code == 0, result.err
    kept = load_run_config(tmp_path / "here" / "config.yaml")
    assert (kept.training.epochs, kept.model["name"], kept.model["dim"], kept.seed) == (1, "abmil", 4, 3)
    assert kept.data.cohort == study.parent / "cohort.csv", "paths in the file are from the file"
    assert not study.with_name("run").exists()


def test_preset(cli: Any, study: Path) -> None:
    options = ["--set", "training.epochs=1", "--set", "preset=published", "--set", "model.dim=4"]
    assert cli("train", study, *options).code == 0
    kept = load_run_config(study.with_name("run") / "config.yaml")
    assert kept.training.grad_clip is None
    assert kept.training.decay_all
    assert kept.model["dt_init"] == "published"
    assert kept.model["dim"] == 4
    assert cli("train", study, *options).code == 0, "and it goes on"


def test_again(cli: Any, tiny: ModuleType, study: Path) -> None:
    first = cli("train", study)
    before = tiny.result_bytes(study.with_name("run"))
    again = cli("train", study)
    assert again.out == first.out
    assert tiny.result_bytes(study.with_name("run")) == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epoch=3", "training.epoch: unknown key; did you mean 'epochs'?"),
        ("training.epochs=0", "training.epochs"),
        ("training.epochs", "must be key=value, as in training.epochs=10"),
        ("training.lr=fast", "training.lr"),
        ("model.name=mamba3d", "model 'mamba3d' is unknown; did you mean 'mamba2d-mil'?"),
        ("model.depth=2", "depth: unknown key"),
        ("training.loss=nll", "'nll' is a loss for survival, the task is classification"),
        ("data.splits=nowhere", "no files splits_0.csv"),
        ("data.features=nowhere", "no slide of the cohort has a feature file here; extract them into it"),
        ("task.label=grade", "no column 'grade'"),
        ("preset=publishd", "preset 'publishd': unknown; there are bracs, demo, dhmc, kirc"),
        ("training.device=cuda:9", "device 'cuda:9'"),
    ],
)
def test_mistakes(fails: Any, study: Path, override: str, words: str) -> None:
    assert words in fails("train", study, "--set", override)
    assert not study.with_name("run").exists()


def test_no_configuration(fails: Any, tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in fails("train", tmp_path / "none.yaml")


def test_another_run_in_that_folder(cli: Any, fails: Any, study: Path) -> None:
    assert cli("train", study).code == 0
    line = fails("train", study, "--set", "training.lr=0.5")
    assert "holds a run with another training.lr; give another out, or delete that folder" in line
