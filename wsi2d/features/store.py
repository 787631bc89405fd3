"""Feature files: one HDF5 a slide, complete or absent (the format is described in ``docs/formats.md``)."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from wsi2d.errors import FeatureStoreError, ForeignFileError, SlideError, TakenOverError
from wsi2d.features.hdf5 import (
    CHUNK_BYTES,
    LAYOUT,
    check_bytes,
    create,
    find,
    read_array,
    read_attributes,
    write_attributes,
)
from wsi2d.features.hdf5_output import Sink, Uninterrupted
from wsi2d.features.records import SCHEMA as SCHEMA
from wsi2d.features.records import FeatureBag as FeatureBag
from wsi2d.features.records import FeatureHeader as FeatureHeader
from wsi2d.features.records import Imported as Imported
from wsi2d.features.records import Provenance as Provenance
from wsi2d.features.records import parse_header, to_attributes, trident_attributes
from wsi2d.files import partial_path, remove, unwritable
from wsi2d.slides.patching import PatchGrid, cell_coords

_CHECKSUM_BYTES = 4  # of each chunk
_DATASETS = ("features", "coords", "index")


def feature_path(folder: Path, slide_id: str) -> Path:
    """Where a slide's features lie."""
    return folder / f"{slide_id}.h5"


class FeatureWriter:
    """Writes a feature file batch by batch; it appears under its name only when complete.

    Use as a context manager and call :meth:`append` until all ``len(grid)`` rows are there. Rows are written beside
    the caller's work.

    Args:
        path: where it appears. There must be no half-written file of that name: what a killed run left is removed by
            whoever holds the lock.
        grid, provenance: what it says beside the embeddings.
        dim, dtype: of an embedding.
        check: called right before the file appears; it does not where this raises.

    Raises:
        StorageError: the disk does not take it.
        TakenOverError: another run has begun the same file, now or before this one was done. Its half is left alone.
    """

    def __init__(
        self,
        path: Path,
        grid: PatchGrid,
        provenance: Provenance,
        *,
        dim: int,
        dtype: str,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._path, self._check = path, check
        self._rows, self._shape = 0, (len(grid), dim)
        stored = np.dtype(dtype)
        self._output, self._thread = _Output(path), Uninterrupted()
        try:
            self._wait_for(self._output.begin, grid, provenance, dim, stored)
        except BaseException:
            self._give_up()
            raise

    def append(self, features: np.ndarray) -> None:
        """Add the next rows, ``[n, D]``; they must not change until the rows after them are added.

        Raises:
            FeatureStoreError: the rows are of another width or too many.
            StorageError: the disk does not take them, or did not take those before.
        """
        rows, dim = self._shape
        if features.ndim != 2 or features.shape[1] != dim or self._rows + len(features) > rows:
            raise FeatureStoreError(
                f"{self._path}: the next rows must be [n, {dim}] with n at most {rows - self._rows}, "
                f"got {list(features.shape)}"
            )
        self._wait_for(self._output.check_disk)  # and for the rows before
        self._thread.begin(self._output.write, self._rows, features)
        self._rows += len(features)

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                return
            self._wait_for(self._output.check_disk)
            if self._rows != self._shape[0]:
                raise FeatureStoreError(f"{self._path}: {self._rows} of {self._shape[0]} rows were written")
            self._wait_for(self._output.finish)
            self._check()
            self._wait_for(self._output.publish)
        finally:
            self._give_up()

    def _wait_for(self, step: Callable[..., None], *arguments: Any) -> None:
        self._thread.begin(step, *arguments)
        try:
            self._thread.finish()
        except (OSError, RuntimeError) as error:
            raise unwritable(self._path, error) from error

    def _give_up(self) -> None:
        """Close what is open, and remove what has not become the feature file."""
        self._thread.begin(self._output.close)
        self._thread.begin(self._output.remove)
        try:
            with suppress(OSError, RuntimeError):  # the first of them has been told
                self._thread.finish()
        finally:
            self._thread.end()


def _lay_out(file: h5py.File, grid: PatchGrid, provenance: Provenance, dim: int, dtype: np.dtype) -> h5py.Dataset:
    """All of a feature file but the embeddings; returns their dataset."""
    features = create(file, "features", (len(grid), dim), dtype)
    create(file, "coords", (len(grid), 2), np.dtype(np.int32))[:] = grid.coords
    create(file, "index", (len(grid), 2), np.dtype(np.int32))[:] = grid.index
    write_attributes(file, to_attributes(grid, provenance))
    file["coords"].attrs.update(trident_attributes(grid, provenance))
    return features


def file_bytes(grid: PatchGrid, provenance: Provenance, *, dim: int, dtype: str) -> int:
    """Size of the feature file of a grid, bytes. It is laid out in memory with two chunks of embeddings; the others are
    as large as those."""
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver=LAYOUT) as file:
        features = _lay_out(file, grid, provenance, dim, np.dtype(dtype))
        rows = int(features.chunks[0]) if features.chunks else len(grid)
        chunks = -(-len(grid) // rows) if len(grid) else 0
        for start in {0, (chunks - 1) * rows} if chunks else ():
            features[start : start + 1] = 0
        file.attrs["complete"] = True
        chunk_bytes = rows * dim * np.dtype(dtype).itemsize + _CHECKSUM_BYTES
    return memory.getbuffer().nbytes + max(0, chunks - 2) * chunk_bytes


class _Output:
    """An HDF5 file that is being written. Its descriptor is open to the end, so that nobody else's file can pass for
    it: two runs may write one after the other under the same name, where the first was suspended."""

    def __init__(self, path: Path) -> None:
        self._path, self._partial = path, partial_path(path)
        self._sink: Sink | None = None
        self._file: h5py.File | None = None
        self._features: h5py.Dataset | None = None

    def begin(self, grid: PatchGrid, provenance: Provenance, dim: int, dtype: np.dtype) -> None:
        """All but the embeddings."""
        try:
            self._sink = Sink(self._partial)
        except FileExistsError as error:
            raise TakenOverError(f"{self._path}: another run is writing it; wait until that has ended") from error
        self._file = file = h5py.File(self._sink, "w", libver=LAYOUT)
        self._features = _lay_out(file, grid, provenance, dim, dtype)
        self.check_disk()

    def write(self, start: int, features: np.ndarray) -> None:
        """Rows from ``start`` on."""
        assert self._features is not None
        self._features[start : start + len(features)] = features

    def finish(self) -> None:
        """Mark the file as complete, and see it all on the disk."""
        assert self._file is not None
        assert self._sink is not None
        self._file.attrs["complete"] = True
        self.close()
        self._sink.sync()
        self.check_disk()

    def publish(self) -> None:
        """Give the file its name."""
        assert self._sink is not None
        if not self._sink.is_at(self._partial):
            raise TakenOverError(f"{self._path}: another run took it over; run the same command again")
        os.replace(self._partial, self._path)

    def close(self) -> None:
        """Let HDF5 go."""
        file, self._file, self._features = self._file, None, None
        if file:
            file.close()

    def remove(self) -> None:
        """Remove the file if it has not got its name and is still this one."""
        sink, self._sink = self._sink, None
        if sink is None:
            return
        try:
            with suppress(OSError):  # the storage does not answer; what is left is removed by the next run
                if sink.is_at(self._partial):
                    remove(self._partial)
        finally:
            with suppress(OSError):  # its content has been seen on the disk, or is not wanted
                sink.close()

    def check_disk(self) -> None:
        """Raise what the disk said."""
        if self._sink and self._sink.error is not None:
            raise self._sink.error


def read_features(path: Path | str) -> FeatureBag:
    """Read a feature file.

    Raises:
        FeatureStoreError: the file is missing, damaged, incomplete or not ours.
    """
    path = Path(path)
    with _reading(path) as (file, attributes):
        _check_datasets(file)
        header = parse_header(attributes, file["features"])
        features, coords, index = (read_array(find(file, name)) for name in _DATASETS)
    with _telling(path):
        return FeatureBag(features, _grid(header, coords, index), header.provenance)


def read_header(path: Path) -> FeatureHeader:
    """What a feature file says of itself; its arrays are checked by their shapes and not read.

    Raises:
        FeatureStoreError: as :func:`read_features`.
    """
    with _reading(path) as (file, attributes):
        _check_datasets(file)
        return parse_header(attributes, file["features"])


def file_attributes(path: Path) -> dict[str, Any]:
    """All attributes of a feature file, as ``docs/formats.md`` names them and JSON has them; None for NaN.

    Raises:
        FeatureStoreError: as :func:`read_features`.
    """
    with _reading(path) as (_, attributes):
        return {name: _as_json(value) for name, value in attributes.items()}


def read_grid(path: Path) -> PatchGrid:
    """A feature file's patches by place; its features are not read.

    Raises:
        FeatureStoreError: as :func:`read_features`.
    """
    with _reading(path) as (file, attributes):
        _check_datasets(file)
        header = parse_header(attributes, file["features"])
        coords, index = read_array(find(file, "coords")), read_array(find(file, "index"))
    with _telling(path):
        return _grid(header, coords, index)


def read_blocks(path: Path) -> Iterator[np.ndarray]:
    """A feature file's features in order, ``[n, D]`` at a time, so that memory does not grow with the slide.

    Raises:
        FeatureStoreError: as :func:`read_features`; also while it goes on.
    """
    with _reading(path) as (file, _):
        _check_datasets(file)
        data = file["features"]
        if data.dtype not in (np.float16, np.float32):
            raise ValueError(f"features are {data.dtype}, not float16 or float32")
        chunk = data.chunks[0] if data.chunks else 1
        step = chunk * max(1, CHUNK_BYTES // max(1, chunk * data.shape[1] * data.dtype.itemsize))
        for start in range(0, len(data), step):
            yield read_array(data, slice(start, start + step))


@contextmanager
def _reading(path: Path) -> Iterator[tuple[h5py.File, dict[str, Any]]]:
    """An open feature file, ours and complete, and its attributes; whatever HDF5 raises on damage becomes one line."""
    with _open(path) as file:
        try:
            attributes = read_attributes(file)
            found = attributes.get("schema")
            if found != SCHEMA:
                raise (ForeignFileError if found is None else FeatureStoreError)(
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


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """What is wrong with a file's content, told of the file."""
    try:
        yield
    except (FeatureStoreError, SlideError) as error:
        raise FeatureStoreError(f"{path}: {error}; delete it and extract again") from error


def _grid(header: FeatureHeader, coords: np.ndarray, index: np.ndarray) -> PatchGrid:
    g = header.geometry
    grid = PatchGrid(g.shape, g.patch_px, g.mpp, g.patch_level0, g.stride_level0, coords, index, origin=g.origin)
    off = np.abs(coords - cell_coords(index, g.stride_level0, g.origin).astype(np.int64)).max(initial=0)
    if off > (0 if header.provenance.imported is None else g.stride_level0 + 1):
        raise FeatureStoreError("coords are not those of its index")
    return grid


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
    for name in _DATASETS:
        data = find(file, name)
        if (
            not isinstance(data, h5py.Dataset)
            or data.ndim != 2
            or data.dtype.kind not in "fiu"
            or not data.dtype.isnative
        ):
            raise ValueError(f"{name} is no array [N, D] of numbers")
        check_bytes(data)
        counts.append(data.shape[0])
    if len(set(counts)) > 1:
        raise ValueError(f"features, coords and index have {', '.join(map(str, counts))} rows")


def _as_json(value: Any) -> Any:
    """An attribute as JSON has it; what it has nothing for, as text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_as_json(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | bool | int | float | None) else str(value)
