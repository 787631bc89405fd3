"""A study small enough to cross-validate in a second: feature files, a cohort table, two folds, a configuration.

Also loaded by the tests of later stages, by its path.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from wsi2d.config import RunConfig
from wsi2d.config_files import load_run_config
from wsi2d.features.store import FeatureWriter, Provenance, feature_path
from wsi2d.slides.patching import PatchGrid

DIM = 8
PATIENTS = 12
TISSUE = json.dumps({"mpp": 8.0, "min_tissue": 0.25, "threshold": 0.05})
MODEL = {"name": "mamba2d-mil", "dim": 8, "state": 2, "attention_dim": 8, "directions": 2}
TASKS = {
    "classification": {"kind": "classification", "label": "label"},
    "survival": {"kind": "survival", "time": "months", "event": "status=dead", "bins": 3},
}


def write_features(
    folder: Path,
    slide_id: str,
    features: np.ndarray,
    *,
    shape: tuple[int, int] = (5, 5),
    cells: Any = None,
    encoder: str = "tiny",
    encoder_hash: str = "0123",
    mpp: float = 0.5,
    patch_px: int = 128,
    overlap_px: int = 0,
    slide_mpp: float = 0.5,
) -> Path:
    """A feature file with ``cells`` of a grid, (row, col); by default with its first, all but the second, as tissue
    has gaps."""
    if cells is None:
        cells = [(r, c) for r in range(shape[0]) for c in range(shape[1]) if (r, c) != (0, 1)][: len(features)]
    index = np.array(cells, np.int32).reshape(-1, 2)
    stride = (patch_px - overlap_px) * mpp / slide_mpp
    coords = np.rint(index[:, ::-1] * stride).astype(np.int32)
    grid = PatchGrid(shape, patch_px, mpp, patch_px * mpp / slide_mpp, stride, coords, index)
    width, height = (round(n * stride) for n in (shape[1], shape[0]))
    provenance = Provenance(slide_id, encoder, encoder_hash, slide_mpp, "header", width, height, TISSUE)
    folder.mkdir(parents=True, exist_ok=True)
    path = feature_path(folder, slide_id)
    with FeatureWriter(path, grid, provenance, dim=features.shape[1], dtype="float32") as writer:
        writer.append(features)
    return path


def write_study(folder: Path, kind: str = "classification", *, seed: int = 0, **changes: Any) -> Path:
    """Write a study and the YAML file of its run (``folder/run.yaml``, to go to ``folder/run``).

    Twelve patients, the first two with two slides each, so fourteen slides. The class shifts the first feature of
    some patches; patients of class ``b`` die sooner. Two folds, each with train, val and test.

    Args:
        folder: gets ``features/``, ``splits/``, ``cohort.csv``, ``run.yaml``.
        kind: of task.
        seed: of the features.
        changes: of the configuration, as ``training={"epochs": 3}``; sections are merged one level deep.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(PATIENTS):
        label = "ab"[patient % 2]
        months = 30.0 + patient if label == "a" else 5.0 + patient
        status = "alive" if patient % 5 == 4 else "dead"
        for part in range(2 if patient < 2 else 1):
            slide_id, case_id = f"s{patient:02d}{'xy'[part]}", f"p{patient:02d}"
            rows.append([slide_id, case_id, label, months, status])
            features = rng.normal(size=(int(rng.integers(8, 25)), DIM)).astype(np.float32)
            features[: len(features) // 2, 0] += 5.0 * (label == "b")
            write_features(folder / "features", slide_id, features)
    write_table(folder / "cohort.csv", ["slide_id", "case_id", "label", "months", "status"], rows)
    cases = [f"p{patient:02d}" for patient in range(PATIENTS)]
    halves = cases[0:2] + cases[4:8], cases[2:4] + cases[8:12]
    for k, (test, rest) in enumerate((halves, halves[::-1])):
        write_fold(folder / "splits", k, train=rest[:4], val=rest[4:], test=test)
    values = {
        "out": "run",
        "data": {"cohort": "cohort.csv", "features": "features", "splits": "splits"},
        "task": TASKS[kind],
        "model": MODEL,
        "training": {"epochs": 2, "lr": 0.01, "threads": 1, "device": "cpu"},
        "evaluation": {"bootstrap": 20},
    }
    return write_config(folder / "run.yaml", values, **changes)


def write_config(path: Path, values: dict[str, Any], **changes: Any) -> Path:
    """Write a run's YAML file; sections of ``changes`` are laid over those of ``values``."""
    for name, change in changes.items():
        mergeable = isinstance(change, dict) and "name" not in change
        values = {**values, name: {**values.get(name, {}), **change} if mergeable else change}
    path.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    return path


def changed(path: Path, **changes: Any) -> RunConfig:
    """The configuration of a study, with changes that are not written to its file."""
    beside = write_config(path.with_name("changed.yaml"), yaml.safe_load(path.read_text("utf-8")), **changes)
    return load_run_config(beside)


def write_fold(folder: Path, k: int, **sides: list[str]) -> None:
    """A splits file, ragged as the field's are."""
    folder.mkdir(parents=True, exist_ok=True)
    length = max(map(len, sides.values()))
    rows = [[i, *(ids[i] if i < len(ids) else "" for ids in sides.values())] for i in range(length)]
    write_table(folder / f"splits_{k}.csv", ["", *sides], rows)


def write_table(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """A CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> set[str]:
    """Every file below a folder, by its path from there."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def result_bytes(run: Path) -> dict[str, bytes]:
    """What a run found: its predictions, and each fold's weights, predictions and attention."""
    names = {name for name in files_of(run) if name.endswith(("predictions.csv", "model.safetensors", ".h5"))}
    return {name: (run / name).read_bytes() for name in sorted(names)}
