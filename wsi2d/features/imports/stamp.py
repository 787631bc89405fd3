"""STAMP: ``<extractor>/<slide>.h5``, coordinates in micrometres on one grid, rows in any order.

``feats`` ``[N, D]``, ``coords`` ``[N, 2]``; the file's attributes say the extractor, the unit and the side of a tile
in µm and px. Files of before version 2 have no unit: their coordinates count tiles of 256 µm as 224. Where a tile is
no whole number of pixels, STAMP's tiles are up to a pixel farther apart than the attribute says, which the
coordinates correct. Source: https://github.com/KatherLab/STAMP, ``src/stamp/preprocessing/__init__.py``,
``tiling.py``, ``modeling/data.py``.
"""

from __future__ import annotations

import h5py

from wsi2d.features.imports.peer import Attributes, PeerSlide, Source, embeddings, read_coords, width
from wsi2d.features.imports.pitch import infer_pitch

NAME = "STAMP"
_OLD_TILE_PX, _OLD_TILE_UM = 224, 256.0


def recognises(source: Source) -> bool:
    """Whether STAMP wrote the file."""
    return all(isinstance(source.file.get(name), h5py.Dataset) for name in ("feats", "coords"))


def describe(source: Source) -> PeerSlide:
    """What the file says."""
    attributes = Attributes(source.file)
    coords = read_coords(source.file)
    dim = width(embeddings(source.file, "feats", len(coords)))
    unit = attributes.text("unit")
    if unit not in (None, "um"):
        raise ValueError(f"its coordinates are in '{unit}', and not in um")
    tile_um = attributes.number("tile_size_um")
    tile_px = attributes.number("tile_size_px", least=1, above=False)
    if tile_um is None and unit == "um":
        tile_um = attributes.number("tile_size")
    pitch = tile_um
    if tile_um is None:
        said = attributes.number("tile_size") or infer_pitch(coords, patch=_OLD_TILE_PX).value
        if round(said) != _OLD_TILE_PX:
            raise ValueError(f"it does not say the unit of its coordinates, and its pitch is {said:g}, not 224")
        tile_um, tile_px, coords = _OLD_TILE_UM, _OLD_TILE_PX, coords * (_OLD_TILE_UM / _OLD_TILE_PX)
        pitch = tile_um
    return PeerSlide(
        NAME,
        "feats",
        dim,
        coords,
        version=attributes.text("stamp_version"),
        unit="um",
        encoder=encoder(source),
        patch_px=None if tile_px is None else round(tile_px),
        mpp=None if tile_px is None else tile_um / tile_px,
        patch=tile_um,
        pitch=pitch,
        one_grid=True,
    )


def encoder(source: Source) -> str | None:
    """Whose embeddings the file holds."""
    return Attributes(source.file).text("extractor")
