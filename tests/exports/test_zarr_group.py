"""``zarr``: read by zarr itself, and byte by byte as version 2 of the format says."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import wsi2d
from wsi2d.errors import ConfigError

zarr = pytest.importorskip("zarr")


def exported(path: Path, out: Path) -> Path:
    """The file's export."""
    (outcome,) = wsi2d.export(path, out, "zarr").slides
    assert (outcome.outcome, outcome.path) == ("done", out / f"{path.stem}.zarr")
    return Path(outcome.path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows", [0, 1, 700])
def test_round_trip(handmade: ModuleType, tmp_path: Path, dtype: str, rows: int) -> None:
    cells = np.argwhere(np.ones((35, 20)))[:rows]
    path = handmade.write_features(tmp_path / "a.h5", cells, shape=(35, 20), dim=900, dtype=dtype)
    stored = wsi2d.read_features(path)
    group = zarr.open_group(str(exported(path, tmp_path / "out")), mode="r")
    assert sorted(group.array_keys()) == ["coords", "features", "index"]
    for name, expected in {
        "features": stored.features, "coords": stored.grid.coords, "index": stored.grid.index,
    }.items():  # fmt: skip
        assert group[name].dtype == expected.dtype
        np.testing.assert_array_equal(group[name][:], expected)
    if rows:
        grid = np.zeros((*group.attrs["grid_shape"], 900), dtype)
        grid[tuple(group["index"][:].T)] = group["features"][:]
        assert grid.any(-1).sum() == rows


def test_zeros_are_zeros(handmade: ModuleType, tmp_path: Path) -> None:
    """Also where all of a chunk is, and the format may leave it out."""
    path = handmade.write_features(tmp_path / "a.h5", features=np.zeros((3, 4)))
    out = exported(path, tmp_path / "out")
    assert (out / "features" / "0.0").exists()
    np.testing.assert_array_equal(zarr.open_group(str(out), mode="r")["features"][:], np.zeros((3, 4)))


def test_attributes_are_those_of_the_feature_file(handmade: ModuleType, tmp_path: Path) -> None:
    path = handmade.write_features(tmp_path / "a.h5")
    attributes = dict(zarr.open_group(str(exported(path, tmp_path / "out")), mode="r").attrs)
    assert attributes.pop("tissue") == json.loads(handmade.TISSUE)
    assert attributes == {
        "schema": "wsi2d/1", "slide_id": "a", "encoder": "by hand", "encoder_hash": "0f1e2d", "mpp": 0.5,
        "slide_mpp": 0.5, "mpp_source": "header", "patch_px": 64, "patch_level0": 64.0, "stride_level0": 64.0,
        "grid_shape": [3, 4], "level0_width": 256, "level0_height": 192, "wsi2d_version": wsi2d.__version__,
        "complete": True,
    }  # fmt: skip


def test_it_is_version_2(handmade: ModuleType, tmp_path: Path) -> None:
    """Without zarr: the JSON and the chunks' names of the format's version 2, which older readers know, and one file
    for all metadata; dimensions have names, as xarray wants them."""
    numcodecs = pytest.importorskip("numcodecs")
    cells = np.argwhere(np.ones((35, 20)))
    path = handmade.write_features(tmp_path / "a.h5", cells, shape=(35, 20), dim=900)
    out = exported(path, tmp_path / "out")
    assert json.loads((out / ".zgroup").read_text()) == {"zarr_format": 2}
    described = json.loads((out / "features" / ".zarray").read_text())
    assert (described["zarr_format"], described["shape"], described["dtype"]) == (2, [700, 900], "<f4")
    assert described["fill_value"] is None, "xarray takes what equals a fill value for missing"
    rows = described["chunks"][0]
    assert 200 < rows < 700
    codec = numcodecs.get_codec(described["compressor"])
    chunks = [
        np.frombuffer(codec.decode((out / "features" / f"{k}.0").read_bytes()), "<f4") for k in range(-(-700 // rows))
    ]
    found = np.concatenate(chunks).reshape(-1, 900)[:700]
    np.testing.assert_array_equal(found, wsi2d.read_features(path).features)
    assert set(json.loads((out / ".zmetadata").read_text())["metadata"]) >= {".zattrs", "features/.zarray"}
    names = {
        n: json.loads((out / n / ".zattrs").read_text())["_ARRAY_DIMENSIONS"] for n in ("features", "coords", "index")
    }
    assert names == {"features": ["patch", "feature"], "coords": ["patch", "xy"], "index": ["patch", "row_col"]}


def test_a_stopped_export_leaves_nothing(handmade: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it take away what was there."""
    path, out = handmade.write_features(tmp_path / "a.h5"), tmp_path / "out"
    before = exported(path, out)
    handmade.write_features(path, encoder="another")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zarr, "consolidate_metadata", stop)
    for place, left in ((out, {"a.zarr"}), (tmp_path / "new", set())):
        with pytest.raises(KeyboardInterrupt):
            wsi2d.export(path, place, "zarr")
        assert {p.name for p in place.iterdir()} == left
    assert zarr.open_group(str(before), mode="r").attrs["encoder"] == "by hand"
    monkeypatch.undo()
    assert zarr.open_group(str(exported(path, out)), mode="r").attrs["encoder"] == "another"
    assert {p.name for p in out.iterdir()} == {"a.zarr"}


def test_what_a_killed_export_left_is_removed(handmade: ModuleType, tmp_path: Path) -> None:
    path, left = handmade.write_features(tmp_path / "a.h5"), tmp_path / "out" / ".a.zarr.partial" / "features"
    left.mkdir(parents=True)
    (left / "0.0").write_bytes(b"half")
    exported(path, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.zarr"}


def test_without_the_package(handmade: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = handmade.write_features(tmp_path / "a.h5")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ConfigError, match=r"export to zarr: needs the package zarr; pip install 'wsi2d\[zarr\]'"):
        wsi2d.export(path, tmp_path / "out", "zarr")
    assert not (tmp_path / "out").exists()
