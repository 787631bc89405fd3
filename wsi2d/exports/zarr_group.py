"""``zarr``: a Zarr group of version 2, which every reader of today opens: zarr-python 2 and 3, xarray, anndata, R."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from wsi2d.errors import ConfigError
from wsi2d.exports.target import ExportOptions, FeatureSource
from wsi2d.features.store import SCHEMA
from wsi2d.files import whole_folder

# zarr writes in threads of its own, which an interrupt does not stop: what they are at ends before all is removed.
_AFTERWARDS_S = 0.3
_CHUNK_BYTES = 2**20  # as in feature files, whose blocks then are chunks here


class ZarrTarget:
    """``<slide_id>.zarr``: the arrays and attributes of the feature file, under their names.

    There is no dense grid: it would be mostly empty and hold nothing new; ``grid[tuple(index.T)] = features`` makes it.

    Raises:
        ConfigError: the package zarr is missing.
    """

    suffix = ".zarr"
    takes: frozenset[str] = frozenset()

    def __init__(self, options: ExportOptions) -> None:
        try:
            import zarr  # noqa: F401
        except ImportError as error:
            raise ConfigError("export to zarr: needs the package zarr; pip install 'wsi2d[zarr]'") from error

    def made_of(self, source: FeatureSource) -> tuple[Path, ...]:
        """See :class:`wsi2d.exports.target.Target`."""
        return (source.path,)

    def is_finished(self, source: FeatureSource, out: Path) -> bool:
        """See :class:`wsi2d.exports.target.Target`."""
        described = json.loads((out / "features" / ".zarray").read_text("utf-8"))
        found = json.loads((out / ".zattrs").read_text("utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError("schema is another")
        shape = [source.header.patches, source.header.dim]
        return bool(found == _attributes(source) and described["shape"] == shape)

    def write(self, source: FeatureSource, out: Path) -> None:
        """See :class:`wsi2d.exports.target.Target`."""
        import zarr
        from zarr.storage import LocalStore

        with whole_folder(out) as partial:
            try:
                store = LocalStore(partial)
                _fill(zarr.create_group(store, zarr_format=2, attributes=_attributes(source)), source)
                zarr.consolidate_metadata(store, zarr_format=2)
            except BaseException:
                time.sleep(_AFTERWARDS_S)
                raise


def _fill(root: Any, source: FeatureSource) -> None:
    header = source.header
    features = _create(root, "features", (header.patches, header.dim), header.dtype, "feature")
    row = 0
    for block in source.blocks():
        features[row : row + len(block)] = block
        row += len(block)
    for name, axis in (("coords", "xy"), ("index", "row_col")):
        values = getattr(source.grid, name)
        array = _create(root, name, values.shape, "int32", axis)
        if len(values):
            array[:] = values


def _create(root: Any, name: str, shape: tuple[int, int], dtype: str, axis: str) -> Any:
    """An array of chunks of whole rows; its attribute gives its axes their names in xarray."""
    from numcodecs import Blosc

    rows = max(1, _CHUNK_BYTES // max(1, shape[1] * np.dtype(dtype).itemsize))
    return root.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(max(1, min(rows, shape[0])), max(1, shape[1])),
        compressors=[Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE)],
        fill_value=None,  # xarray takes what equals a fill value for missing
        config={"write_empty_chunks": True},
        attributes={"_ARRAY_DIMENSIONS": ["patch", axis]},
    )


def _attributes(source: FeatureSource) -> dict[str, Any]:
    return {**source.attributes, "tissue": json.loads(source.attributes["tissue"], parse_constant=str)}
