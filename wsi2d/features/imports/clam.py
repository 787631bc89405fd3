"""CLAM: ``h5_files/<slide>.h5``, a grid that starts anew in each contour of tissue.

``features`` ``[N, D]`` and ``coords`` ``[N, 2]`` in level-0 px, without attributes. How the slide was cut stands in
``patches/<slide>.h5``, as attributes of the same ``coords``: side of a patch at a level, and that level's downsample;
the pitch does not. Encoder and resolution stand nowhere. TRIDENT writes files with these attributes on their own
``coords`` where it was given CLAM's patches. Source: https://github.com/mahmoodlab/CLAM, ``extract_features_fp.py``
and ``wsi_core/WholeSlideImage.py``.
"""

from __future__ import annotations

import h5py
import numpy as np

from wsi2d.features.imports.peer import Attributes, PeerSlide, Source, embeddings, read_coords, width

NAME = "CLAM"
_MARKS = ("patch_level", "downsample")


def recognises(source: Source) -> bool:
    """Whether CLAM wrote the file, or what else is a bare array of embeddings with another of coordinates."""
    file = source.file
    return all(isinstance(file.get(name), h5py.Dataset) for name in ("features", "coords"))


def describe(source: Source) -> PeerSlide:
    """What the file says, and the one with the patches beside it."""
    coords = read_coords(source.file)
    dim = width(embeddings(source.file, "features", len(coords)))
    attributes = Attributes(source.file["coords"])
    if source.patches is not None and not any(mark in attributes for mark in _MARKS):
        _check_same(coords, read_coords(source.patches), source.patches.filename)
        attributes = Attributes(source.patches["coords"])
    patch_px = attributes.number("patch_size", least=1, above=False)
    level = attributes.number("patch_level", above=False)
    downsample = attributes.pair("downsample") or ((1.0, 1.0) if level == 0 else None)
    more = attributes.number("custom_downsample") or 1.0
    side = None if patch_px is None or downsample is None else patch_px * more
    patch = None if side is None or downsample is None else side * downsample[0]
    dims = attributes.pair("level_dim")
    size = None if dims is None or downsample is None else (dims[0] * downsample[0], dims[1] * downsample[1])
    return PeerSlide(
        NAME,
        "features",
        dim,
        coords,
        encoder=Attributes(source.file["features"]).text("encoder"),
        patch_px=None if patch_px is None else round(patch_px),
        patch=patch,
        usual_pitch=None if side is None or downsample is None else side * int(max(1.0, downsample[0])),
        size=None if size is None else (float(round(size[0])), float(round(size[1]))),
    )


def _check_same(coords: np.ndarray, others: np.ndarray, name: str) -> None:
    """Refuse a patches file of another run: its patches would have another size."""
    mine, theirs = (values[np.lexsort(values.T)] for values in (coords, others))
    if not np.array_equal(mine, theirs, equal_nan=True):
        raise ValueError(f"its coordinates are not those of {name}; give the right --patches, or move that file away")
