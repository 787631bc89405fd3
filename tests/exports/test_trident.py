"""``trident``: read as TRIDENT reads feature files, as TITAN lays its grid, and by torchmil's loader."""

from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

import wsi2d
from wsi2d.config import ExtractConfig

PEERS = Path("peers") / "trident" / "20x_256px_0px_overlap"
SLIDE = "cmu-1-small-region"


def attributes(path: Path, name: str) -> dict[str, Any]:
    """Attributes of an array."""
    with h5py.File(path) as file:
        return dict(file[name].attrs)


def read_as_a_slide_encoder(path: Path) -> dict[str, Any]:
    """The batch that TRIDENT makes of a file of patch features for a slide encoder: all of one slide."""
    with h5py.File(path, "r") as file:
        features, coords = file["features"][:], file["coords"][:]
        described = dict(file["coords"].attrs)
    return {
        "features": torch.from_numpy(features).float()[None],
        "coords": torch.from_numpy(coords)[None],
        "attributes": described,
    }


def titans_grid(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Features and coordinates on TITAN's grid, (column, row): what lies in a cell is summed up, in int64 where it is
    coordinates. TITAN's vision_transformer.py, preprocess_features, says how; written anew."""
    features, coords = batch["features"][0], batch["coords"][0]
    cells = torch.floor_divide(coords - coords.amin(0), batch["attributes"]["patch_size_level0"])
    width, height = cells.amax(0) + 1
    place = cells[:, 0] * height + cells[:, 1]
    grid = torch.zeros((width, height, features.shape[1]))
    corners = torch.zeros((width, height, 2), dtype=torch.int64)
    grid.view(-1, features.shape[1]).index_add_(0, place, features)
    corners.view(-1, 2).index_add_(0, place, coords)
    return grid, corners


def exported(path: Path, out: Path) -> Path:
    """The file's export."""
    (outcome,) = wsi2d.export(path, out, "trident").slides
    assert outcome.outcome == "done", outcome
    return outcome.path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(handmade: ModuleType, tmp_path: Path, dtype: str) -> None:
    path = handmade.write_features(tmp_path / "a.h5", dtype=dtype)
    stored = wsi2d.read_features(path)
    with h5py.File(exported(path, tmp_path / "out")) as file:
        assert set(file) == {"features", "coords"}
        assert file["features"].dtype == dtype
        assert file["coords"].dtype == np.int64
        np.testing.assert_array_equal(file["features"][:], stored.features)
        np.testing.assert_array_equal(file["coords"][:], stored.grid.coords)


def test_a_slide_without_tissue(handmade: ModuleType, tmp_path: Path) -> None:
    out = exported(handmade.write_features(tmp_path / "a.h5", ()), tmp_path / "out")
    with h5py.File(out) as file:
        assert (file["features"].shape, file["coords"].shape) == ((0, 5), (0, 2))
        assert file["coords"].attrs["patch_size"] == 64


@pytest.mark.parametrize(("slide_mpp", "side"), [(0.5, 64), (0.25, 128), (0.2497, 128), (0.503, 63), (0.2525, 126)])
def test_attributes_of_any_pixel_size(handmade: ModuleType, tmp_path: Path, slide_mpp: float, side: int) -> None:
    """The side at level 0 is whole, and cut off; magnifications are whole where they are."""
    stride = 64 * 0.5 / slide_mpp
    path = handmade.write_features(tmp_path / "a.h5", slide_mpp=slide_mpp, stride_level0=stride)
    found = attributes(exported(path, tmp_path / "out"), "coords")
    assert found["patch_size_level0"] == side
    assert isinstance(found["patch_size_level0"], np.integer)
    assert found["level0_magnification"] == pytest.approx(10 / slide_mpp)
    assert isinstance(found["level0_magnification"], np.integer) == (slide_mpp in {0.5, 0.25})
    assert isinstance(found["target_magnification"], np.integer)


@pytest.mark.parametrize("slide_mpp", [0.5, 0.25, 0.2497, 0.503, 0.2525, 0.1])
def test_titan_puts_each_patch_in_its_cell(handmade: ModuleType, tmp_path: Path, slide_mpp: float) -> None:
    """Up to 60 cells from the first, whatever the pitch: no two fall together, none is a cell off."""
    cells = np.argwhere(np.random.default_rng(0).random((61, 60)) < 0.4)
    stride = 256 * 0.5 / slide_mpp
    path = handmade.write_features(
        tmp_path / "a.h5", cells, shape=(70, 70), patch_px=256, slide_mpp=slide_mpp, stride_level0=stride
    )
    stored = wsi2d.read_features(path)
    grid, corners = titans_grid(read_as_a_slide_encoder(exported(path, tmp_path / "out")))
    col, row = (cells - cells.min(0))[:, ::-1].T
    np.testing.assert_array_equal(grid[col, row], stored.features)
    np.testing.assert_array_equal(corners[col, row], stored.grid.coords)
    assert int(grid.any(-1).sum()) == len(cells)


def test_titan_does_not_take_our_own_files(handmade: ModuleType, tmp_path: Path) -> None:
    """Else this format would not be needed: readers take their names, TITAN adds up int64 and wants a whole side."""
    path = handmade.write_features(tmp_path / "a.h5")
    batch = read_as_a_slide_encoder(path)
    assert batch["features"].shape == (1, 3, 5)
    assert float(batch["attributes"]["patch_size_level0"]) == 64
    with pytest.raises((RuntimeError, TypeError)):
        titans_grid(batch)


@pytest.mark.slow
def test_the_same_attributes_as_tridents_own_file(shared_dir: Path, tmp_path: Path) -> None:
    """A real slide cut as TRIDENT cut it: each attribute of each array has the name, the kind and the value of its."""
    theirs = shared_dir / PEERS / "features_resnet50" / f"{SLIDE}.h5"
    config = ExtractConfig(workers=1, device="cpu")
    slides = wsi2d.find_slides([shared_dir / "slides" / f"{SLIDE}.svs"])
    report = wsi2d.extract(slides, tmp_path / "features", config, slide_mpp=0.5)
    assert report.count("done") == 1
    ours = exported(tmp_path / "features" / f"{SLIDE}.h5", tmp_path / "out")
    for name in ("coords", "features"):
        mine, known = attributes(ours, name), attributes(theirs, name)
        assert mine.keys() == known.keys()
        assert {k: np.asarray(v).dtype.kind for k, v in mine.items()} == {
            k: np.asarray(v).dtype.kind for k, v in known.items()
        }
        for key in mine.keys() - {"savetodir", "encoder"}:
            assert mine[key] == known[key], key
    with h5py.File(ours) as mine, h5py.File(theirs) as known:
        for name in ("coords", "features"):
            assert mine[name].dtype == known[name].dtype
            assert mine[name].ndim == known[name].ndim
            assert mine[name].maxshape[0] is None
        assert set(map(tuple, known["coords"][:] % 256)) == set(map(tuple, mine["coords"][:] % 256)) == {(0, 0)}
        shared = set(map(tuple, mine["coords"][:])) & set(map(tuple, known["coords"][:]))
        assert len(shared) > 0.8 * len(known["coords"]), "the same cells of the same grid"


@pytest.mark.slow
def test_torchmils_loader_of_trident_folders(handmade: ModuleType, tmp_path: Path) -> None:
    """Someone else's reader of ``{mag}x_{ps}px_{overlap}px_overlap`` folders."""
    datasets = pytest.importorskip("torchmil.datasets")
    path = handmade.write_features(tmp_path / "a.h5", np.argwhere(np.ones((3, 4))))
    base = tmp_path / "20x_64px_0px_overlap"
    out = exported(path, base / "features_mine")
    (base / "patches").mkdir()
    (base / "patches" / "a_patches.h5").write_bytes(out.read_bytes())
    (tmp_path / "labels.csv").write_text("slide,label\na.svs,1\n")
    dataset = datasets.TridentWSIDataset(
        f"{base}/", str(tmp_path / "labels.csv"), "mine", patch_size=64, bag_keys=["X", "Y", "adj", "coords"],
        wsi_name_col="slide", wsi_label_col="label",
    )  # fmt: skip
    stored = wsi2d.read_features(path)
    bag = dataset[0]
    np.testing.assert_array_equal(bag["X"], stored.features)
    np.testing.assert_array_equal(bag["coords"], stored.grid.index[:, ::-1])
    assert bag["adj"].to_dense().bool().sum() > 12


def test_a_change_is_noticed(handmade: ModuleType, tmp_path: Path) -> None:
    """Another encoder or pitch, however old the file is."""
    path = handmade.write_features(tmp_path / "a.h5")
    exported(path, tmp_path / "out")
    assert wsi2d.export(path, tmp_path / "out", "trident").count("skipped") == 1
    handmade.write_features(path, encoder="another")
    exported(path, tmp_path / "out")
    assert attributes(tmp_path / "out" / "a.h5", "features")["encoder"] == "another"
