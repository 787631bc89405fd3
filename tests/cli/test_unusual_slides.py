"""Every aggregator, through the command line, on slides of unusual shape, and models that are not the run's own."""

import csv
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from wsi2d.models.registry import MODELS

pytestmark = pytest.mark.usefixtures("skip_without_torchmil")

SMALL = {"dim": 8}
EVERY = [name if name == "abmil" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def in_a_square(side: int, count: int) -> np.ndarray:
    """That many cells of a square grid, the first and the last among them."""
    inner = np.random.default_rng(side).permutation(np.arange(1, side * side - 1))[: count - 2]
    return np.stack(np.divmod(np.array([0, *sorted(inner), side * side - 1]), side), 1)


# Grid and cells with tissue.
SHAPES: dict[str, tuple[tuple[int, int], Any]] = {
    "one cell": ((1, 1), [[0, 0]]),
    "one row": ((1, 12), [[0, col] for col in range(12)]),
    "one column": ((12, 1), [[row, 0] for row in range(12)]),
    "one cell of 10,000": ((100, 100), [[57, 31]]),
    "its two corners": ((100, 100), [[0, 0], [99, 99]]),
    "500×500": ((500, 500), in_a_square(500, 2000)),
}


@pytest.fixture
def study(tiny: ModuleType, tmp_path: Path) -> Path:
    """The YAML file of a study with a slide of each shape on either side of the splits, 500×500 on the first alone."""
    path: Path = tiny.write_study(tmp_path, training={"epochs": 1})
    rng = np.random.default_rng(0)
    slides = {"one cell": "s00x s06x", "one row": "s01x s07x", "one column": "s04x s08x"}
    slides |= {"one cell of 10,000": "s05x s09x", "its two corners": "s02x s10x", "500×500": "s03x"}
    for what, names in slides.items():
        shape, cells = SHAPES[what]
        for name in names.split():
            features = rng.normal(size=(len(cells), tiny.DIM)).astype(np.float32)
            tiny.write_features(tmp_path / "features", name, features, shape=shape, cells=cells)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", EVERY)
def test_slides_of_unusual_shape(cli: Any, study: Path, tmp_path: Path, name: str) -> None:
    """Trained on and tested on, predicted again, and looked at."""
    result = cli("train", study, "--set", f"model={{name: '{name}', dim: 8}}")
    assert result.code == 0, result.err
    run = study.with_name("run")
    own = rows_of(run / "predictions.csv")
    assert len(own) == 14
    assert all(0 <= float(row["prob_a"]) <= 1 for row in own)
    out = tmp_path / "predictions.csv"
    assert cli("predict", run, tmp_path / "features", "--out", out).code == 0
    assert all(0 <= float(row["prob_a"]) <= 1 for row in rows_of(out))
    assert cli("receptive-field", run, "--out", tmp_path / "field.png").code == 0


@pytest.mark.parametrize("name", EVERY)
def test_features_with_nan_are_named(cli: Any, fails: Any, study: Path, name: str) -> None:
    import h5py

    section = f"model={{name: '{name}', dim: 8}}"
    whole = shutil.copytree(study.parent / "features", study.parent / "whole")
    with h5py.File(study.parent / "features" / "s11x.h5", "r+") as file:
        file["features"][0, 0] = np.nan
    line = fails("train", study, "--set", section)
    assert "s11x" in line
    assert "NaN" in line
    shutil.rmtree(study.with_name("run"))
    assert cli("train", study, "--set", section, "--set", f"data.features={whole}").code == 0
    out = study.with_name("out.csv")
    line = fails("predict", study.with_name("run"), study.parent / "features" / "s11x.h5", "--out", out)
    assert "s11x" in line
    assert "NaN" in line


@pytest.fixture(scope="module")
def two_runs(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs of other models on the same study."""
    from wsi2d.training.crossval import train

    path: Path = tiny.write_study(tmp_path_factory.mktemp("two"), training={"epochs": 1})
    for name in ("abmil", "mean"):
        train(tiny.changed(path, out=name, model={"name": name, **SMALL}))
    train(tiny.changed(path, out="wider", model={"name": "mean", "dim": 16}))
    return path.parent


ASKED = {
    "predict": lambda run, study: ["predict", run, study / "features", "--out", study.parent / "out.csv"],
    "evaluate": lambda run, study: ["evaluate", run, "--shuffle-positions"],
    "receptive-field": lambda run, study: ["receptive-field", run, "--out", study.parent / "out.png"],
}


def run_beside(two_runs: Path, name: str) -> Path:
    """A copy of a run, beside it, so that its data are where they were."""
    copied = two_runs / "copied"
    if copied.exists():
        shutil.rmtree(copied)
    return Path(shutil.copytree(two_runs / name, copied))


@pytest.mark.parametrize("command", ASKED)
@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("abmil", "another run's model (name abmil, not mean)"),
        ("wider", "another run's model (dim 16, not 8)"),
    ],
)
def test_a_model_of_another_run(fails: Any, two_runs: Path, command: str, other: str, words: str) -> None:
    """It may know the slides that it would be tested on."""
    run = run_beside(two_runs, "mean")
    shutil.copy(two_runs / other / "fold-1" / "model.safetensors", run / "fold-1" / "model.safetensors")
    line = fails(*ASKED[command](run, two_runs))
    assert words in line
    assert str(run / "fold-1" / "model.safetensors") in line
    assert "train again" in line


@pytest.mark.parametrize("command", ASKED)
def test_a_model_of_another_fold(fails: Any, two_runs: Path, command: str) -> None:
    run = run_beside(two_runs, "mean")
    shutil.copy(run / "fold-0" / "model.safetensors", run / "fold-1" / "model.safetensors")
    assert "is the model of fold 0; put its own back" in fails(*ASKED[command](run, two_runs))


def test_more_classes_than_the_head_has(fails: Any, cli: Any, tiny: ModuleType, two_runs: Path) -> None:
    """Told of a third class afterwards, a run is neither continued nor evaluated on it."""
    table = two_runs / "three.csv"
    lines = (two_runs / "cohort.csv").read_text("utf-8").splitlines()
    relabelled = [line.replace(",b,", ",c,") if k % 4 == 0 else line for k, line in enumerate(lines)]
    table.write_text("\n".join(relabelled) + "\n", "utf-8")
    run = run_beside(two_runs, "mean")
    line = fails("evaluate", run, "--cohort", table, "--features", two_runs / "features", "--out", two_runs / "o.csv")
    assert "has label 'c', which is not among classes a, b" in line
    values = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    path = tiny.write_config(run / "again.yaml", {**values, "data": {**values["data"], "cohort": str(table)}})
    line = fails("train", path)
    assert "began with other slides, labels or features" in line
