"""Feature files: what is written is read, and nothing half-written or half-true is ever read."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from wsi2d import __version__
from wsi2d.errors import FeatureStoreError, StorageError
from wsi2d.features.store import (
    FeatureBag,
    FeatureWriter,
    Provenance,
    feature_path,
    read_features,
    read_header,
)
from wsi2d.files import partial_path
from wsi2d.slides.patching import GridGeometry, PatchGrid, cell_coords

STRIDE = 192 * 0.5 / 0.499


def provenance(slide_id: str = "A1") -> Provenance:
    return Provenance(slide_id, "histology-stats", "abc123", 0.499, "header", 2220, 2967, '{"min_tissue": 0.25}')


def make_grid(n: int, cols: int = 9) -> PatchGrid:
    index = np.stack([np.arange(n) // cols, np.arange(n) % cols], -1).astype(np.int32)
    shape = (max(1, -(-n // cols)), cols)
    return PatchGrid(shape, 256, 0.5, 256 * 0.5 / 0.499, STRIDE, cell_coords(index, STRIDE), index)


def make_features(n: int, dim: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, dim)).astype(dtype)


def write(path: Path, n: int = 20, dim: int = 6, dtype: str = "float32", batch: int = 7) -> np.ndarray:
    features = make_features(n, dim, dtype)
    with FeatureWriter(path, make_grid(n), provenance(), dim=dim, dtype=dtype) as writer:
        for start in range(0, n, batch):
            writer.append(features[start : start + batch])
    return features


def edit(path: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replace(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = value
        file[name].attrs.update(attributes)

    return change


def refuse(path: Path, *words: str) -> None:
    """Reading fails with one line that names the file and holds those words."""
    with pytest.raises(FeatureStoreError) as error:
        read_features(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("n", [0, 1, 8, 63])
def test_what_is_written_is_read(tmp_path: Path, n: int, dtype: str) -> None:
    path = feature_path(tmp_path, "A1")
    features = write(path, n, 5, dtype)
    bag = read_features(path)
    assert path == tmp_path / "A1.h5"
    assert (bag.features.dtype, bag.features.shape) == (np.dtype(dtype), (n, 5))
    assert bag.features.tobytes() == features.tobytes()
    assert bag.provenance == provenance()
    expected = make_grid(n)
    for name in ("shape", "patch_px", "mpp", "patch_level0", "stride_level0"):
        assert getattr(bag.grid, name) == getattr(expected, name)
    for name in ("coords", "index"):
        assert getattr(bag.grid, name).dtype == np.int32
        assert np.array_equal(getattr(bag.grid, name), getattr(expected, name))
    assert read_features(str(path)).provenance == provenance()
    assert os.listdir(tmp_path) == ["A1.h5"]


def test_attributes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "A1.h5"
    write(path)
    with h5py.File(path) as file:
        attributes = {k: v.decode() if isinstance(v, bytes) else v for k, v in file.attrs.items()}
        assert set(file) == {"features", "coords", "index"}
        assert (file["features"].dtype, file["coords"].dtype, file["index"].dtype) == (np.float32, np.int32, np.int32)
        for name in ("mpp", "slide_mpp", "patch_level0", "stride_level0"):
            assert np.asarray(attributes[name]).dtype == np.float64
    assert attributes.pop("grid_shape").tolist() == [3, 9]
    assert attributes == {
        "schema": "wsi2d/1",
        "slide_id": "A1",
        "encoder": "histology-stats",
        "encoder_hash": "abc123",
        "mpp": 0.5,
        "slide_mpp": 0.499,
        "mpp_source": "header",
        "patch_px": 256,
        "patch_level0": 256 * 0.5 / 0.499,
        "stride_level0": STRIDE,
        "level0_width": 2220,
        "level0_height": 2967,
        "tissue": '{"min_tissue": 0.25}',
        "wsi2d_version": __version__,
        "complete": True,
    }


def test_tridents_names_stand_on_coords(tmp_path: Path) -> None:
    write(tmp_path / "A1.h5")
    with h5py.File(tmp_path / "A1.h5") as file:
        attributes = dict(file["coords"].attrs)
    assert attributes == {
        "name": "A1",
        "patch_size": 256,
        "patch_size_level0": pytest.approx(256 * 0.5 / 0.499),
        "level0_magnification": pytest.approx(10 / 0.499),
        "target_magnification": 20.0,
        "overlap": 64,
        "level0_width": 2220,
        "level0_height": 2967,
    }
    # TRIDENT's own pitch, from those very attributes.
    pitch = attributes["patch_size_level0"] - (
        attributes["overlap"] * attributes["level0_magnification"] / attributes["target_magnification"]
    )
    assert pitch == pytest.approx(STRIDE)


def test_tridents_names_are_those_of_its_file(tmp_path: Path, shared_dir: Path) -> None:
    write(tmp_path / "A1.h5")
    folder = shared_dir / "peers" / "trident" / "20x_256px_0px_overlap" / "patches"
    with h5py.File(tmp_path / "A1.h5") as ours, h5py.File(folder / "cmu-1-small-region_patches.h5") as theirs:
        assert set(theirs["coords"].attrs) - {"savetodir"} == set(ours["coords"].attrs)


@pytest.mark.parametrize(
    ("n", "dim", "dtype", "rows"),
    [
        (20, 6, "float32", 20),
        (9, 108, "float16", 9),
        (5000, 1024, "float16", 512),
        (3000, 1024, "float32", 256),
        (1, 6, "float32", 1),
    ],
)
def test_chunks_are_of_a_megabyte(tmp_path: Path, n: int, dim: int, dtype: str, rows: int) -> None:
    with FeatureWriter(tmp_path / "A1.h5", make_grid(n), provenance(), dim=dim, dtype=dtype) as writer:
        writer.append(np.zeros((n, dim), dtype))
    with h5py.File(tmp_path / "A1.h5") as file:
        assert file["features"].chunks == (rows, dim)
        assert file["coords"].chunks == (n, 2)
        assert file["index"].chunks == (n, 2)


def test_it_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "A1.h5"
    features = make_features(20, 6)
    with FeatureWriter(path, make_grid(20), provenance(), dim=6, dtype="float32") as writer:
        writer.append(features[:12])
        assert os.listdir(tmp_path) == [partial_path(path).name]
        writer._file.flush()
        shutil.copyfile(partial_path(path), tmp_path / "killed.h5")  # what is there if the process dies now
        refuse(tmp_path / "killed.h5")
        (tmp_path / "killed.h5").unlink()
        writer.append(features[12:])
        assert not path.exists()
    assert os.listdir(tmp_path) == ["A1.h5"]
    assert np.array_equal(read_features(path).features, features)


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with FeatureWriter(tmp_path / "A1.h5", make_grid(20), provenance(), dim=6, dtype="float32") as writer:
            writer.append(make_features(12, 6))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == []


def test_an_exception_keeps_the_file_of_before(tmp_path: Path) -> None:
    before = write(tmp_path / "A1.h5")

    def fail() -> None:
        with FeatureWriter(tmp_path / "A1.h5", make_grid(20), provenance(), dim=6, dtype="float32"):
            raise RuntimeError("encoder")

    with pytest.raises(RuntimeError, match="encoder"):
        fail()
    assert os.listdir(tmp_path) == ["A1.h5"]
    assert np.array_equal(read_features(tmp_path / "A1.h5").features, before)


@pytest.mark.parametrize("rows", [0, 19, 21])
def test_too_few_or_too_many_rows_leave_nothing(tmp_path: Path, rows: int) -> None:
    def fail() -> None:
        with FeatureWriter(tmp_path / "A1.h5", make_grid(20), provenance(), dim=6, dtype="float32") as writer:
            for row in make_features(rows, 6):
                writer.append(row[None])

    with pytest.raises(FeatureStoreError, match=r"A1\.h5"):
        fail()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "features", [np.zeros((3, 1)), np.zeros((3, 7)), np.zeros(6), np.zeros((3, 6, 1)), np.zeros((5, 6))]
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, features: np.ndarray) -> None:
    def fail() -> None:
        with FeatureWriter(tmp_path / "A1.h5", make_grid(3), provenance(), dim=6, dtype="float32") as writer:
            writer.append(features)

    with pytest.raises(FeatureStoreError, match=r"A1\.h5.*\[n, 6\]"):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_dtype_that_is_none_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        FeatureWriter(tmp_path / "A1.h5", make_grid(3), provenance(), dim=6, dtype="floatish")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone.*A1\.h5: cannot be written"):
        FeatureWriter(tmp_path / "gone" / "A1.h5", make_grid(3), provenance(), dim=6, dtype="float32")


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: h5py.Dataset, *args: object) -> None:
        raise OSError(28, "No space left on device")

    def fail() -> None:
        with FeatureWriter(tmp_path / "A1.h5", make_grid(3), provenance(), dim=6, dtype="float32") as writer:
            monkeypatch.setattr(h5py.Dataset, "__setitem__", full)
            writer.append(make_features(3, 6))

    with pytest.raises(StorageError, match=r"A1\.h5: cannot be written \(.*No space left on device"):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refuse(tmp_path / "A1.h5", "no such feature file", "extract")
    with pytest.raises(FeatureStoreError, match="no such feature file"):
        read_header(tmp_path / "A1.h5")


@pytest.mark.parametrize("content", [b"", b"no HDF5 at all", b"\x89HDF\r\n\x1a\n" + bytes(40)])
def test_what_is_no_hdf5_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "A1.h5").write_bytes(content)
    refuse(tmp_path / "A1.h5", "not a readable HDF5 file", "extract again")


def test_a_folder_is_no_feature_file(tmp_path: Path) -> None:
    refuse(tmp_path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "A1.h5"
    write(path, 63, 40)
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 997), len(whole) - 1):
        path.write_bytes(whole[:length])
        refuse(path, "not a readable HDF5 file")
        with pytest.raises(FeatureStoreError):
            read_header(path)


def test_an_array_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "A1.h5")
    for raised in (OSError("filter\nfailed"), RuntimeError("filter failed"), KeyError("filter failed")):

        def damaged(self: h5py.Dataset, args: object, error: Exception = raised) -> None:
            raise error

        monkeypatch.setattr(h5py.Dataset, "__getitem__", damaged)
        refuse(tmp_path / "A1.h5", "damaged (", "filter failed)", "delete it and extract again")


@pytest.mark.parametrize("name", ["features", "coords", "index"])
def test_a_missing_dataset_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "A1.h5")
    edit(tmp_path / "A1.h5", lambda file: file.pop(name))
    refuse(tmp_path / "A1.h5", f"has no {name};", "extract again")


@pytest.mark.parametrize(
    "name", ["slide_id", "encoder", "encoder_hash", "slide_mpp", "mpp", "mpp_source", "patch_px", "patch_level0",
             "stride_level0", "grid_shape", "level0_width", "level0_height", "tissue"],
)  # fmt: skip
def test_a_missing_attribute_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "A1.h5")
    edit(tmp_path / "A1.h5", lambda file: file.attrs.pop(name))
    refuse(tmp_path / "A1.h5", f"has no {name};")
    with pytest.raises(FeatureStoreError, match=name):
        read_header(tmp_path / "A1.h5")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replace("features", np.zeros((19, 6), np.float32)), "have 19, 20, 20 rows"),
        (replace("features", np.zeros(20, np.float32)), "features is no array [N, D]"),
        (replace("features", np.float32(1)), "features is no array [N, D]"),
        (replace("features", np.zeros((20, 6), np.int32)), "features must be float16 or float32"),
        (replace("features", np.array([[b"a"] * 6] * 20)), "features is no array [N, D] of numbers"),
        (replace("coords", np.zeros((19, 2), np.int32)), "have 20, 19, 20 rows"),
        (replace("coords", np.zeros((20, 3), np.int32)), "must be [N, 2]"),
        (replace("coords", np.zeros((20, 2), np.float32)), "must be integers"),
        (replace("index", make_grid(19).index), "have 20, 20, 19 rows"),
        (replace("index", np.int32(3)), "index is no array [N, D]"),
        (replace("index", np.arange(20)), "index is no array [N, D]"),
        (replace("index", make_grid(20).index + 1), "outside the grid"),
        (replace("index", make_grid(20).index // 2), "occurs twice"),
        (lambda file: file.attrs.update(grid_shape=[2, 9]), "outside the grid"),
        (lambda file: file.attrs.update(grid_shape=[3, 9, 1]), "damaged"),
        (lambda file: file.attrs.update(grid_shape=3), "damaged"),
        (lambda file: file.attrs.update(patch_px=np.bytes_(b"large")), "damaged"),
        (lambda file: file.attrs.update(mpp=float("nan")), "must be > 0"),
        (lambda file: file.attrs.update(stride_level0=0.0), "must be > 0"),
        (lambda file: file.attrs.update(encoder=np.bytes_(b"uni\xff")), "damaged"),
        (lambda file: file.attrs.update(tissue=np.bytes_(b"{not json")), "damaged"),
        (lambda file: (file.pop("features"), file.create_group("features")), "damaged"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[h5py.File], object], words: str
) -> None:
    write(tmp_path / "A1.h5")
    edit(tmp_path / "A1.h5", change)
    refuse(tmp_path / "A1.h5", words, "extract")


@pytest.mark.parametrize("change", [lambda f: f.attrs.update(complete=False), lambda f: f.attrs.pop("complete")])
def test_an_incomplete_file_is_refused(tmp_path: Path, change: Callable[[h5py.File], object]) -> None:
    write(tmp_path / "A1.h5")
    edit(tmp_path / "A1.h5", change)
    refuse(tmp_path / "A1.h5", "incomplete", "extract the slide again")
    with pytest.raises(FeatureStoreError, match="incomplete"):
        read_header(tmp_path / "A1.h5")


@pytest.mark.parametrize("schema", ["wsi2d/2", "other", None])
def test_another_schema_is_refused(tmp_path: Path, schema: str | None) -> None:
    write(tmp_path / "A1.h5")
    raw = None if schema is None else schema.encode()
    edit(tmp_path / "A1.h5", lambda f: f.attrs.pop("schema") if raw is None else f.attrs.update(schema=np.bytes_(raw)))
    refuse(tmp_path / "A1.h5", "schema is", "not 'wsi2d/1'")


def test_texts_of_variable_length_are_not_read(tmp_path: Path) -> None:
    """HDF5 can hang on one that is damaged; ours are of fixed length."""
    write(tmp_path / "A1.h5")
    edit(tmp_path / "A1.h5", lambda f: f.attrs.update(schema="wsi2d/1"))
    refuse(tmp_path / "A1.h5", "schema is None, not 'wsi2d/1'")


def test_damage_anywhere_is_noticed(tmp_path: Path) -> None:
    """A bit that flips in numbers, coordinates or HDF5's own data is not read as if nothing were."""
    path = tmp_path / "A1.h5"
    write(path, 63, 40)
    whole, sound = path.read_bytes(), read_features(path)
    generator = np.random.default_rng(5)
    refused = 0
    for place in generator.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            read = read_features(path)
        except FeatureStoreError:
            refused += 1
            continue
        assert np.array_equal(read.features, sound.features)
        assert np.array_equal(read.grid.coords, sound.grid.coords)
        assert read.provenance == sound.provenance
    assert refused > 200


def test_peers_files_are_refused_in_one_line(shared_dir: Path) -> None:
    for path in sorted((shared_dir / "peers").rglob("*.h5")):
        refuse(path, "schema is None")


def test_the_header_alone(tmp_path: Path) -> None:
    write(tmp_path / "A1.h5")
    header = read_header(tmp_path / "A1.h5")
    grid = make_grid(20)
    assert header.provenance == provenance()
    assert header.geometry == GridGeometry(grid.shape, 256, 0.5, grid.patch_level0, grid.stride_level0)
    assert (header.patches, header.dim) == (20, 6)


@pytest.mark.parametrize("features", [np.zeros((19, 6), np.float32), np.zeros(20, np.float32), np.zeros((20, 2), int)])
def test_a_bag_checks_itself(features: np.ndarray) -> None:
    with pytest.raises(FeatureStoreError, match="slide 'A1': features"):
        FeatureBag(features, make_grid(20), provenance())
