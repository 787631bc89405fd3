"""Feature files: one HDF5 a slide, complete or absent (the format is described in ``docs/formats.md``)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from wsi2d import __version__
from wsi2d.errors import FeatureStoreError, SlideError
from wsi2d.files import partial_path, remove, unwritable, whole_file
from wsi2d.slides.patching import GridGeometry, PatchGrid, cell_coords, grid_cells

SCHEMA = "wsi2d/1"
# HDF5's layout since 1.10, which has a checksum on all of its own data; the older one can hang a reader where it is
# damaged, and so can strings of variable length in either.
_LAYOUT = ("v110", "v110")
_CHUNK_BYTES = 2**20
_DEFLATE_AT_MOST = 1100  # no compressor of HDF5's makes an array smaller than by that
_DATASETS = ("features", "coords", "index")


@dataclass(frozen=True)
class Provenance:
    """Where features come from.

    Attributes:
        slide_id: the slide.
        encoder, encoder_hash: the encoder's name and fingerprint.
        slide_mpp, mpp_source: level-0 pixel size, µm, and where it was found.
        level0_width, level0_height: the slide's size, px.
        tissue: the parameters that chose the patches, as JSON.
    """

    slide_id: str
    encoder: str
    encoder_hash: str
    slide_mpp: float
    mpp_source: str
    level0_width: int
    level0_height: int
    tissue: str


@dataclass(frozen=True)
class FeatureHeader:
    """What a feature file says of itself.

    Attributes:
        provenance: slide, encoder and pixel size.
        geometry: how the slide was cut.
        patches, dim: how many embeddings, and their width.
    """

    provenance: Provenance
    geometry: GridGeometry
    patches: int
    dim: int


@dataclass(frozen=True)
class FeatureBag:
    """A slide's embeddings with their places.

    Attributes:
        features: float16 or float32 ``[N, D]``.
        grid: the patches, in the same order.
        provenance: slide, encoder and pixel size.
    """

    features: np.ndarray
    grid: PatchGrid
    provenance: Provenance

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.grid):
            raise FeatureStoreError(
                f"slide '{self.provenance.slide_id}': features {list(self.features.shape)} do not belong to "
                f"{len(self.grid)} patches"
            )
        if self.features.dtype not in (np.float16, np.float32):
            raise FeatureStoreError(
                f"slide '{self.provenance.slide_id}': features must be float16 or float32, got {self.features.dtype}"
            )


def feature_path(folder: Path, slide_id: str) -> Path:
    """Where a slide's features lie."""
    return folder / f"{slide_id}.h5"


class FeatureWriter:
    """Writes a feature file batch by batch; it appears under its name only when complete.

    Use as a context manager and call :meth:`append` until all ``len(grid)`` rows are there.

    Raises:
        StorageError: the disk does not take it.
    """

    def __init__(self, path: Path, grid: PatchGrid, provenance: Provenance, *, dim: int, dtype: str) -> None:
        self._path, self._partial = path, partial_path(path)
        self._rows = 0
        stored = np.dtype(dtype)
        try:
            self._sink = _Sink(self._partial)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            self._file = h5py.File(self._sink, "w", libver=_LAYOUT)
            self._features = _create(self._file, "features", (len(grid), dim), stored)
            _create(self._file, "coords", (len(grid), 2), np.dtype(np.int32))[:] = grid.coords
            _create(self._file, "index", (len(grid), 2), np.dtype(np.int32))[:] = grid.index
            _write_attributes(self._file, _attributes(grid, provenance))
            self._file["coords"].attrs.update(_trident_attributes(grid, provenance))
            self._check_disk()
        except BaseException:
            self._give_up()
            raise

    def append(self, features: np.ndarray) -> None:
        """Add the next rows, ``[n, D]``.

        Raises:
            FeatureStoreError: the rows are of another width or too many.
            StorageError: the disk does not take them.
        """
        rows, dim = self._features.shape
        if features.ndim != 2 or features.shape[1] != dim or self._rows + len(features) > rows:
            raise FeatureStoreError(
                f"{self._path}: the next rows must be [n, {dim}] with n at most {rows - self._rows}, "
                f"got {list(features.shape)}"
            )
        try:
            self._features[self._rows : self._rows + len(features)] = features
        except (OSError, RuntimeError) as error:
            raise unwritable(self._path, error) from error
        self._check_disk()
        self._rows += len(features)

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._give_up()
            return
        try:
            if self._rows != len(self._features):
                raise FeatureStoreError(f"{self._path}: {self._rows} of {len(self._features)} rows were written")
            self._file.attrs["complete"] = True
            self._file.close()
            self._sink.close()
            self._check_disk()
            with whole_file(self._path):
                pass  # it is written already: what is left is to move it to its place
        finally:
            self._give_up()

    def _check_disk(self) -> None:
        if self._sink.error is not None:
            raise unwritable(self._path, self._sink.error) from self._sink.error

    def _give_up(self) -> None:
        """Close what is open, and remove what has not become the feature file."""
        file: h5py.File | None = getattr(self, "_file", None)
        if file:
            file.close()
        self._sink.close()
        remove(self._partial)


class _Sink:
    """A file that HDF5 writes to and that never fails: HDF5 crashes the process where it cannot write what it holds.

    Attributes:
        error: the first that the disk gave; nothing is written from then on.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int) -> int:
        try:
            if self.error is None:
                self._file.truncate(size)
        except OSError as error:
            self.error = error
        return size

    def readinto(self, buffer: memoryview) -> int:
        """What was not written reads as zeros."""
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view) or 0
        view[count:] = bytes(len(view) - count)
        return len(view)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size) or b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self._file.close()


def read_features(path: Path | str) -> FeatureBag:
    """Read a feature file.

    Raises:
        FeatureStoreError: the file is missing, damaged, incomplete or not ours.
    """
    path = Path(path)
    with _reading(path) as (file, attributes):
        _check_datasets(file)
        header = _parse_attributes(attributes, file["features"].shape)
        features, coords, index = (_array(file, name) for name in _DATASETS)
    g = header.geometry
    try:
        grid = PatchGrid(g.shape, g.patch_px, g.mpp, g.patch_level0, g.stride_level0, coords, index)
        if not np.array_equal(coords, cell_coords(index, g.stride_level0)):
            raise FeatureStoreError("coords are not those of its index")
        return FeatureBag(features, grid, header.provenance)
    except (FeatureStoreError, SlideError) as error:
        raise FeatureStoreError(f"{path}: {error}; delete it and extract again") from error


def read_header(path: Path) -> FeatureHeader:
    """What a feature file says of itself; its arrays are checked by their shapes and not read.

    Raises:
        FeatureStoreError: as :func:`read_features`.
    """
    with _reading(path) as (file, attributes):
        _check_datasets(file)
        return _parse_attributes(attributes, file["features"].shape)


@contextmanager
def _reading(path: Path) -> Iterator[tuple[h5py.File, dict[str, Any]]]:
    """An open feature file, ours and complete, and its attributes; whatever HDF5 raises on damage becomes one line."""
    with _open(path) as file:
        try:
            attributes = _read_attributes(file)
            found = attributes.get("schema")
            if found != SCHEMA:
                raise FeatureStoreError(
                    f"{path}: schema is {found!r}, not '{SCHEMA}'; it is no wsi2d feature file, "
                    "extract the slides with `wsi2d extract`"
                )
            if not attributes.get("complete", False):
                raise FeatureStoreError(f"{path}: incomplete; extract the slide again")
            yield file, attributes
        except KeyError as error:
            raise FeatureStoreError(
                f"{path}: has no {error.args[0]}; it is no wsi2d feature file, delete it and extract again"
            ) from error
        except (OSError, RuntimeError, TypeError, ValueError, OverflowError, MemoryError, SlideError) as error:
            raise FeatureStoreError(f"{path}: damaged ({_one_line(error)}); delete it and extract again") from error


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise FeatureStoreError(f"{path}: no such feature file; extract the slide first") from error
    except OSError as error:
        raise FeatureStoreError(f"{path}: not a readable HDF5 file; delete it and extract again") from error


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _check_datasets(file: h5py.File) -> None:
    """Whether the arrays can be what they say: shapes that fit each other, and as many bytes in the file as they need.
    A damaged shape can ask for terabytes, so nothing is read before."""
    counts = []
    size = Path(file.filename).stat().st_size
    for name in _DATASETS:
        data = _dataset(file, name)
        if (
            not isinstance(data, h5py.Dataset)
            or data.ndim != 2
            or data.dtype.kind not in "fiu"
            or not data.dtype.isnative
        ):
            raise ValueError(f"{name} is no array [N, D] of numbers")
        stored = min(data.id.get_storage_size(), size)
        if data.nbytes > (stored if data.compression is None else stored * _DEFLATE_AT_MOST):
            raise ValueError(f"{name} says it holds {list(data.shape)}, there are only {stored} bytes")
        counts.append(data.shape[0])
    if len(set(counts)) > 1:
        raise ValueError(f"features, coords and index have {', '.join(map(str, counts))} rows")


def _dataset(file: h5py.File, name: str) -> Any:
    if name not in file:
        raise KeyError(name)
    try:
        return file[name]
    except KeyError as error:  # what h5py makes of an object that is there and cannot be opened
        raise OSError(f"{name}: {error.args[0]}") from error


def _array(file: h5py.File, name: str) -> np.ndarray:
    try:
        values: np.ndarray = file[name][()]
    except KeyError as error:  # also what h5py makes of a checksum that does not fit
        raise OSError(f"{name}: {error.args[0]}") from error
    return values


def _create(file: h5py.File, name: str, shape: tuple[int, int], dtype: np.dtype) -> h5py.Dataset:
    if not shape[0]:
        return file.create_dataset(name, shape, dtype)
    rows = max(1, _CHUNK_BYTES // (shape[1] * dtype.itemsize))
    # With a checksum a chunk, so that a damaged file is noticed and not trained on.
    return file.create_dataset(name, shape, dtype, chunks=(min(rows, shape[0]), shape[1]), fletcher32=True)


def _write_attributes(file: h5py.File, values: Mapping[str, Any]) -> None:
    """Attributes of the file; texts are of fixed length."""
    for name, value in values.items():
        if isinstance(value, str):
            raw = value.encode()
            file.attrs.create(name, raw, dtype=h5py.string_dtype("utf-8", max(1, len(raw))))
        else:
            file.attrs[name] = value


def _read_attributes(file: h5py.File) -> dict[str, Any]:
    """Attributes of the file; texts as str."""
    values = {}
    for name in file.attrs:
        kind = file.attrs.get_id(name).get_type()
        if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
            continue  # not ours, and where it is damaged HDF5 can hang on it
        value = file.attrs[name]
        values[name] = value.decode("utf-8") if isinstance(value, bytes) else value
    return values


def _attributes(grid: PatchGrid, provenance: Provenance) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "slide_id": provenance.slide_id,
        "encoder": provenance.encoder,
        "encoder_hash": provenance.encoder_hash,
        "mpp": grid.mpp,
        "slide_mpp": provenance.slide_mpp,
        "mpp_source": provenance.mpp_source,
        "patch_px": grid.patch_px,
        "patch_level0": grid.patch_level0,
        "stride_level0": grid.stride_level0,
        "grid_shape": np.array(grid.shape, np.int32),
        "level0_width": provenance.level0_width,
        "level0_height": provenance.level0_height,
        "tissue": provenance.tissue,
        "wsi2d_version": __version__,
        "complete": False,
    }


def _parse_attributes(attrs: dict[str, Any], shape: tuple[int, int]) -> FeatureHeader:
    text = {name: str(attrs[name]) for name in ("slide_id", "encoder", "encoder_hash", "mpp_source", "tissue")}
    if not isinstance(json.loads(text["tissue"]), dict):
        raise ValueError("tissue is no JSON object")
    provenance = Provenance(
        **text,
        slide_mpp=float(attrs["slide_mpp"]),
        level0_width=int(attrs["level0_width"]),
        level0_height=int(attrs["level0_height"]),
    )
    if not (math.isfinite(provenance.slide_mpp) and provenance.slide_mpp > 0):
        raise ValueError(f"slide_mpp must be > 0, got {provenance.slide_mpp}")
    rows, cols = (int(n) for n in attrs["grid_shape"])
    geometry = GridGeometry(
        shape=(rows, cols),
        patch_px=int(attrs["patch_px"]),
        mpp=float(attrs["mpp"]),
        patch_level0=float(attrs["patch_level0"]),
        stride_level0=float(attrs["stride_level0"]),
    )
    # A grid is as large as its slide: one that says otherwise would be built, cell by cell, for nothing.
    most = (grid_cells(n, geometry.stride_level0) for n in (provenance.level0_height, provenance.level0_width))
    if any(not 0 < n <= at_most for n, at_most in zip((rows, cols), most, strict=True)):
        raise ValueError(f"grid_shape {rows}×{cols} is not that of the slide")
    return FeatureHeader(provenance, geometry, int(shape[0]), int(shape[1]))


def _trident_attributes(grid: PatchGrid, provenance: Provenance) -> dict[str, Any]:
    """The names under which TRIDENT's tools look for the same facts (10 µm/px is 1×)."""
    return {
        "name": provenance.slide_id,
        "patch_size": grid.patch_px,
        "patch_size_level0": grid.patch_level0,
        "level0_magnification": 10.0 / provenance.slide_mpp,
        "target_magnification": 10.0 / grid.mpp,
        "overlap": grid.overlap_px,
        "level0_width": provenance.level0_width,
        "level0_height": provenance.level0_height,
    }
