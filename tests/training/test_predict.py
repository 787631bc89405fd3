"""New slides by the mean of a run's folds, and only with features of the kind that it was trained on."""

import logging
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from wsi2d.data.bags import load_bag
from wsi2d.errors import FeatureStoreError, RunError
from wsi2d.features.store import feature_path
from wsi2d.models.output import hazards, risk
from wsi2d.training.crossval import TrainProgress, train
from wsi2d.training.inference import predict_bags
from wsi2d.training.predict import check_features, load_run_models, predict
from wsi2d.training.run import open_run

CPU = torch.device("cpu")


@pytest.fixture
def new_slides(tiny: ModuleType, tmp_path: Path) -> Path:
    """Three slides that no run has seen."""
    rng = np.random.default_rng(50)
    for i, count in enumerate((1, 9, 23)):
        tiny.write_features(tmp_path / "new", f"n{i}", rng.normal(size=(count, tiny.DIM)).astype(np.float32))
    return tmp_path / "new"


def logits_by_fold(run: Path, path: Path) -> torch.Tensor:
    """What each fold's model says of a slide, ``[folds, classes or bins]``."""
    opened = open_run(run)
    bag = load_bag(path)
    return torch.cat([predict_bags(opened.model(fold, CPU)[0], [bag], CPU)[0] for fold in opened.folds])


def test_mean_of_folds(finished_run: Path, new_slides: Path, tmp_path: Path, tiny: ModuleType) -> None:
    table = predict(finished_run, new_slides, tmp_path / "deep" / "out.csv", device="cpu")
    assert table["slide_id"].tolist() == ["n0", "n1", "n2"]
    for row in table.to_dict("records"):
        logits = logits_by_fold(finished_run, feature_path(new_slides, row["slide_id"])).double()
        expected = logits.softmax(-1).mean(0)
        np.testing.assert_allclose([row["prob_a"], row["prob_b"]], expected, rtol=1e-6)
        assert not torch.allclose(logits[0], logits[1])
    written = tiny.read_table(tmp_path / "deep" / "out.csv")
    assert [list(row) for row in written] == [["slide_id", "case_id", "fold", "label", "prob_a", "prob_b"]] * 3
    assert [float(row["prob_b"]) for row in written] == table["prob_b"].tolist()
    assert {(row["fold"], row["label"]) for row in written} == {("", "")}, "no fold, and nothing known"


def test_survival_is_the_mean_risk(survival_run: Path, new_slides: Path) -> None:
    table = predict(survival_run, new_slides, device="cpu")
    for row in table.to_dict("records"):
        logits = logits_by_fold(survival_run, feature_path(new_slides, row["slide_id"])).double()
        assert row["risk"] == pytest.approx(float(risk(logits).mean()), rel=1e-6)
        found = [row[f"hazard_{i}"] for i in range(1, 4)]
        np.testing.assert_allclose(found, hazards(logits).mean(0), rtol=1e-6)
        assert row["time"] is None
        assert row["event"] is None


def test_one_file_or_a_folder(finished_run: Path, new_slides: Path) -> None:
    whole = predict(finished_run, new_slides)
    one = predict(str(finished_run), str(new_slides / "n1.h5"))
    assert one.to_dict("records") == [whole.to_dict("records")[1]]


def test_files_that_are_not_finished_are_not_looked_at(finished_run: Path, new_slides: Path) -> None:
    (new_slides / ".n9.h5.partial").write_bytes(b"half")
    (new_slides / ".hidden.h5").write_bytes(b"half")
    (new_slides / "failures.csv").write_text("slide_id,path,error\n")
    assert len(predict(finished_run, new_slides)) == 3


def test_a_fold_alone_says_what_its_predictions_say(tiny: ModuleType, finished_run: Path) -> None:
    """The kept model is the one that scored the test side."""
    rows = tiny.read_table(finished_run / "predictions.csv")
    for row in rows:
        models = load_run_models(open_run(finished_run), [int(row["fold"])], device="cpu")
        bag = load_bag(feature_path(finished_run.parent / "features", row["slide_id"]))
        prediction = models.predict(bag, row["case_id"])
        assert prediction.scores.tolist() == [float(row["prob_a"]), float(row["prob_b"])]
        assert (prediction.fold, prediction.case_id) == (int(row["fold"]), row["case_id"])


def test_attention_of_the_ensemble_is_the_mean(finished_run: Path, new_slides: Path) -> None:
    run = open_run(finished_run)
    bag = load_bag(new_slides / "n2.h5")
    both = load_run_models(run).predict(bag)
    single = [load_run_models(run, [fold]).predict(bag).attention for fold in (0, 1)]
    np.testing.assert_allclose(both.attention, np.mean(single, 0), rtol=1e-6)
    assert both.fold is None
    assert both.attention.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"encoder": "uni"}, "encoder uni, not tiny"),
        ({"encoder_hash": "4567"}, "encoder_hash 4567, not 0123"),
        ({"mpp": 1.0, "slide_mpp": 1.0}, "mpp 1.0, not 0.5"),
        ({"patch_px": 256}, "patch_px 256, not 128"),
        ({"overlap_px": 64}, "overlap_px 64, not 0"),
        ({"dim": 9}, "dim 9, not 8"),
    ],
)
def test_features_of_another_kind_are_refused(
    tiny: ModuleType, finished_run: Path, new_slides: Path, made: dict[str, Any], words: str
) -> None:
    dim = made.pop("dim", tiny.DIM)
    tiny.write_features(new_slides, "n8", np.ones((4, dim), np.float32), **made)
    with pytest.raises(FeatureStoreError, match=f"n8.h5: has {words} as the run was trained on") as caught:
        predict(finished_run, new_slides, new_slides.parent / "out.csv")
    assert "\n" not in str(caught.value)
    assert not (new_slides.parent / "out.csv").exists()


def test_another_scanner_is_no_other_kind(tiny: ModuleType, finished_run: Path, new_slides: Path) -> None:
    """A 40× slide whose patches show the same field at the same resolution."""
    tiny.write_features(new_slides, "n8", np.ones((4, tiny.DIM), np.float32), slide_mpp=0.25)
    assert len(predict(finished_run, new_slides)) == 4


def test_slides_without_tissue(
    tiny: ModuleType, finished_run: Path, new_slides: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny.write_features(new_slides, "n8", np.zeros((0, tiny.DIM), np.float32))
    models = load_run_models(open_run(finished_run))
    assert not check_features(path, models.features)
    assert check_features(new_slides / "n0.h5", models.features)
    with caplog.at_level(logging.WARNING, "wsi2d"):
        assert predict(finished_run, new_slides)["slide_id"].tolist() == ["n0", "n1", "n2"]
    assert [r.getMessage() for r in caplog.records if "n8" in r.getMessage()] != [], "it is said, not swallowed"
    with pytest.raises(FeatureStoreError, match="no slide with tissue; there is nothing to predict"):
        predict(finished_run, path)


def test_nothing_to_predict(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match=r"no \.h5 files; extract slides into it first"):
        predict(finished_run, tmp_path)
    with pytest.raises(FeatureStoreError, match=r"no \.h5 files"):
        predict(finished_run, tmp_path / "nowhere")
    (tmp_path / "x.h5").write_bytes(b"junk")
    with pytest.raises(FeatureStoreError, match="not a readable HDF5 file"):
        predict(finished_run, tmp_path)


class Stop(Exception):
    """What interrupts a training."""


@pytest.mark.parametrize("after", [1, 3])
def test_unfinished_run(tiny: ModuleType, new_slides: Path, tmp_path: Path, after: int) -> None:
    """Neither half-trained folds nor some of the folds are passed off as the run."""

    class Interrupt(TrainProgress):
        done = 0

        def epoch_done(self, fold: int, row: dict[str, float]) -> None:
            self.done += 1
            if self.done == after:
                raise Stop

    path = tiny.write_study(tmp_path / "study")
    with pytest.raises(Stop):
        train(path, progress=Interrupt())
    with pytest.raises(RunError, match="is unfinished"):
        predict(path.with_name("run"), new_slides)


def test_missing_or_damaged_model(finished_run: Path, new_slides: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no config\.yaml"):
        predict(tmp_path / "nowhere", new_slides)
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "fold-1" / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(RunError, match=r"fold-1.*damaged"):
        predict(tmp_path / "run", new_slides)


def test_folds_with_different_time_bins_are_not_averaged(tiny: ModuleType, tmp_path: Path, new_slides: Path) -> None:
    """Where many patients die at one time, a fold has fewer bins than another."""
    path = tiny.write_study(tmp_path / "study", "survival")
    rows = tiny.read_table(tmp_path / "study" / "cohort.csv")
    train_0 = {line["train"] for line in tiny.read_table(tmp_path / "study" / "splits" / "splits_0.csv")}
    for row in rows:
        row["months"] = "12" if row["case_id"] in train_0 else row["months"]
    tiny.write_table(tmp_path / "study" / "cohort.csv", list(rows[0]), [list(row.values()) for row in rows])
    train(path)
    run = open_run(path.with_name("run"))
    assert {run.model(fold, CPU)[1].out_dim for fold in run.folds} == {2, 3}
    with pytest.raises(RunError, match="different numbers of time bins"):
        predict(path.with_name("run"), new_slides)
