"""Patches elsewhere: what a model that reads places notices, what one that does not cannot, and runs trained so."""

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from wsi2d.config import Arrangement
from wsi2d.data.arrangements import ARRANGEMENTS
from wsi2d.errors import RunError
from wsi2d.features.store import feature_path
from wsi2d.training.ablation import ablate
from wsi2d.training.crossval import train
from wsi2d.training.predict import load_run_models
from wsi2d.training.run import open_run


def probabilities(table: Path) -> "pd.Series[float]":
    return pd.read_csv(table).set_index("slide_id")["prob_a"].sort_index()


@pytest.fixture(scope="module")
def own_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, with its study, to write into."""
    folder = tmp_path_factory.mktemp("own") / "study"
    shutil.copytree(finished_run.parent, folder)
    return folder / finished_run.name


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_a_model_of_the_grid_notices(own_run: Path, name: Arrangement) -> None:
    found = ablate(own_run, [name])
    elsewhere = own_run / "ablations" / f"{name}.csv"
    as_it_was = probabilities(own_run / "predictions.csv")
    changed = (probabilities(elsewhere) - as_it_was).abs() > 1e-6
    if name == "drop-empty":
        assert not changed.any(), "no row or column of these grids is without tissue"
    else:
        assert changed.mean() > 0.5
    assert (found.first, found.second) == (str(own_run), str(elsewhere))
    assert found.metrics["auc"].mean_interval is not None


def test_a_bag_of_patches_does_not(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.write_study(tmp_path, model={"name": "abmil", "dim": 8})
    train(path)
    found = ablate(tmp_path / "run", ["flatten", "shuffle-positions", "flip"])
    elsewhere = tmp_path / "run" / "ablations" / "flip+shuffle-positions+flatten.csv"
    assert np.allclose(probabilities(elsewhere), probabilities(tmp_path / "run" / "predictions.csv"), atol=1e-6)
    assert found.metrics["auc"].mean == 0
    assert found.metrics["auc"].mean_p == 1


@pytest.fixture(scope="module")
def flat_run(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on grids flattened to one row, and on slides turned at random."""
    path: Path = tiny.write_study(
        tmp_path_factory.mktemp("flat"), data={"arrangement": ["flatten", "rotate"]}, training={"epochs": 3}
    )
    train(path)
    return path.with_name("run")


def test_a_run_trained_so_is_asked_so(flat_run: Path) -> None:
    """Its models see one row wherever they are used, and slides as they lie: turning is for training."""
    run = open_run(flat_run)
    own = pd.read_csv(flat_run / "predictions.csv").set_index("slide_id")
    from wsi2d.data.bags import load_bag

    for slide_id, row in own.iterrows():
        models = load_run_models(run, [int(row["fold"])], device="cpu")
        prediction = models.predict(load_bag(feature_path(run.config.data.features, str(slide_id))))
        assert prediction.scores[0] == pytest.approx(row["prob_a"], abs=1e-6)
    assert (ablate(flat_run, ["flatten"]).metrics["auc"].mean, len(own)) == (0, 14), "it is flat already"
    turned = probabilities(flat_run / "ablations" / "flatten.csv"), probabilities(flat_run / "predictions.csv")
    assert np.allclose(*turned, atol=1e-6)
    ablate(flat_run, ["rotate"])
    assert not np.allclose(probabilities(flat_run / "ablations" / "rotate.csv"), turned[1], atol=1e-6)


def test_what_a_run_was_trained_with_is_said(flat_run: Path) -> None:
    whole = "the run was trained so (flatten): nothing lies elsewhere, and no difference says anything"
    assert ablate(flat_run, ["flatten"]).notes[0] == whole
    assert ablate(flat_run, ["flatten", "flip"]).notes[0] == (
        "the run was trained so (flatten): the difference is not of that"
    )
    assert not any("trained so" in note for note in ablate(flat_run, ["rotate"]).notes), "turned in training alone"


def test_turns_are_drawn_alike_when_a_run_goes_on(flat_run: Path, tiny: ModuleType, tmp_path: Path) -> None:
    """Interrupted after its first epoch, a fold ends with the same weights."""

    class Stop(Exception):
        pass

    from wsi2d.training.crossval import TrainProgress

    class StopAfterOne(TrainProgress):
        def epoch_done(self, fold: int, row: dict[str, float]) -> None:
            raise Stop

    path = tiny.write_study(tmp_path, data={"arrangement": ["flatten", "rotate"]}, training={"epochs": 3})
    with pytest.raises(Stop):
        train(path, progress=StopAfterOne())
    train(path)
    assert tiny.result_bytes(tmp_path / "run") == tiny.result_bytes(flat_run)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no config"):
        ablate(tmp_path, ["flip"])


@pytest.fixture
def stale_run(finished_run: Path, tmp_path: Path) -> Path:
    """A run that has moved since, with a study of its own beside it to spoil."""
    shutil.copytree(finished_run.parent, tmp_path / "study")
    return (tmp_path / "study" / "run").rename(tmp_path / "study" / "moved")


def test_a_run_that_has_moved_is_asked(stale_run: Path) -> None:
    assert ablate(stale_run, ["flip"]).first == str(stale_run)


@pytest.mark.parametrize("now", ["a third class", "another class", "another label"])
def test_another_cohort_is_refused(stale_run: Path, now: str) -> None:
    cohort = stale_run.with_name("cohort.csv")
    text = cohort.read_text("utf-8")
    old, new = {
        "a third class": ("p02,a", "p02,c"),
        "another class": (",b,", ",z,"),
        "another label": ("p02,a", "p02,b"),
    }[now]
    cohort.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(RunError) as error:
        ablate(stale_run, ["flip"])
    line = str(error.value)
    assert line.startswith(f"run {stale_run}: began with other slides, labels or features than there are now")
    assert line.endswith("; put back what it was trained on, or train again")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("width", "encoder", "said"),
    [(5, "tiny", "dim 5, not 8"), (8, "other", "encoder other, not tiny")],
    ids=["width", "encoder"],
)
def test_other_features_are_refused(stale_run: Path, tiny: ModuleType, width: int, encoder: str, said: str) -> None:
    features = stale_run.with_name("features")
    for row in tiny.read_table(stale_run / "cohort.csv"):
        values = np.ones((int(row["patches"]), width), np.float32)
        tiny.write_features(features, row["slide_id"], values, encoder=encoder)
    with pytest.raises(RunError) as error:
        ablate(stale_run, ["flip"])
    assert str(error.value) == (
        f"run {stale_run}: began with other features, {features} has {said}; "
        "put back what it was trained on, or train again"
    )


def test_other_splits_are_refused(stale_run: Path, tiny: ModuleType) -> None:
    tiny.write_fold(stale_run.with_name("splits"), 0, train=["p02"], val=["p03"], test=["p04"])
    with pytest.raises(RunError, match=r"began with other splits than .*; put back what it was trained on"):
        ablate(stale_run, ["flip"])
