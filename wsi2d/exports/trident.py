"""``trident``: feature files as TRIDENT writes them, for its slide encoders, which take whole numbers alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wsi2d.errors import FeatureStoreError
from wsi2d.exports.target import ExportOptions, FeatureSource, in_pixels
from wsi2d.files import whole_file

_CHUNK_BYTES = 2**20
_MARK, _OURS = "schema", "wsi2d-trident/1"  # TRIDENT's own files have no attributes of the file


class TridentTarget:
    """``<slide_id>.h5``: ``features`` ``[N, D]``, ``coords`` int64 ``[N, 2]`` level-0 (x, y), attributes on both.

    Our own files have its names too, and its readers open them; but TITAN, as TRIDENT calls it, adds up coordinates in
    int64 and lays its grid with a whole patch size.
    """

    suffix = ".h5"
    takes: frozenset[str] = frozenset()

    def __init__(self, options: ExportOptions) -> None:
        pass

    def made_of(self, source: FeatureSource) -> tuple[Path, ...]:
        """See :class:`wsi2d.exports.target.Target`."""
        return (source.path,)

    def is_finished(self, source: FeatureSource, out: Path) -> bool:
        """See :class:`wsi2d.exports.target.Target`."""
        header = source.header
        with h5py.File(out, "r") as file:
            if file.attrs[_MARK] != _OURS:
                raise ValueError(f"{_MARK} is another")
            features = file["features"]
            return bool(
                features.shape == (header.patches, header.dim)
                and features.dtype == header.dtype
                and dict(features.attrs) == _features_attributes(source, out)
                and dict(file["coords"].attrs) == _coords_attributes(source, out)
            )

    def write(self, source: FeatureSource, out: Path) -> None:
        """See :class:`wsi2d.exports.target.Target`."""
        # In memory, and by HDF5 alone: an interrupt, or a full disk, while it writes through Python or to a disk could
        # crash the process.
        with h5py.File("export", "w", driver="core", backing_store=False) as file:
            _write(file, source, out)
            file.flush()
            whole = file.id.get_file_image()
        with whole_file(out) as partial:
            partial.write_bytes(whole)


def _write(file: h5py.File, source: FeatureSource, out: Path) -> None:
    header = source.header
    features = _create(file, "features", (header.patches, header.dim), np.dtype(header.dtype))
    row = 0
    for block in source.blocks():
        features[row : row + len(block)] = block
        row += len(block)
    coords = _create(file, "coords", (header.patches, 2), np.dtype(np.int64))
    coords[:] = source.grid.coords
    file.attrs[_MARK] = _OURS
    features.attrs.update(_features_attributes(source, out))
    coords.attrs.update(_coords_attributes(source, out))


def _create(file: h5py.File, name: str, shape: tuple[int, int], dtype: np.dtype) -> h5py.Dataset:
    rows = max(1, min(_CHUNK_BYTES // max(1, shape[1] * dtype.itemsize), shape[0]))
    return file.create_dataset(name, shape, dtype, chunks=(rows, max(1, shape[1])), maxshape=(None, shape[1]))


def _features_attributes(source: FeatureSource, out: Path) -> dict[str, Any]:
    return {
        "encoder": source.header.provenance.encoder or "None",
        "name": source.slide_id,
        "savetodir": str(out.parent),
    }


def _coords_attributes(source: FeatureSource, out: Path) -> dict[str, Any]:
    """Magnifications by 10 µm/px for 1×; whole where they are. The patch's side at level 0 is cut off, as TRIDENT does:
    the pitch is never shorter, so no two patches fall into one cell."""
    made, grid = source.header.provenance, source.header.geometry
    in_pixels(source)
    if made.slide_mpp is None or grid.mpp is None or grid.patch_px is None:
        raise FeatureStoreError(
            f"{source.path}: does not say at which magnification its patches were cut; import it again with --mpp and "
            "--patch-px"
        )
    return {
        "level0_height": made.level0_height,
        "level0_magnification": _whole(10.0 / made.slide_mpp),
        "level0_width": made.level0_width,
        "name": source.slide_id,
        "overlap": grid.overlap_px,
        "patch_size": grid.patch_px,
        "patch_size_level0": max(1, math.floor(grid.patch_level0 + 1e-6)),
        "savetodir": str(out.parent),
        "target_magnification": _whole(10.0 / grid.mpp),
    }


def _whole(number: float) -> float | int:
    nearest = round(number)
    return nearest if abs(number - nearest) < 1e-9 * number else number
