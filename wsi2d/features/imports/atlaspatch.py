"""AtlasPatch: ``patches/<slide>.h5`` with the embeddings of any number of encoders, ``features/<encoder>`` ``[N, D]``.

``coords`` ``[N, 5]`` holds x, y (level-0 px), and width, height and level of what was read; the file's attributes are
TRIDENT's. The grid starts anew in each piece of tissue. Source: https://github.com/AtlasAnalyticsLab/AtlasPatch,
``atlas_patch/services/storage.py`` and ``extraction.py``.
"""

from __future__ import annotations

import h5py

from wsi2d.features.imports.magnifications import patch_attributes
from wsi2d.features.imports.peer import Attributes, PeerSlide, Source, choose, embeddings, read_coords, width

NAME = "AtlasPatch"
_UNFINISHED = "__tmp_"


def recognises(source: Source) -> bool:
    """Whether AtlasPatch wrote the file."""
    file = source.file
    if not isinstance(file.get("coords"), h5py.Dataset):
        return False
    return isinstance(file.get("features"), h5py.Group) or ("features" not in file and "passports" in file)


def encoders(file: h5py.File) -> list[str]:
    """Whose embeddings a file holds."""
    group = file.get("features")
    return [name for name in group if not name.startswith(_UNFINISHED)] if group is not None else []


def describe(source: Source) -> PeerSlide:
    """What the file says."""
    encoder = choose(source.encoder, encoders(source.file), source.path)
    coords = read_coords(source.file)
    features = f"features/{encoder}"
    dim = width(embeddings(source.file, features, len(coords)))
    attributes = Attributes(source.file)
    if "patch_size" not in attributes:
        attributes = Attributes(source.file["coords"])
    return PeerSlide(NAME, features, dim, coords, encoder=encoder, **patch_attributes(attributes))
