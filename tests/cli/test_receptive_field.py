"""`wsi2d receptive-field`: runs side by side, their numbers, and what is refused."""

import csv
import json
import shutil
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

RUNS = {
    "grid": {"name": "mamba2d-mil", "dim": 8, "state": 2, "attention_dim": 8},
    "raster": {"name": "mamba-mil", "dim": 8, "state": 2, "attention_dim": 8},
    "alone": {"name": "abmil", "dim": 8, "attention_dim": 8},
}


@pytest.fixture(scope="module")
def study(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study and a trained run of each model."""
    from wsi2d.training.crossval import train

    path: Path = tiny.write_study(tmp_path_factory.mktemp("fields"), training={"epochs": 1})
    for name, model in RUNS.items():
        train(tiny.changed(path, out=name, model=model))
    return path.parent


@pytest.fixture(scope="module")
def runs(study: Path) -> list[Path]:
    return [study / name for name in RUNS]


def numbers_of(picture: Path) -> Path:
    """The numbers beside a picture."""
    return picture.with_name(f"{picture.stem}-numbers.json")


def rows_of(path: Path) -> dict[tuple[str, str], list[dict[str, str]]]:
    """The table of offsets, by name and whether trained."""
    found = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["name"], row["trained"]].append(row)
    return dict(found)


def test_runs_beside_each_other(cli: Any, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "field.png"
    result = cli("receptive-field", *runs, "--out", out)
    assert result.code == 0, result
    assert all(name in result.out for name in RUNS)
    assert "alone: a single point, each patch by itself alone." in result.out
    assert "grid: a single point" not in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines() if "→" not in line)
    with Image.open(out) as picture:
        assert picture.width > 500
    found = json.loads(numbers_of(out).read_text("utf-8"))
    assert found["schema"] == "wsi2d-receptive-field/1"
    fields = {field["name"]: field for field in found["fields"]}
    assert list(fields) == list(RUNS)
    for name, field in fields.items():
        assert (field["model"], field["trained"], field["folds"]) == (RUNS[name]["name"], True, [0, 1])
        assert (field["slides"], field["pitch_um"], field["single_point"]) == (14, 64.0, name == "alone")
        assert sum(field["sectors"].values()) == pytest.approx(1)
    raster, alone = fields["raster"]["sectors"], fields["alone"]
    assert raster["right"] == raster["down"] == raster["lower_left"] == raster["lower_right"] == 0
    assert raster["left"] > 0
    assert (alone["radius_90"], alone["row_to_column"], alone["sectors"]["centre"]) == (0, None, 1)


def test_the_table_of_offsets_holds_the_numbers(cli: Any, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "field.svg"
    printed = json.loads(cli("receptive-field --untrained --json", runs[0], "--out", out).out)
    assert printed == json.loads(numbers_of(out).read_text("utf-8"))
    assert [(field["name"], field["trained"]) for field in printed["fields"]] == [("grid", False), ("grid", True)]
    tables = rows_of(out.with_name(f"{out.stem}-offsets.csv"))
    assert list(tables) == [("grid", "0"), ("grid", "1")]
    for field, rows in zip(printed["fields"], tables.values(), strict=True):
        share = np.array([float(row["share"]) for row in rows])
        offsets = np.array([[int(row["down"]), int(row["across"])] for row in rows])
        assert share.sum() == pytest.approx(1, abs=1e-4)
        assert share[(offsets == 0).all(1)].tolist() == pytest.approx([field["sectors"]["centre"]], rel=1e-4)
        assert share[(offsets < 0).all(1)].sum() == pytest.approx(field["sectors"]["upper_left"], rel=1e-4)
        (centres,) = {int(row["centres"]) for row, offset in zip(rows, offsets, strict=True) if not offset.any()}
        assert centres == field["all_centres"] == 14
    assert out.read_text("utf-8").startswith("<?xml")


def test_untrained_is_what_training_began_with(tiny: ModuleType, study: Path) -> None:
    """Weights hardly moved by steps of no size give the field of none."""
    from wsi2d.explain.receptive_runs import run_receptive_field
    from wsi2d.training.crossval import train

    out = study / "still"
    train(tiny.changed(study / "run.yaml", out="still", model=RUNS["grid"], training={"lr": 1e-12, "epochs": 1}))
    before, after = (run_receptive_field(out, trained=trained).field for trained in (False, True))
    np.testing.assert_allclose(after.gradient, before.gradient, rtol=1e-4, atol=1e-7)
    moved = run_receptive_field(study / "grid", trained=True).field
    assert np.abs(moved.gradient - before.gradient).max() > 1e-3 * before.gradient.max()


def test_global_random_state_is_left_alone(study: Path) -> None:
    from wsi2d.explain.receptive_runs import run_receptive_field

    state = torch.get_rng_state()
    run_receptive_field(study / "grid", trained=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_options(cli: Any, runs: list[Path], tmp_path: Path) -> None:
    command = "receptive-field --json --slides 3 --centres 2 --probes 2 --folds 1 --reach 2 --columns 1 --seed 5"
    result = cli(command, *runs[:2], "--out", tmp_path / "a.pdf")
    assert result.code == 0, result
    for field in json.loads(result.out)["fields"]:
        assert (field["slides"], field["all_centres"], field["probes"], field["folds"]) == (3, 6, 2, [1])


def test_features_elsewhere(cli: Any, study: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(study, tmp_path / "moved", ignore=shutil.ignore_patterns("raster", "alone", "still"))
    (moved / "features").rename(tmp_path / "their new place")
    out = tmp_path / "a.png"
    result = cli("receptive-field", moved / "grid", "--out", out, "--features", tmp_path / "their new place")
    assert result.code == 0, result
    assert out.exists()


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    from wsi2d.explain.receptive_fields import distinct_names

    a, b, c = tmp_path / "a" / "seed-0", tmp_path / "b" / "seed-0", tmp_path / "b" / "seed-1"
    assert distinct_names([a, b, c]) == ["a/seed-0", "b/seed-0", "b/seed-1"]
    assert distinct_names([a, c]) == ["seed-0", "seed-1"]
    assert distinct_names([a, a]) == ["seed-0", "seed-0"]


REFUSED = {
    "another fold": ("--folds 7", "fold 7 is not trained; there are 0, 1"),
    "no fold": ("--folds one", "--folds: 'one' is no fold; give whole numbers"),
    "no slides": ("--slides 0", "slides must be at least 1, got 0"),
    "no centres": ("--centres 0", "centres must be at least 1, got 0"),
    "no probes": ("--probes -1", "probes must be at least 1, got -1"),
    "no reach": ("--reach 0", "reach must be from 1 to 250, got 0"),
    "no columns": ("--columns 0", "columns must be at least 1, got 0"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_options_that_make_no_sense(fails: Any, runs: list[Path], tmp_path: Path, what: str) -> None:
    option, words = REFUSED[what]
    assert words in fails(f"receptive-field {option}", runs[0], "--out", tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_drawn(fails: Any, runs: list[Path], tmp_path: Path) -> None:
    assert "must end in .png, .pdf or .svg" in fails("receptive-field", runs[0], "--out", tmp_path / "a.gif")
    assert "is a folder" in fails("receptive-field", runs[0], "--out", tmp_path)
    (tmp_path / "none").mkdir()
    assert "no config.yaml" in fails("receptive-field", runs[0], tmp_path / "none", "--out", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_slides_with_nan_are_named(fails: Any, study: Path, tmp_path: Path) -> None:
    import h5py

    copied = shutil.copytree(study / "features", tmp_path / "features")
    with h5py.File(copied / "s03x.h5", "r+") as file:
        file["features"][1, 1] = np.nan
    line = fails("receptive-field", study / "grid", "--features", copied, "--out", tmp_path / "a.png")
    assert "s03x" in line


def test_features_made_otherwise(fails: Any, tiny: ModuleType, study: Path, tmp_path: Path) -> None:
    for path in sorted((study / "features").glob("*.h5")):
        tiny.write_features(tmp_path / "others", path.stem, np.ones((9, tiny.DIM), np.float32), mpp=1.0)
    line = fails("receptive-field", study / "grid", "--features", tmp_path / "others", "--out", tmp_path / "a.png")
    assert "mpp 1.0, not 0.5 as it was trained on" in line
