"""`wsi2d evaluate RUN --cohort --features`: a run's models on a cohort that they have not seen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def run(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of classes a and b; read only."""
    from wsi2d.training.crossval import train

    path = tiny.write_study(tmp_path_factory.mktemp("inside"))
    train(path)
    return path.with_name("run")


@pytest.fixture
def other(tiny: ModuleType, tmp_path: Path) -> Path:
    """Another hospital's slides, with its own column names."""
    tiny.write_study(tmp_path / "study", seed=7)
    table = (tmp_path / "study/cohort.csv").read_text().replace("slide_id,case_id,label", "slide,patient,kind")
    (tmp_path / "theirs.csv").write_text(table)
    shutil.move(tmp_path / "study/features", tmp_path / "theirs")
    return tmp_path


COLUMNS = "--slide-column slide --case-column patient --label kind --allow-leakage"  # the ids are the run's own


def test_another_cohort_is_predicted_and_scored(cli: Any, run: Path, other: Path, tiny: ModuleType) -> None:
    (other / "theirs" / "s03x.h5").unlink()
    out = other / "out.csv"
    places = (other / "theirs.csv", "--features", other / "theirs", "--out", out, run)
    result = cli(f"evaluate --json {COLUMNS} --cohort", *places)
    assert result.code == 0, result.err
    metrics = json.loads(result.out)
    assert (metrics["slides"], metrics["cases"]) == (13, 11)
    rows = tiny.read_table(out)
    assert {row["label"] for row in rows} == {"a", "b"}
    assert {row["case_id"] for row in rows} == {f"p{k:02d}" for k in range(12) if k != 3}
    assert "1 slides have no features and are left out (the first is 's03x')" in " ".join(result.err.split())
    assert not (run / "external").exists()


def test_patients_of_the_runs_own_cohort_are_refused_or_noted(
    cli: Any, fails: Callable[..., str], run: Path, other: Path
) -> None:
    columns, out = COLUMNS.replace(" --allow-leakage", ""), other / "o.csv"
    places = (other / "theirs.csv", "--features", other / "theirs", "--out", out, run)
    line = fails(f"evaluate {columns} --cohort", *places)
    assert line == (
        "cohort: 12 of its 12 patients were in the run's own (p00, p01, p02, …); leave them out, or give "
        "--allow-leakage and say so"
    )
    assert not out.exists()
    table = other / "theirs.csv"
    table.write_text(table.read_text().replace(",p0", ",q0").replace(",p1", ",q1"))
    assert "12 of its 12 patients" in fails(f"evaluate {columns} --cohort", *places), "the slides are the same"
    for _ in range(2):
        result = cli(f"evaluate --json {COLUMNS} --cohort", *places)
        (note,) = json.loads(result.out)["notes"]
        assert note.startswith(
            "12 patients of this cohort were in the run's own, which its models were trained on (q00"
        )
    assert json.loads(cli("evaluate --json", out).out)["notes"] == [note], "the table keeps its notes"


def test_notes_of_the_run_and_its_settings_hold_for_another_cohort(
    cli: Any, run: Path, other: Path, tmp_path: Path
) -> None:
    mine = shutil.copytree(run, tmp_path / "run")
    (mine / "notes.json").write_text('["fold 0: 1 patients leak between its sides"]')
    config = (
        (mine / "config.yaml").read_text().replace("unit: slide", "unit: case").replace("bootstrap: 20", "bootstrap: 7")
    )
    (mine / "config.yaml").write_text(config)
    (mine / "cohort.csv").write_text("slide_id,case_id\nx,y\n")
    columns = COLUMNS.replace(" --allow-leakage", "")
    places = (other / "theirs.csv", "--features", other / "theirs", mine)
    found = json.loads(cli(f"evaluate --json {columns} --cohort", *places).out)
    assert (found["unit"], found["bootstrap"]) == ("case", 7)
    assert found["notes"] == ["fold 0: 1 patients leak between its sides"]


@pytest.mark.parametrize("option", ["--out o.csv", "--slide-column a", "--case-column a", "--label a", "--time a",
                                    "--event a=1", "--allow-leakage"])  # fmt: skip
def test_options_of_another_cohort_need_one(fails: Callable[..., str], run: Path, option: str) -> None:
    line = fails(f"evaluate {option}", run)
    assert line == f"evaluate: {option.split()[0]} speaks of another cohort; give its --cohort and --features too"


def test_patients_of_another_cohort_are_found_by_the_runs_pattern(
    cli: Any, run: Path, other: Path, tmp_path: Path, tiny: ModuleType
) -> None:
    mine = shutil.copytree(run, tmp_path / "run")
    config = mine / "config.yaml"
    config.write_text(config.read_text().replace("case_pattern: null", "case_pattern: 's[0-9]+'"))
    rows = [[r["slide"], r["kind"]] for r in tiny.read_table(other / "theirs.csv")]
    tiny.write_table(other / "theirs.csv", ["slide_id", "label"], rows)
    places = (other / "theirs.csv", "--features", other / "theirs", "--out", other / "o.csv", mine)
    result = cli("evaluate --json --allow-leakage --cohort", *places)
    assert json.loads(result.out)["cases"] == 12


def test_risk_groups_of_another_cohort_are_cut_on_the_training_side(cli: Any, tiny: ModuleType, tmp_path: Path) -> None:
    from wsi2d.training.crossval import train
    from wsi2d.training.run import open_run

    study = tiny.write_study(tmp_path / "inside", "survival")
    train(study)
    run = study.with_name("run")
    tiny.write_study(tmp_path / "outside", "survival", seed=3)
    places = (tmp_path / "outside/cohort.csv", "--features", tmp_path / "outside/features", run)
    found = json.loads(cli("evaluate --json --allow-leakage --cohort", *places).out)
    cuts = {float(row["risk_cut"]) for row in tiny.read_table(run / "predictions.csv")}
    assert len(cuts) == 2
    groups = found["survival"]["risk_groups"]
    assert groups["cut_from"] == "training"
    assert groups["cuts"] == [pytest.approx(sum(cuts) / 2)]
    for k in (0, 1):  # as weights were kept before
        card_without_cut(run / f"fold-{k}/model.safetensors")
    assert open_run(run).folds == (0, 1)
    found = json.loads(cli("evaluate --json --allow-leakage --cohort", *places).out)
    assert found["survival"]["risk_groups"]["cut_from"] == "predictions"
    assert "the run's models do not hold the median risk of those trained on" in " ".join(found["notes"])


def card_without_cut(path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        names = list(file.keys())
        tensors, card = {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["wsi2d"])
    del card["risk_cut"]
    save_file(tensors, path, {"wsi2d": json.dumps(card)})


def test_predictions_lie_in_the_run_where_nothing_is_said(cli: Any, run: Path, other: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(run, tmp_path / "run")
    result = cli(f"evaluate {COLUMNS} --cohort", other / "theirs.csv", "--features", other / "theirs", mine)
    assert result.code == 0, result.err
    assert (mine / "external/theirs.csv").read_text().count("\n") == 15
    assert "14 slides of another cohort predicted" in " ".join(result.err.split())


def test_classes_that_are_not_there_are_told_and_strangers_refused(
    cli: Any, fails: Callable[..., str], run: Path, other: Path
) -> None:
    table = other / "theirs.csv"
    text = table.read_text()
    table.write_text("\n".join(line for line in text.splitlines() if ",b," not in line) + "\n")
    arguments = (table, "--features", other / "theirs", "--out", other / "o.csv", run)
    result = cli(f"evaluate {COLUMNS} --bootstrap 0 --cohort", *arguments)
    assert result.code == 0, result.err
    assert "no slide of the cohort is b" in " ".join(result.err.split())
    table.write_text(text.replace(",b,", ",z,"))
    assert "has kind 'z', which is not among classes a, b" in fails(f"evaluate {COLUMNS} --cohort", *arguments)


def test_features_of_another_kind_are_refused(
    fails: Callable[..., str], run: Path, other: Path, tiny: ModuleType
) -> None:
    numbers = tiny.np.zeros((8, tiny.DIM), "float32")
    tiny.write_features(other / "theirs", "s00x", numbers, mpp=1.0)
    arguments = (other / "theirs.csv", "--features", other / "theirs", "--out", other / "o.csv", run)
    line = fails(f"evaluate {COLUMNS} --cohort", *arguments)
    assert "s00x.h5: has mpp 1.0, not 0.5" in line
    assert not (other / "o.csv").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    ("--cohort {table} {run}", "another cohort needs both --cohort and --features"),
    (f"{COLUMNS} --cohort {{table}} --features {{nowhere}} {{run}}", "no slide of"),
    ("--cohort {table} --features {features} {table}", "is a table; another cohort needs the folder of a run"),
])  # fmt: skip
def test_what_does_not_fit_together(
    arguments: str, words: str, fails: Callable[..., str], run: Path, other: Path
) -> None:
    places = {"table": other / "theirs.csv", "features": other / "theirs", "nowhere": other / "nowhere", "run": run}
    assert words in fails("evaluate " + arguments.format(**places))
