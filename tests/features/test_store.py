"""Feature files: what is written is read, and nothing half-written or half-true is ever read."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from wsi2d import __version__
from wsi2d.errors import FeatureStoreError, StorageError, TakenOverError
from wsi2d.features.store import (
    FeatureBag,
    FeatureWriter,
    Imported,
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
        writer._wait_for(writer._output._file.flush)
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


INTERRUPTED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from tests.features.test_store import make_features, make_grid, provenance
from wsi2d.features.store import FeatureWriter, read_features
from wsi2d.files import partial_path

path, grid, features, chance = Path(sys.argv[1]) / "A1.h5", make_grid(100), make_features(100, 4000), random.Random(0)
came = written = left = 0


def write():
    with FeatureWriter(path, grid, provenance(), dim=4000, dtype="float32") as writer:
        for start in range(0, 100, 3):
            writer.append(features[start : start + 3])


took = []
for _ in range(5):
    begun = time.monotonic()
    write()
    took.append(time.monotonic() - begun)
    path.unlink()
signal.signal(signal.SIGALRM, signal.default_int_handler)
# Python loses an interrupt that comes while it clears up an object; the command line sends such a one again.
lost = sys.unraisablehook
sys.unraisablehook = lambda what: None if what.exc_type is KeyboardInterrupt else lost(what)
while came < 100:
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 1.5 * sorted(took)[2]))
        write()
        signal.setitimer(signal.ITIMER_REAL, 0)
        written += 1
    except KeyboardInterrupt:
        came += 1
    found = set(os.listdir(path.parent))
    assert found <= {path.name, partial_path(path).name}, found
    left += partial_path(path).name in found
    if path.exists():
        assert np.array_equal(read_features(path).features, features)
        path.unlink()
    partial_path(path).unlink(missing_ok=True)
print(came, written > 0, left)
"""


def test_an_interrupt_at_any_moment_leaves_nothing_half_written(tmp_path: Path) -> None:
    """In a process of its own: HDF5 could crash or hang it."""
    command = [sys.executable, "-X", "faulthandler", "-c", INTERRUPTED, str(tmp_path)]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    came, written, left = ended.stdout.split()
    assert (came, written) == ("100", "True")
    assert int(left) <= 2, "only one between the writer and its block leaves a partial file, for the next run to remove"


# --- imported features


def imported(**changes: Any) -> Provenance:
    """Of features whose tool says nothing of them."""
    counts = {"patches": 21, "cells": 20, "dropped": 1}
    made = Imported("CLAM", None, "statistics", "patches", counts, 0.25)
    values: dict[str, Any] = {"encoder": None, "encoder_hash": None, "slide_mpp": None, "mpp_source": "unknown"}
    return dataclasses.replace(provenance(), **(values | {"imported": made} | changes))


def write_imported(path: Path, made: Provenance, **changes: Any) -> PatchGrid:
    """Twenty patches that lie beside their cells' corners, on a grid that does not start in the slide's corner."""
    plain = make_grid(20)
    origin = (30.5, -7.25)
    coords = cell_coords(plain.index, STRIDE, origin) + np.array([40, -9], np.int32)
    values: dict[str, Any] = {"patch_px": None, "mpp": None, "coords": coords, "origin": origin}
    grid = dataclasses.replace(plain, **(values | changes))
    with FeatureWriter(path, grid, made, dim=6, dtype="float16") as writer:
        writer.append(make_features(20, 6, "float16"))
    return grid


def test_imported_features_with_what_is_unknown(tmp_path: Path) -> None:
    grid = write_imported(tmp_path / "A1.h5", imported())
    bag = read_features(tmp_path / "A1.h5")
    assert bag.provenance == imported()
    assert (bag.grid.mpp, bag.grid.patch_px, bag.grid.overlap_px, bag.grid.origin) == (None, None, None, (30.5, -7.25))
    assert np.array_equal(bag.grid.coords, grid.coords)
    assert read_header(tmp_path / "A1.h5").provenance == imported()
    with h5py.File(tmp_path / "A1.h5") as file:
        assert {"level0_magnification", "target_magnification", "overlap", "patch_size"} & set(
            file["coords"].attrs
        ) == set()


def test_imported_features_with_all_that_is_known(tmp_path: Path) -> None:
    made = imported(encoder="uni_v2", slide_mpp=0.499, mpp_source="user")
    write_imported(tmp_path / "A1.h5", made, patch_px=256, mpp=0.5)
    bag = read_features(tmp_path / "A1.h5")
    assert (bag.provenance, bag.grid.mpp, bag.grid.patch_px) == (made, 0.5, 256)
    assert made.encoder_hash is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.attrs.pop("imported"), "must be > 0 or a name"),
        (lambda file: file.attrs.pop("origin"), "has no origin"),
        (lambda file: file.attrs.update(origin=[9000.0, 0.0]), "origin (9000.0, 0.0) is not at the slide's corner"),
        (lambda file: file.attrs.update(origin=[0.0, np.nan]), "origin"),
        (lambda file: file.attrs.update(imported=np.bytes_(b"{}")), "has no counts"),
        (lambda file: file.attrs.update(imported=np.bytes_(b"[1]")), "damaged"),
        (lambda file: file.attrs.update(imported=np.bytes_(b"nothing")), "damaged"),
        (lambda file: file.attrs.update(mpp=-1.0), "must be > 0"),
        (lambda file: file.attrs.update(grid_shape=[90, 9]), "is not that of the slide"),
    ],
)
def test_imported_features_that_contradict_themselves(
    tmp_path: Path, change: Callable[[h5py.File], object], words: str
) -> None:
    write_imported(tmp_path / "A1.h5", imported())
    edit(tmp_path / "A1.h5", change)
    refuse(tmp_path / "A1.h5", words, "extract")


def test_imported_features_farther_than_a_pitch_from_their_cells(tmp_path: Path) -> None:
    coords = cell_coords(make_grid(20).index, STRIDE, (30.5, -7.25)) + np.array([195, 0], np.int32)
    write_imported(tmp_path / "A1.h5", imported(), coords=coords)
    refuse(tmp_path / "A1.h5", "coords are not those of its index", "extract")


def test_features_of_ours_say_everything(tmp_path: Path) -> None:
    write_imported(tmp_path / "A1.h5", provenance(), patch_px=256, mpp=None, origin=(0.0, 0.0))
    refuse(tmp_path / "A1.h5", "mpp must be > 0", "extract")


# --- two writers of one file


def test_who_was_overtaken_leaves_the_others_half_file_alone(tmp_path: Path) -> None:
    """A run that was suspended, and another that took its slide over, as extraction does it."""
    path, rows = tmp_path / "A1.h5", make_features(20, 6)
    first = FeatureWriter(path, make_grid(20), provenance(), dim=6, dtype="float32")
    first.append(rows)
    partial_path(path).unlink()
    with FeatureWriter(path, make_grid(20), provenance(), dim=6, dtype="float32") as second:
        second.append(rows[:12])
        with pytest.raises(TakenOverError, match=r"A1\.h5: another run took it over"), first:
            pass
        assert os.listdir(tmp_path) == [partial_path(path).name], "neither published nor removed"
        second.append(rows[12:])
    assert os.listdir(tmp_path) == ["A1.h5"]
    assert np.array_equal(read_features(path).features, rows)


def test_two_do_not_write_one_half_file(tmp_path: Path) -> None:
    path, rows = tmp_path / "A1.h5", make_features(20, 6)
    with FeatureWriter(path, make_grid(20), provenance(), dim=6, dtype="float32") as first:
        first.append(rows[:12])
        with pytest.raises(TakenOverError, match=r"A1\.h5: another run is writing it"):
            FeatureWriter(path, make_grid(20), provenance(), dim=6, dtype="float32")
        first.append(rows[12:])
    assert np.array_equal(read_features(path).features, rows)


@pytest.mark.parametrize("n", [0, 20])
def test_a_last_look_before_it_appears(tmp_path: Path, n: int) -> None:
    path = tmp_path / "A1.h5"

    def refuse_it() -> None:
        assert os.listdir(tmp_path) == [partial_path(path).name]
        raise InterruptedError("not ours")

    def write() -> None:
        with FeatureWriter(path, make_grid(n), provenance(), dim=6, dtype="float32", check=refuse_it) as writer:
            writer.append(make_features(n, 6))

    with pytest.raises(InterruptedError):
        write()
    assert os.listdir(tmp_path) == []
