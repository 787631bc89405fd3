"""Feature files by hand, and damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsi2d.features.store import FeatureWriter, Provenance
from wsi2d.slides.patching import PatchGrid, cell_coords

CELL = 64
MPP = 0.5
TISSUE = '{"close_um": 32.0, "min_tissue": 0.25, "threshold": 0.1}'


def write_features(
    path: Path,
    index: object = ((0, 0), (0, 1), (2, 1)),
    features: np.ndarray | None = None,
    *,
    shape: tuple[int, int] = (3, 4),
    size: tuple[int, int] | None = None,
    patch_px: int = CELL,
    stride_level0: float = CELL,
    slide_mpp: float = MPP,
    dim: int = 5,
    dtype: str = "float32",
    encoder: str = "by hand",
    slide_id: str | None = None,
    tissue: str = TISSUE,
) -> Path:
    """A feature file of those cells, (row, col); the features are random where none are given.

    ``size`` is that of the slide, (width, height) in level-0 px; the grid's if not given.
    """
    cells = np.asarray(index, np.int32).reshape(-1, 2)
    width, height = size or tuple(int(n * stride_level0) for n in shape[::-1])
    patch_level0 = patch_px * MPP / slide_mpp
    grid = PatchGrid(shape, patch_px, MPP, patch_level0, stride_level0, cell_coords(cells, stride_level0), cells)
    if features is None:
        features = np.random.default_rng(len(cells)).normal(size=(len(cells), dim))
    made = Provenance(slide_id or path.stem, encoder, "0f1e2d", slide_mpp, "header", width, height, tissue)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FeatureWriter(path, grid, made, dim=features.shape[1], dtype=dtype) as writer:
        writer.append(features.astype(dtype))
    return path


def damage(path: Path) -> Path:
    """Change a byte in the middle of the features, which a checksum is to notice."""
    import h5py

    with h5py.File(path) as file:
        place = file["features"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 3] ^= 0xFF
    path.write_bytes(bytes(content))
    return path
