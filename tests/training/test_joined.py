"""Patients whose slides are one bag: in training, in predictions, in attention, and with slides that are missing."""

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from wsi2d.data.bags import collate, load_bag
from wsi2d.errors import CohortError, FeatureStoreError, RunError
from wsi2d.evaluation.predictions import read_predictions
from wsi2d.features.store import feature_path
from wsi2d.training import fold as fold_module
from wsi2d.training.crossval import train
from wsi2d.training.external import predict_cohort
from wsi2d.training.predict import predict
from wsi2d.training.run import open_run

TWO_SLIDES = {"p00": ("s00x", "s00y"), "p01": ("s01x", "s01y")}


@pytest.fixture
def study(tiny: ModuleType, tmp_path: Path) -> Path:
    """The YAML file of a study of this test's own."""
    return Path(tiny.write_study(tmp_path / "study", data={"bag": "case"}))


@pytest.fixture(scope="module", params=["classification", "survival", "cox"])
def joined_run(request: pytest.FixtureRequest, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on patients; read only."""
    kind = "survival" if request.param == "cox" else request.param
    training = {"loss": {"name": "cox", "bags": 3, "bank": 4}} if request.param == "cox" else {}
    path = tiny.write_study(tmp_path_factory.mktemp(request.param), kind, data={"bag": "case"}, training=training)
    train(path)
    return Path(path.with_name("run"))


def without(tiny: ModuleType, study: Path, *empty: str) -> Path:
    """The study, in which some slides have no tissue."""
    for slide_id in empty:
        tiny.write_features(study.parent / "features", slide_id, np.zeros((0, tiny.DIM), np.float32))
    return study


# --- a finished run


def test_a_row_is_a_patient_and_names_the_slides(tiny: ModuleType, joined_run: Path) -> None:
    rows = tiny.read_table(joined_run / "predictions.csv")
    assert sorted(row["case_id"] for row in rows) == [f"p{i:02d}" for i in range(tiny.PATIENTS)]
    for row in rows:
        assert row["slide_id"] == row["case_id"]
        assert tuple(row["joined_slides"].split(";")) == TWO_SLIDES.get(row["case_id"], (f"s{row['case_id'][1:]}x",)), (
            "slides in the cohort's order"
        )
    table = read_predictions(joined_run / "predictions.csv")
    assert table.joined
    assert sum(map(len, table.slide_ids())) == 14


def test_a_prediction_is_the_model_on_all_of_the_patients_slides(tiny: ModuleType, joined_run: Path) -> None:
    run = open_run(joined_run)
    for row in tiny.read_table(joined_run / "predictions.csv"):
        model, card = run.model(int(row["fold"]), torch.device("cpu"))
        names = row["joined_slides"].split(";")
        slides = [load_bag(feature_path(run.config.data.features, name)) for name in names]
        with torch.no_grad():
            output = model(collate(slides, [len(slides)]))
        logits = output.logits[0].double()
        if card.kind == "classification":
            found, expected = [float(row["prob_a"]), float(row["prob_b"])], logits.softmax(0).tolist()
        elif card.log_risk:
            found, expected = [float(row["risk"])], logits.tolist()
        else:
            found, expected = [float(row["risk"])], [-float((1 - logits.sigmoid()).cumprod(0).sum())]
        assert found == pytest.approx(expected, rel=1e-6)
        parts = output.attention.split([len(slide) for slide in slides])
        for name, part in zip(names, parts, strict=True):
            with h5py.File(joined_run / f"fold-{row['fold']}" / "attention" / f"{name}.h5") as file:
                np.testing.assert_allclose(file["attention"][()], part, rtol=1e-6)
                assert file["coords"].shape == (len(part), 2)
                assert file.attrs["slide_id"] == name
                assert file.attrs["bag_patches"] == sum(map(len, parts))


def test_attention_sums_to_one_over_a_patient(joined_run: Path) -> None:
    totals = {}
    for path in joined_run.glob("fold-*/attention/*.h5"):
        with h5py.File(path) as file:
            totals[path.stem] = float(file["attention"][()].sum())
    assert len(totals) == 14
    for names in [*TWO_SLIDES.values(), ("s05x",)]:
        assert sum(totals[name] for name in names) == pytest.approx(1, abs=1e-5)
    assert all(0 < totals[name] < 1 - 1e-3 for names in TWO_SLIDES.values() for name in names)


def test_a_patient_is_one_step_and_one_row_of_val(tiny: ModuleType, study: Path, monkeypatch: Any) -> None:
    """In fold 1 the two patients with two slides are trained on."""
    sizes: list[tuple[bool, int]] = []
    build = fold_module.build_model

    def watched(*args: Any, **kwargs: Any) -> torch.nn.Module:
        model = build(*args, **kwargs)
        model.register_forward_hook(lambda module, given, output: sizes.append((module.training, len(given[0]))))
        return model

    monkeypatch.setattr(fold_module, "build_model", watched)
    train(tiny.changed(study, training={"epochs": 1}))
    steps, val = sizes[6:10], sizes[10:12]
    assert sorted(steps) == [(True, 1), (True, 1), (True, 2), (True, 2)], "four patients, two of them with two slides"
    assert val == [(False, 1), (False, 1)]
    assert len(sizes) == 12


def test_batches_of_patients_change_no_prediction(tiny: ModuleType, study: Path, tmp_path: Path) -> None:
    found = []
    for size in (1, 4):
        train(tiny.changed(study, out=str(tmp_path / f"{size}"), training={"lr": 1e-12, "batch_size": size}))
        found.append([float(row["prob_b"]) for row in tiny.read_table(tmp_path / f"{size}" / "predictions.csv")])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_a_run_goes_on_only_with_the_bags_it_began_with(tiny: ModuleType, study: Path) -> None:
    train(study)
    with pytest.raises(RunError, match=r"holds a run with another data\.bag"):
        train(tiny.changed(study, data={"bag": "slide"}))


# --- slides that cannot be joined, or are not there


def test_labels_that_differ_are_refused_before_anything_is_made(tiny: ModuleType, study: Path) -> None:
    table = study.with_name("cohort.csv")
    table.write_text(table.read_text("utf-8").replace("s01y,p01,b", "s01y,p01,a"), "utf-8")
    with pytest.raises(CohortError) as caught:
        train(study)
    assert str(caught.value).startswith(f"cohort {table}: patient 'p01': label is b of slide 's01x' and a of 's01y'")
    assert not study.with_name("run").exists()
    train(tiny.changed(study, data={"bag": "slide"}))


def test_slides_of_which_no_fold_makes_use_may_differ(tiny: ModuleType, study: Path) -> None:
    """Splits that name slides may leave some out; a patient is joined from those that they name."""
    table = study.with_name("cohort.csv")
    table.write_text(table.read_text("utf-8").replace("s01y,p01,b", "s01y,p01,a"), "utf-8")
    for k in (0, 1):
        path = study.parent / "splits" / f"splits_{k}.csv"
        path.write_text(path.read_text("utf-8").replace("p01", "s01x"), "utf-8")
    train(study)
    rows = {row["case_id"]: row for row in tiny.read_table(study.with_name("run") / "predictions.csv")}
    assert rows["p01"]["joined_slides"] == "s01x"


def test_a_patient_is_joined_from_the_slides_that_there_are(
    tiny: ModuleType, study: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without(tiny, study, "s00y", "s05x")
    (study.parent / "features" / "s01x.h5").unlink()
    with caplog.at_level(logging.WARNING, "wsi2d"):
        evaluation = train(tiny.changed(study, data={"missing_features": "skip"}))
    rows = {row["case_id"]: row["joined_slides"] for row in tiny.read_table(study.with_name("run") / "predictions.csv")}
    assert (rows["p00"], rows["p01"]) == ("s00x", "s01y")
    assert "p05" not in rows
    assert (evaluation.slides, evaluation.cases) == (11, 11)
    assert evaluation.notes[-2:] == (
        "1 patients have no slide with features and tissue, and are left out: p05",
        "2 patients are joined without some of their slides: p00, p01",
    )
    said = [record.getMessage() for record in caplog.records]
    assert all(note in said for note in evaluation.notes[-2:])


def test_a_patient_on_two_sides_leaks_as_ever(tiny: ModuleType, study: Path) -> None:
    sides = {"train": ["s00x", "p01", "p02", "p03"], "val": ["p04", "p05"], "test": ["s00y", "p07"]}
    tiny.write_fold(study.parent / "splits", 0, **sides)
    evaluation = train(tiny.changed(study, data={"allow_leakage": True}))
    assert evaluation.notes == ("fold 0: 1 patients leak between its sides",)
    rows = tiny.read_table(study.with_name("run") / "predictions.csv")
    assert [row["joined_slides"] for row in rows if row["case_id"] == "p00" and row["fold"] == "0"] == ["s00y"]


# --- new patients


@pytest.fixture
def new_slides(tiny: ModuleType, tmp_path: Path) -> Path:
    """Three slides of two patients that no run has seen."""
    rng = np.random.default_rng(50)
    for name, count in (("q1-a", 4), ("q2-a", 9), ("q1-b", 23)):
        tiny.write_features(tmp_path / "new", name, rng.normal(size=(count, tiny.DIM)).astype(np.float32))
    (tmp_path / "who.csv").write_text("slide,who\nq1-a.svs,q1\nq2-a,q2\nq1-b,q1\nq3-a,q3\n", "utf-8")
    return tmp_path / "new"


def test_new_patients_are_told_by_a_cohort(joined_run: Path, new_slides: Path, tmp_path: Path) -> None:
    columns = {"slide_column": "slide", "case_column": "who"}
    table = predict(joined_run, new_slides, cohort=tmp_path / "who.csv", **columns)
    assert table["case_id"].tolist() == table["slide_id"].tolist() == ["q1", "q2"]
    assert table["joined_slides"].tolist() == ["q1-a;q1-b", "q2-a"]
    score = "prob_b" if "prob_b" in table else "risk"
    run, found = open_run(joined_run), []
    for fold in run.folds:
        model, card = run.model(fold, torch.device("cpu"))
        with torch.no_grad():
            logits = model(collate([load_bag(new_slides / f"q1-{n}.h5") for n in "ab"], [2])).logits[0].double()
        survival = -(1 - logits.sigmoid()).cumprod(0).sum()
        found.append(logits.softmax(0)[1] if score == "prob_b" else logits[0] if card.log_risk else survival)
    assert table[score][0] == pytest.approx(float(np.mean(found)), rel=1e-6)


def test_without_a_cohort_a_slide_is_a_patient_and_that_is_said(
    joined_run: Path, new_slides: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "wsi2d"):
        table = predict(joined_run, new_slides)
    assert table["joined_slides"].tolist() == ["q1-a", "q1-b", "q2-a"]
    assert "without a cohort each slide is taken for a patient" in caplog.text


def test_patients_in_the_names_of_slides(tiny: ModuleType, study: Path, new_slides: Path) -> None:
    train(tiny.changed(study, data={"case_pattern": "q[0-9]+"}))
    assert predict(study.with_name("run"), new_slides)["case_id"].tolist() == ["q1", "q2"]


def test_a_slide_that_the_cohort_does_not_know_is_named(joined_run: Path, new_slides: Path, tmp_path: Path) -> None:
    (tmp_path / "who.csv").write_text("slide_id,case_id\nq1-a,q1\n", "utf-8")
    with pytest.raises(CohortError, match="slide 'q1-b': is not in the cohort that names the patients"):
        predict(joined_run, new_slides, cohort=tmp_path / "who.csv")
    (tmp_path / "who.csv").write_text("slide_id,case_id\nq1-a,q1\nq1-a,q2\n", "utf-8")
    with pytest.raises(CohortError, match="slide 'q1-a' occurs more than once"):
        predict(joined_run, new_slides, cohort=tmp_path / "who.csv")


def test_a_cohort_names_the_patients_of_a_run_on_slides_too(finished_run: Path, new_slides: Path) -> None:
    (new_slides.parent / "who.csv").write_text("slide_id,case_id\nq1-a,q1\nq2-a,q2\nq1-b,q1\n", "utf-8")
    table = predict(finished_run, new_slides, cohort=new_slides.parent / "who.csv")
    assert list(zip(table["slide_id"], table["case_id"], strict=True)) == [
        ("q1-a", "q1"),
        ("q1-b", "q1"),
        ("q2-a", "q2"),
    ]
    assert "joined_slides" not in table


def test_another_cohorts_patients_are_joined(tiny: ModuleType, joined_run: Path, tmp_path: Path) -> None:
    kind = open_run(joined_run).config.task.kind
    other = tiny.write_study(tmp_path / "other", kind, seed=7)  # patients bear the names of the run's own
    cohort, features = other.with_name("cohort.csv"), other.parent / "features"
    (features / "s01x.h5").unlink()
    assert predict_cohort(joined_run, cohort, features, tmp_path / "out.csv", allow_leakage=True) == 12
    rows = {row["case_id"]: row for row in tiny.read_table(tmp_path / "out.csv")}
    assert (rows["p00"]["joined_slides"], rows["p01"]["joined_slides"]) == ("s00x;s00y", "s01y")
    assert all(row["fold"] == "" for row in rows.values())
    if kind == "classification":
        cohort.write_text(cohort.read_text("utf-8").replace("s00y,p00,a", "s00y,p00,b"), "utf-8")
        with pytest.raises(CohortError, match=r"cohort .*patient 'p00': label is a of slide 's00x' and b of 's00y'"):
            predict_cohort(joined_run, cohort, features, tmp_path / "again.csv", allow_leakage=True)
    with pytest.raises(FeatureStoreError, match="has features here"):
        predict_cohort(joined_run, cohort, tmp_path, tmp_path / "again.csv", allow_leakage=True)
