"""``pt``: loaded without pickle, as CLAM's readers load it."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import wsi2d
from wsi2d.exports.target import ExportOptions


def exported(path: Path, out: Path, options: ExportOptions | None = None) -> Any:
    """What the file's export holds."""
    (outcome,) = wsi2d.export(path, out, "pt", options).slides
    assert (outcome.outcome, outcome.path) == ("done", out / f"{path.stem}.pt")
    return torch.load(outcome.path, weights_only=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows", [0, 1, 700])
def test_round_trip(handmade: ModuleType, tmp_path: Path, dtype: str, rows: int) -> None:
    """Always float32, which models expect, and nothing but the features: of several blocks, of one patch, of none."""
    cells = np.argwhere(np.ones((35, 20)))[:rows]
    path = handmade.write_features(tmp_path / "a.h5", cells, shape=(35, 20), dim=900, dtype=dtype)
    features = exported(path, tmp_path / "out")
    assert isinstance(features, torch.Tensor)
    assert (features.dtype, tuple(features.shape)) == (torch.float32, (rows, 900))
    np.testing.assert_array_equal(features.numpy(), wsi2d.read_features(path).features.astype(np.float32))
    size = (tmp_path / "out" / "a.pt").stat().st_size
    assert size < features.numel() * 4 + 3000, "the tensor and no more of its memory"


def test_with_coordinates(handmade: ModuleType, tmp_path: Path) -> None:
    path = handmade.write_features(tmp_path / "a.h5", stride_level0=100.5, size=(402, 302))
    stored = wsi2d.read_features(path)
    bag = exported(path, tmp_path / "out", ExportOptions(coords=True))
    assert list(bag) == ["features", "coords"]
    assert bag["coords"].dtype == torch.int64
    np.testing.assert_array_equal(bag["features"].numpy(), stored.features)
    np.testing.assert_array_equal(bag["coords"].numpy(), stored.grid.coords)


def test_the_other_kind_is_no_finished_one(handmade: ModuleType, tmp_path: Path) -> None:
    path, out = handmade.write_features(tmp_path / "a.h5"), tmp_path / "out"
    with_coords = ExportOptions(coords=True)
    for options in (None, with_coords, None):
        assert isinstance(exported(path, out, options), dict) == (options is with_coords)
        assert wsi2d.export(path, out, "pt", options).count("skipped") == 1
