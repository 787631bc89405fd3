"""Survival on the command line with losses that compare patients: train, go on, predict, evaluate."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from wsi2d.training.crossval import TrainProgress, train

LOSSES = {
    "cox": ["--set", "training.loss=cox"],
    "cox, bank": ["--set", "training.loss={name: cox, bags: 1, bank: 4, ties: breslow}"],
    "ranking": ["--set", "training.loss={name: ranking, bags: 3}"],
}


class Stop(Exception):
    """What interrupts a training."""


class StopAfterThree(TrainProgress):
    """Interrupts after three epochs of all folds together."""

    done = 0

    def epoch_done(self, fold: int, row: dict[str, float]) -> None:
        self.done += 1
        if self.done == 3:
            raise Stop


@pytest.mark.parametrize("loss", LOSSES)
def test_train_predict_and_evaluate(cli: Any, tiny: ModuleType, tmp_path: Path, loss: str) -> None:
    study = tiny.write_study(tmp_path / "study", "survival")
    trained = cli("train", study, *LOSSES[loss])
    assert trained.code == 0, trained.err
    run = study.with_name("run")
    assert "c_index" in trained.out

    metrics = (run / "metrics.json").read_bytes()
    (run / "metrics.json").unlink()
    evaluated = cli("evaluate", run)
    assert evaluated.code == 0, evaluated.err
    found, before = json.loads((run / "metrics.json").read_bytes()), json.loads(metrics)
    assert found["metrics"]["c_index"]["per_fold"] == before["metrics"]["c_index"]["per_fold"]
    assert found["cases"] == 12

    rng = np.random.default_rng(3)
    for name in ("n1", "n2"):
        tiny.write_features(tmp_path / "new", name, rng.normal(size=(9, tiny.DIM)).astype(np.float32))
    predicted = cli("predict", run, tmp_path / "new", "--out", tmp_path / "out.csv")
    assert predicted.code == 0, predicted.err
    rows = tiny.read_table(tmp_path / "out.csv")
    assert [row["slide_id"] for row in rows] == ["n1", "n2"]
    for row in rows:
        assert np.isfinite(float(row["risk"]))
        assert 1 >= float(row["survival_1"]) >= float(row["survival_2"]) >= 0
        assert 0 < float(row["edge_1"]) < float(row["edge_2"])
        assert row["median_time"] == "" or float(row["median_time"]) > 0
        assert row["time"] == row["event"] == ""


@pytest.mark.parametrize("loss", LOSSES)
def test_an_interrupted_command_goes_on_to_the_same_bits(cli: Any, tiny: ModuleType, tmp_path: Path, loss: str) -> None:
    whole, parts = (tiny.write_study(tmp_path / which, "survival") for which in ("whole", "parts"))
    assert cli("train", whole, *LOSSES[loss]).code == 0
    from wsi2d.config_files import load_run_config

    with pytest.raises(Stop):
        train(load_run_config(parts, [LOSSES[loss][1]]), progress=StopAfterThree())
    assert not (parts.with_name("run") / "predictions.csv").exists()
    assert cli("train", parts, *LOSSES[loss]).code == 0
    assert tiny.result_bytes(parts.with_name("run")) == tiny.result_bytes(whole.with_name("run"))
    assert tiny.files_of(parts.with_name("run")) == tiny.files_of(whole.with_name("run"))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("{name: cox, ties: exact}", "ties: Input should be 'efron' or 'breslow'"),
        ("{name: ranking, bags: 1}", "bank: must be 1 or more where bags is 1: a bag alone has nobody to be compared"),
        ("coxx", "loss 'coxx' is unknown; did you mean 'cox'?"),
    ],
)
def test_mistakes(fails: Any, tiny: ModuleType, tmp_path: Path, loss: str, words: str) -> None:
    study = tiny.write_study(tmp_path / "study", "survival")
    assert words in fails("train", study, "--set", f"training.loss={loss}")
    assert not study.with_name("run").exists()


def test_a_side_without_events_is_told_before_anything_is_trained(fails: Any, tiny: ModuleType, tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "study", "survival")
    tiny.write_fold(study.parent / "splits", 1, train=["p00", "p01", "p05"], val=["p04"], test=["p10", "p11"])
    line = fails("train", study, "--set", "training.loss=cox")
    assert "fold 1: no two patients on its val side can be compared" in line
    assert "training.loss=nll" in line
