"""Feature files: one HDF5 a slide, complete or absent (the format is described in ``docs/formats.md``)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from wsi2d import __version__
from wsi2d.errors import FeatureStoreError, SlideError
from wsi2d.slides.patching import PatchGrid

SCHEMA = "wsi2d/1"
_CHUNK_BYTES = 2**20


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


def partial_path(path: Path) -> Path:
    """The name under which a feature file is written before it is complete."""
    return path.with_name(f".{path.name}.partial")


class FeatureWriter:
    """Writes a feature file batch by batch; it appears under its name only when complete.

    Use as a context manager and call :meth:`append` until all ``len(grid)`` rows are there.
    """

    def __init__(self, path: Path, grid: PatchGrid, provenance: Provenance, *, dim: int, dtype: str) -> None:
        self._path, self._partial = path, partial_path(path)
        self._rows = 0
        stored = np.dtype(dtype)
        try:
            self._file = h5py.File(self._partial, "w")
            self._features = _create(self._file, "features", (len(grid), dim), stored)
            _create(self._file, "coords", (len(grid), 2), np.dtype(np.int32))[:] = grid.coords
            _create(self._file, "index", (len(grid), 2), np.dtype(np.int32))[:] = grid.index
            self._file.attrs.update(_attributes(grid, provenance))
            self._file["coords"].attrs.update(_trident_attributes(grid, provenance))
        except OSError as error:
            self._partial.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def append(self, features: np.ndarray) -> None:
        """Add the next rows, ``[n, D]``.

        Raises:
            FeatureStoreError: the rows are of another width or too many, or the disk does not take them.
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
            raise self._unwritable(error) from error
        self._rows += len(features)

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._rows != len(self._features):
                raise FeatureStoreError(f"{self._path}: {self._rows} of {len(self._features)} rows were written")
            if error is None:
                self._file.attrs["complete"] = True
                self._file.flush()
            self._file.close()
            if error is None:
                _sync(self._partial)
                os.replace(self._partial, self._path)
        except (OSError, RuntimeError) as failure:
            if error is None:
                raise self._unwritable(failure) from failure
        finally:
            self._partial.unlink(missing_ok=True)

    def _unwritable(self, error: BaseException) -> FeatureStoreError:
        return FeatureStoreError(f"{self._path}: cannot be written ({_one_line(error)}); check the folder and the disk")


def read_features(path: Path | str) -> FeatureBag:
    """Read a feature file.

    Raises:
        FeatureStoreError: the file is missing, damaged, incomplete or not ours.
    """
    path = Path(path)
    with _reading(path) as file:
        features, coords, index = (_array(file, name) for name in ("features", "coords", "index"))
        provenance, geometry = _parse_attributes(dict(file.attrs))
    try:
        return FeatureBag(features, PatchGrid(coords, index, **geometry), provenance)
    except (FeatureStoreError, SlideError) as error:
        raise FeatureStoreError(f"{path}: {error}; delete it and extract again") from error


def read_header(path: Path) -> tuple[Provenance, dict[str, Any]]:
    """Provenance and grid geometry (``shape``, ``patch_px``, ``mpp``, ``patch_level0``, ``stride_level0``) alone.

    Raises:
        FeatureStoreError: as :func:`read_features`.
    """
    with _reading(path) as file:
        return _parse_attributes(dict(file.attrs))


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """An open feature file, ours and complete; whatever HDF5 raises on damage becomes one line."""
    with _open(path) as file:
        try:
            if file.attrs.get("schema") != SCHEMA:
                found = file.attrs.get("schema")
                raise FeatureStoreError(f"{path}: schema is {found!r}, not '{SCHEMA}'; it is no wsi2d feature file")
            if not file.attrs.get("complete", False):
                raise FeatureStoreError(f"{path}: incomplete; extract the slide again")
            yield file
        except KeyError as error:
            raise FeatureStoreError(
                f"{path}: has no {error.args[0]}; it is no wsi2d feature file, extract again"
            ) from error
        except (OSError, RuntimeError, TypeError, ValueError) as error:
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


def _array(file: h5py.File, name: str) -> np.ndarray:
    if name not in file:
        raise KeyError(name)
    try:
        return file[name][()]
    except KeyError as error:  # what h5py makes of an object that is there and cannot be opened
        raise OSError(f"{name}: {error.args[0]}") from error


def _create(file: h5py.File, name: str, shape: tuple[int, int], dtype: np.dtype) -> h5py.Dataset:
    rows = max(1, _CHUNK_BYTES // (shape[1] * dtype.itemsize))
    chunks = (min(rows, shape[0]), shape[1]) if shape[0] else None
    return file.create_dataset(name, shape, dtype, chunks=chunks)


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


def _parse_attributes(attrs: dict[str, Any]) -> tuple[Provenance, dict[str, Any]]:
    text = {name: str(attrs[name]) for name in ("slide_id", "encoder", "encoder_hash", "mpp_source", "tissue")}
    json.loads(text["tissue"])
    provenance = Provenance(
        **text,
        slide_mpp=float(attrs["slide_mpp"]),
        level0_width=int(attrs["level0_width"]),
        level0_height=int(attrs["level0_height"]),
    )
    rows, cols = (int(n) for n in attrs["grid_shape"])
    geometry = {
        "shape": (rows, cols),
        "patch_px": int(attrs["patch_px"]),
        "mpp": float(attrs["mpp"]),
        "patch_level0": float(attrs["patch_level0"]),
        "stride_level0": float(attrs["stride_level0"]),
    }
    return provenance, geometry


def _trident_attributes(grid: PatchGrid, provenance: Provenance) -> dict[str, Any]:
    """The names under which TRIDENT's tools look for the same facts (10 µm/px is 1×)."""
    overlap = round((grid.patch_level0 - grid.stride_level0) * grid.patch_px / grid.patch_level0)
    return {
        "name": provenance.slide_id,
        "patch_size": grid.patch_px,
        "patch_size_level0": grid.patch_level0,
        "level0_magnification": 10.0 / provenance.slide_mpp,
        "target_magnification": 10.0 / grid.mpp,
        "overlap": overlap,
        "level0_width": provenance.level0_width,
        "level0_height": provenance.level0_height,
    }


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
