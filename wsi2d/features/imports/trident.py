"""TRIDENT: ``<mag>x_<px>px_<overlap>px_overlap/features_<encoder>/<slide>.h5``, one grid over the whole slide.

``features`` ``[N, D]``, ``coords`` ``[N, 2]`` in level-0 px, whose attributes say how the slide was cut; an empty
slide has arrays of shape ``(0, D)`` or ``(0,)``. The encoder is an attribute of ``features`` in newer versions, and
in all of them in the folder's name. Source: https://github.com/mahmoodlab/TRIDENT, ``trident/IO.py`` and
``wsi_objects/WSIPatcher.py``.
"""

from __future__ import annotations

import h5py

from wsi2d.features.imports.magnifications import patch_attributes
from wsi2d.features.imports.peer import Attributes, PeerSlide, Source, embeddings, read_coords, width

NAME = "TRIDENT"
FOLDER = "features_"
_MARK = "patch_size_level0"


def recognises(source: Source) -> bool:
    """Whether TRIDENT wrote the file."""
    file = source.file
    if not all(isinstance(file.get(name), h5py.Dataset) for name in ("features", "coords")):
        return False
    return _MARK in file["coords"].attrs or (source.patches is not None and _MARK in source.patches["coords"].attrs)


def describe(source: Source) -> PeerSlide:
    """What the file says."""
    coords = read_coords(source.file)
    features = embeddings(source.file, "features", len(coords))
    attributes = Attributes(source.file["coords"])
    if _MARK not in attributes and source.patches is not None:
        attributes = Attributes(source.patches["coords"])
    said = patch_attributes(attributes)
    return PeerSlide(NAME, "features", width(features), coords, encoder=encoder(source), one_grid=True, **said)


def encoder(source: Source) -> str | None:
    """Whose embeddings the file holds."""
    folder = source.path.parent.name
    named = folder.removeprefix(FOLDER) if folder.startswith(FOLDER) else ""
    return Attributes(source.file["features"]).text("encoder") or named or None
