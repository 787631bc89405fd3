"""Survival from training to predictions: models of one log-risk, curves and medians, and going on half-way."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from wsi2d.data.bags import load_bag
from wsi2d.errors import RunError, SplitError
from wsi2d.features.store import feature_path
from wsi2d.training import fold as fold_module
from wsi2d.training.checkpoint import ModelCard
from wsi2d.training.crossval import TrainProgress, train
from wsi2d.training.inference import predict_bags
from wsi2d.training.predict import predict
from wsi2d.training.run import open_run

CPU = torch.device("cpu")
LOSSES: dict[str, dict[str, Any]] = {
    "cox": {"name": "cox"},
    "cox, two bags a step": {"name": "cox", "bags": 2, "ties": "breslow"},
    "cox, bank": {"name": "cox", "bags": 1, "bank": 3},
    "ranking, bank": {"name": "ranking", "bags": 2, "bank": 2},
}
Row = dict[str, str]


class Stop(Exception):
    """What interrupts a training."""


class StopAfter(TrainProgress):
    """Interrupts after that many epochs of all folds together."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch_done(self, fold: int, row: dict[str, float]) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


def write(tiny: ModuleType, folder: Path, loss: dict[str, Any], **training: Any) -> Path:
    """A survival study with a loss."""
    return tiny.write_study(folder, "survival", training={"loss": loss, **training})


@pytest.fixture(scope="module")
def cox_run(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, read only."""
    path = write(tiny, tmp_path_factory.mktemp("cox"), LOSSES["cox"])
    train(path)
    return path.with_name("run")


def patients(tiny: ModuleType, run: Path, side: str, fold: int) -> list[list[Row]]:
    """The rows of the cohort of each patient of one side of a fold."""
    cases = {line[side] for line in tiny.read_table(run / "splits" / f"splits_{fold}.csv")} - {""}
    rows = tiny.read_table(run.parent / "cohort.csv")
    return [[row for row in rows if row["case_id"] == case] for case in sorted(cases)]


def log_risk(run: Path, fold: int, slide_id: str) -> float:
    """What a fold's model says of a slide."""
    bag = load_bag(feature_path(run.parent / "features", slide_id))
    return float(predict_bags(open_run(run).model(fold, CPU)[0], [bag], CPU)[0].double())


def cards(run: Path) -> list[ModelCard]:
    opened = open_run(run)
    return [opened.model(fold, CPU)[1] for fold in opened.folds]


# --- going on


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_interrupted_run_ends_with_the_numbers_of_one_that_was_not(
    tiny: ModuleType, tmp_path: Path, name: str, epochs: int
) -> None:
    """Interrupted in the first fold and in the second; the bank begins each epoch empty."""
    whole, parts = (write(tiny, tmp_path / which, LOSSES[name]) for which in ("whole", "parts"))
    train(whole)
    with pytest.raises(Stop):
        train(parts, progress=StopAfter(epochs))
    train(parts)
    assert tiny.result_bytes(parts.with_name("run")) == tiny.result_bytes(whole.with_name("run"))


@pytest.mark.parametrize("step", ["fit_baseline", "save_model", "load_model"])
def test_killed_around_the_baseline(
    tiny: ModuleType, tmp_path: Path, cox_run: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The epochs are done by then (the second is no better than the first, and not kept)."""
    path = write(tiny, tmp_path, LOSSES["cox"])
    original, calls = getattr(fold_module, step), []

    def last_of_the_first_fold(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if step == "save_model" and args[1].baseline is None:
            return original(*args, **kwargs)
        raise Stop

    monkeypatch.setattr(fold_module, step, last_of_the_first_fold)
    with pytest.raises(Stop):
        train(path)
    monkeypatch.undo()
    assert calls
    train(path)
    assert tiny.result_bytes(path.with_name("run")) == tiny.result_bytes(cox_run)


@pytest.mark.parametrize("name", ["cox", "cox, two bags a step"])
def test_batches_within_a_step_do_not_change_what_is_learned(tiny: ModuleType, tmp_path: Path, name: str) -> None:
    """One bag at a time or all of a step's padded together: without dropout the same risk set, and the same risks (but
    for a constant, of which the loss says nothing)."""
    model = {**tiny.MODEL, "dropout": 0.0}
    risks = []
    for size in (1, 4):
        path = write(tiny, tmp_path / str(size), LOSSES[name], batch_size=size)
        train(tiny.changed(path, model=model))
        rows = tiny.read_table(path.with_name("run") / "predictions.csv")
        folds = [np.array([float(row["risk"]) for row in rows if row["fold"] == fold]) for fold in "01"]
        risks.append(np.concatenate([fold - fold.mean() for fold in folds]))
    np.testing.assert_allclose(risks[0], risks[1], atol=1e-4)
    assert np.std(risks[0]) > 0.05


@pytest.mark.parametrize("name", LOSSES)
def test_a_model_of_log_risks_can_learn(tiny: ModuleType, tmp_path: Path, name: str) -> None:
    """Patients of class b die sooner than all of class a; both are told apart on slides that were not seen."""
    model = {"name": "abmil", "dim": 8, "attention_dim": 4, "dropout": 0, "standardise": False}
    path = write(tiny, tmp_path, LOSSES[name], epochs=30, lr=0.01)
    rng = np.random.default_rng(0)
    for row in tiny.read_table(tmp_path / "cohort.csv"):
        features = rng.normal(2.0 * (row["label"] == "b"), 0.2, (9, tiny.DIM)).astype(np.float32)
        tiny.write_features(tmp_path / "features", row["slide_id"], features)
    cases = [f"p{i:02d}" for i in range(12)]
    for k, test in enumerate((cases[6:8] + cases[9:11], cases[8:12])):
        rest = [case for case in cases if case not in test]
        tiny.write_fold(tmp_path / "splits", k, train=rest[2:], val=rest[:2], test=test)
    train(tiny.changed(path, model=model))
    label = {row["slide_id"]: row["label"] for row in tiny.read_table(tmp_path / "cohort.csv")}
    for fold in ("0", "1"):
        rows = [r for r in tiny.read_table(tmp_path / "run" / "predictions.csv") if r["fold"] == fold]
        a, b = ([float(r["risk"]) for r in rows if label[r["slide_id"]] == which] for which in "ab")
        assert len(a) == len(b) == 2
        assert min(b) > max(a)


# --- what predictions hold


def test_risk_is_the_log_risk_and_there_are_no_hazards(tiny: ModuleType, cox_run: Path) -> None:
    rows = tiny.read_table(cox_run / "predictions.csv")
    names = ["slide_id", "case_id", "fold", "time", "event", "risk", "risk_cut", "median_time"]
    assert [*rows[0]] == [*names, "edge_1", "edge_2", "survival_1", "survival_2"]
    assert len(rows) == 14
    for row in rows:
        assert float(row["risk"]) == pytest.approx(log_risk(cox_run, int(row["fold"]), row["slide_id"]), rel=1e-5)


def test_the_baseline_is_breslows_over_the_patients_of_the_training_side(tiny: ModuleType, cox_run: Path) -> None:
    """Time by time and patient by patient, from the kept models; a patient has the mean risk of his slides."""
    slides = [[len(s) for s in patients(tiny, cox_run, "train", fold)] for fold in (0, 1)]
    assert 2 in slides[0] + slides[1]
    for fold, card in enumerate(cards(cox_run)):
        known = [
            (float(s[0]["months"]), s[0]["status"] == "dead",
             np.mean([log_risk(cox_run, fold, row["slide_id"]) for row in s]))
            for s in patients(tiny, cox_run, "train", fold)
        ]  # fmt: skip
        hazard, expected = 0.0, {}
        for time in sorted({time for time, died, _ in known if died}):
            deaths = sum(died and t == time for t, died, _ in known)
            hazard += deaths / sum(math.exp(r) for t, _, r in known if t >= time)
            expected[time] = hazard
        assert card.baseline is not None
        assert card.baseline.times == tuple(expected)
        np.testing.assert_allclose(np.exp(card.baseline.log_hazard), list(expected.values()), rtol=1e-5)
        assert card.last_event == max(expected)


def test_curves_of_log_risks_are_the_baseline_to_their_power(tiny: ModuleType, cox_run: Path) -> None:
    found = cards(cox_run)
    for row in tiny.read_table(cox_run / "predictions.csv"):
        card = found[int(row["fold"])]
        steps = [(0.0, 1.0)]
        for time, log_hazard in zip(card.baseline.times, card.baseline.log_hazard, strict=True):
            steps.append((time, math.exp(-math.exp(log_hazard + float(row["risk"])))))
        for i, edge in enumerate(card.bin_edges, 1):
            assert float(row[f"edge_{i}"]) == edge
            assert float(row[f"survival_{i}"]) == pytest.approx([s for t, s in steps if t <= edge][-1])
        low = [t for t, s in steps if s <= 0.5]
        assert row["median_time"] == (str(low[0]) if low else "")


def test_curves_of_hazards_are_their_products_at_the_edges(tiny: ModuleType, survival_run: Path) -> None:
    found = cards(survival_run)
    for row in tiny.read_table(survival_run / "predictions.csv"):
        card = found[int(row["fold"])]
        curve = np.cumprod([1 - float(row[f"hazard_{i}"]) for i in (1, 2, 3)])
        assert [float(row[f"survival_{i}"]) for i in (1, 2)] == pytest.approx(curve[:2])
        assert [float(row[f"edge_{i}"]) for i in (1, 2)] == list(card.bin_edges)
        ends = [0.0, *card.bin_edges, card.last_event]
        if curve[-1] > 0.5:
            assert row["median_time"] == ""
        else:
            assert np.interp(float(row["median_time"]), ends, [1, *curve]) == pytest.approx(0.5)


def test_median_is_empty_where_the_curve_stays_above_a_half(tiny: ModuleType, tmp_path: Path) -> None:
    """One event a side, among four patients who are followed for long."""
    path = write(tiny, tmp_path, LOSSES["cox"], epochs=1)
    rows = tiny.read_table(tmp_path / "cohort.csv")
    for row in rows:
        died = row["case_id"] in ("p01", "p03", "p07", "p11")
        row["months"], row["status"] = ("3", "dead") if died else ("50", "alive")
    tiny.write_table(tmp_path / "cohort.csv", list(rows[0]), [list(row.values()) for row in rows])
    train(path)
    for row in tiny.read_table(tmp_path / "run" / "predictions.csv"):
        assert row["edge_1"] == "3.0"
        assert 0.5 < float(row["survival_1"]) < 1
        assert row["median_time"] == ""


def test_an_ensemble_has_the_mean_risk_and_the_mean_curve(tiny: ModuleType, cox_run: Path) -> None:
    table = predict(cox_run, cox_run.parent / "features", device="cpu")
    found = cards(cox_run)
    for row in table.to_dict("records"):
        risks = [log_risk(cox_run, fold, row["slide_id"]) for fold in (0, 1)]
        assert row["risk"] == pytest.approx(np.mean(risks), rel=1e-5)

        def mean(time: float, risks: list[float] = risks) -> float:
            curves = [card.baseline.curve(r) for card, r in zip(found, risks, strict=True)]
            return float(np.mean([curve.at([time])[0] for curve in curves]))

        for i in (1, 2):
            edge = np.mean([card.bin_edges[i - 1] for card in found])
            assert row[f"edge_{i}"] == pytest.approx(edge)
            assert row[f"survival_{i}"] == pytest.approx(mean(float(edge)), rel=1e-5)
        times = sorted({t for card in found for t in card.baseline.times})
        assert row["median_time"] == next(t for t in times if mean(t) <= 0.5)


def test_the_test_side_does_not_move_the_baseline(tiny: ModuleType, cox_run: Path, tmp_path: Path) -> None:
    path = write(tiny, tmp_path, LOSSES["cox"])
    test = {row["case_id"] for rows in patients(tiny, cox_run, "test", 0) for row in rows}
    rows = tiny.read_table(tmp_path / "cohort.csv")
    for row in rows:
        row["months"] = str(float(row["months"]) + 100 * (row["case_id"] in test))
    tiny.write_table(tmp_path / "cohort.csv", list(rows[0]), [list(row.values()) for row in rows])
    train(path)
    model = Path("fold-0") / "model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (cox_run / model).read_bytes()
    other = Path("fold-1") / "model.safetensors"
    assert (tmp_path / "run" / other).read_bytes() != (cox_run / other).read_bytes()


# --- what cannot be learned or averaged


@pytest.mark.parametrize("side", ["train", "val"])
@pytest.mark.parametrize("name", ["cox", "ranking, bank"])
def test_a_side_on_which_nobody_can_be_compared(tiny: ModuleType, tmp_path: Path, name: str, side: str) -> None:
    """Val p04 and p09 have no event; train p00 has two slides, but they are of one patient."""
    path = write(tiny, tmp_path, LOSSES[name])
    sides = {"train": ["p00", "p01", "p05"], "val": ["p06", "p07"], "test": ["p10", "p11"]}
    alone = {"train": ["p00"], "val": ["p04", "p09"]}
    tiny.write_fold(tmp_path / "splits", 1, **(sides | {side: alone[side]}))
    with pytest.raises(SplitError, match=f"fold 1: no two patients on its {side} side can be compared") as caught:
        train(path)
    assert "\n" not in str(caught.value)
    assert "training.loss=nll" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_folds_with_different_edges_are_not_averaged(tiny: ModuleType, tmp_path: Path) -> None:
    path = write(tiny, tmp_path, LOSSES["cox"], epochs=1)
    rows = tiny.read_table(tmp_path / "cohort.csv")
    train_0 = {line["train"] for line in tiny.read_table(tmp_path / "splits" / "splits_0.csv")}
    for row in rows:
        row["months"] = "12" if row["case_id"] in train_0 and row["status"] == "dead" else row["months"]
        row["status"] = "alive" if row["case_id"] == sorted(train_0 - {""})[0] else row["status"]
    tiny.write_table(tmp_path / "cohort.csv", list(rows[0]), [list(row.values()) for row in rows])
    train(path)
    assert {len(card.bin_edges) for card in cards(tmp_path / "run")} == {1, 2}
    with pytest.raises(RunError, match="different numbers of time bins"):
        predict(tmp_path / "run", tmp_path / "features")


def test_another_loss_is_another_run(tiny: ModuleType, cox_run: Path, tmp_path: Path) -> None:
    path = write(tiny, tmp_path, LOSSES["cox"], epochs=1)
    train(path)
    change: Callable[..., Any] = tiny.changed
    for loss in ({"name": "nll"}, {"name": "cox", "bags": 3}, {"name": "cox", "bank": 3}):
        with pytest.raises(RunError, match=r"holds a run with another training\.loss"):
            train(change(path, training={"epochs": 1, "loss": loss}))
