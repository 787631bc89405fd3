"""What is told of feature files: numbers against numpy over all values at once, and in what files differ."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

import wsi2d
from wsi2d.errors import FeatureStoreError
from wsi2d.features.inspection import FeatureStatistics, feature_statistics, inspect_file


def in_blocks(features: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """So many rows at a time."""
    for start in range(0, len(features), rows):
        yield features[start : start + rows]


def odd_features() -> np.ndarray:
    """40 patches of 6 numbers: one is constant, two patches are, three are copies, two numbers are none."""
    features = np.random.default_rng(0).normal(3, 2, size=(40, 6)).astype(np.float32)
    features[:, 4] = 7
    features[[3, 9]] = [[7], [7]]  # constant, and 9 is a copy of 3
    features[20] = features[30] = features[1]
    features[5, 0], features[6, 1], features[7, 2] = np.nan, np.inf, -np.inf
    return features


@pytest.mark.parametrize("rows", [1, 7, 40, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_statistics(rows: int, dtype: str) -> None:
    features = odd_features().astype(dtype)
    found = feature_statistics(in_blocks(features, rows))
    finite = features[np.isfinite(features)].astype(np.float64)
    assert found.mean == pytest.approx(finite.mean(), rel=1e-12)
    assert found.sd == pytest.approx(finite.std(), rel=1e-12)
    assert (found.minimum, found.maximum) == (finite.min(), finite.max())
    assert (found.nan, found.infinite) == (1, 2)
    assert (found.constant_columns, found.constant_rows, found.duplicate_rows) == (1, 2, 3)
    assert found.oddities() == "NaN: 1, infinite: 2, constant columns: 1, constant patches: 2, duplicate patches: 3"


def test_nothing_is_odd_about_ordinary_features() -> None:
    found = feature_statistics([np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)])
    assert found.oddities() == ""
    assert feature_statistics([]) == feature_statistics(iter([np.zeros((0, 3), np.float32)]))


def test_a_deviation_far_from_zero_is_exact() -> None:
    """As it is not where sums of squares are subtracted."""
    features = 1e4 + np.random.default_rng(0).normal(0, 1e-2, size=(3000, 4)).astype(np.float32)
    found = feature_statistics(in_blocks(features, 100))
    assert found.sd == pytest.approx(features.astype(np.float64).std(), rel=1e-9)


def test_a_file(handmade: ModuleType, tmp_path: Path) -> None:
    path = handmade.write_features(tmp_path / "a.h5", [(1, 1), (1, 3), (4, 2)], odd_features()[:3], shape=(6, 5))
    file = inspect_file(path)
    assert file.slide_id == "a"
    assert file.size == path.stat().st_size
    assert file.version == wsi2d.__version__
    assert file.occupied == pytest.approx(3 / 30)
    assert file.box == (4, 3)
    assert isinstance(file.statistics, FeatureStatistics)
    assert file.index is not None
    assert file.index.tolist() == [[1, 1], [1, 3], [4, 2]]
    told = file.to_dict()
    assert told["tissue"] == json.loads(handmade.TISSUE)
    expected = {
        "path": str(path), "schema": "wsi2d/1", "slide_id": "a", "encoder": "by hand", "encoder_hash": "0f1e2d",
        "slide_mpp": 0.5, "mpp_source": "header", "level0_width": 320, "level0_height": 384, "mpp": 0.5,
        "patch_px": 64, "overlap_px": 0, "patch_level0": 64.0, "stride_level0": 64.0, "patches": 3, "dim": 6,
        "dtype": "float32", "grid_shape": [6, 5], "tissue_box": [4, 3], "other": {},
    }  # fmt: skip
    assert {name: told[name] for name in expected} == expected


def test_what_others_added_is_told(handmade: ModuleType, tmp_path: Path) -> None:
    path = handmade.write_features(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["lab"] = np.bytes_("Köln".encode())
        file.attrs["plate"] = np.array([1, 2])
        file.attrs["dose"] = np.array([0.5, np.nan])
        file.attrs["none"] = h5py.Empty("f4")
    found = inspect_file(path).to_dict()["other"]
    assert {**found, "none": None} == {"lab": "Köln", "plate": [1, 2], "dose": [0.5, None], "none": None}
    json.loads(wsi2d.inspect_features([path]).to_json(), parse_constant=pytest.fail)


def test_a_slide_without_tissue(handmade: ModuleType, tmp_path: Path) -> None:
    file = inspect_file(handmade.write_features(tmp_path / "a.h5", ()))
    assert (file.occupied, file.box) == (0, None)
    told = file.to_dict()["statistics"]
    assert told == {
        "mean": None, "sd": None, "minimum": None, "maximum": None, "nan": 0, "infinite": 0, "constant_rows": 0,
        "constant_columns": 0, "duplicate_rows": 0,
    }  # fmt: skip


def test_only_one_files_features_are_read_unless_asked(handmade: ModuleType, tmp_path: Path) -> None:
    """A folder's files are told from their headers, so damage further inside goes unnoticed."""
    path = handmade.damage(handmade.write_features(tmp_path / "a.h5"))
    quick = wsi2d.inspect_features([tmp_path])
    assert [f.statistics for f in quick.files] == [None]
    assert quick.failures == ()
    for thorough in (wsi2d.inspect_features([tmp_path], values=True), wsi2d.inspect_features([path])):
        ((named, error),) = thorough.failures
        assert named == path
        assert error.startswith(f"{path}: damaged")


def test_files_that_agree(handmade: ModuleType, tmp_path: Path) -> None:
    """Thresholds are found anew on each slide, and slides differ in size and pixel size."""
    handmade.write_features(tmp_path / "a.h5")
    handmade.write_features(tmp_path / "b.h5", (), shape=(9, 9), tissue=handmade.TISSUE.replace("0.1}", "0.04}"))
    handmade.write_features(tmp_path / "c.h5", patch_px=64, slide_mpp=0.25, stride_level0=128)
    assert wsi2d.inspect_features([tmp_path]).disagreements == ()


def test_files_that_differ(handmade: ModuleType, tmp_path: Path) -> None:
    a, b = (handmade.write_features(tmp_path / name) for name in ("a.h5", "b.h5"))
    c = handmade.write_features(tmp_path / "c.h5", encoder="uni", dim=7, dtype="float16")
    d = handmade.write_features(tmp_path / "d.h5", patch_px=128, tissue='{"min_tissue": 0.5, "close_um": 32.0}')
    found = {x.name: x for x in wsi2d.inspect_features([d, c, a, b]).disagreements}
    assert list(found) == ["encoder", "patch_px", "overlap_px", "dim", "dtype", "tissue.min_tissue"]
    assert found["encoder"].values == (("by hand", (d, a, b)), ("uni", (c,)))
    assert found["encoder"].describe() == "encoder: by hand in 3, uni in 1 (c.h5)"
    assert found["tissue.min_tissue"].describe() == "tissue.min_tissue: 0.25 in 3, 0.5 in 1 (d.h5)"


def test_json(handmade: ModuleType, tmp_path: Path) -> None:
    a = handmade.write_features(tmp_path / "a.h5", features=np.full((3, 2), np.nan))
    b = handmade.write_features(tmp_path / "b.h5", dim=2, encoder="uni")
    (tmp_path / "c.h5").write_text("junk")
    told = json.loads(wsi2d.inspect_features([tmp_path], values=True).to_json(), parse_constant=pytest.fail)
    assert told["schema"] == "wsi2d-inspect/1"
    assert [f["slide_id"] for f in told["files"]] == ["a", "b"]
    assert told["files"][0]["statistics"]["nan"] == 6
    assert told["files"][0]["statistics"]["mean"] is None
    assert told["failures"][0]["path"] == str(tmp_path / "c.h5")
    assert told["disagreements"] == [
        {"name": "encoder", "values": [{"value": "by hand", "paths": [str(a)]}, {"value": "uni", "paths": [str(b)]}]}
    ]


def test_features_that_are_no_floats(handmade: ModuleType, tmp_path: Path) -> None:
    """Told as such, before anything is made of them."""
    path = handmade.write_features(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["features"]
        file["features"] = np.arange(15, dtype=np.uint32).reshape(3, 5)
    with pytest.raises(FeatureStoreError, match="features are uint32, not float16 or float32"):
        inspect_file(path)
    for to in ("pt", "trident"):
        assert "uint32" in wsi2d.export(path, tmp_path / "out", to).failures[0].error


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match=r"no \.h5 files; extract slides into it first"):
        wsi2d.inspect_features([tmp_path])
    with pytest.raises(FeatureStoreError, match=r"gone: no \.h5 files, it does not exist"):
        wsi2d.inspect_features([tmp_path / "gone"])


def test_which_files_are_meant(handmade: ModuleType, tmp_path: Path) -> None:
    """A folder's own files by name, hidden ones not; what is given twice is looked at once."""
    for name in ("b", "a", ".hidden", "deep/c"):
        handmade.write_features(tmp_path / f"{name}.h5")
    (tmp_path / "folder.h5").mkdir()
    survey = wsi2d.inspect_features([tmp_path / "b.h5", tmp_path])
    assert [f.path.name for f in survey.files] == ["b.h5", "a.h5"]
