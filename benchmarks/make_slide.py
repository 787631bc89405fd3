"""Builds a slide of any size from real pixels, to measure on.

    python benchmarks/make_slide.py OUT.tiff [--side 30000] [--pixels FILE] [--mpp 0.5] [--glass 0.25] [--seed 0]

A pyramidal, tiled JPEG TIFF (256 px, quality 80, YCbCr 4:2:0, levels to 1/32) that OpenSlide opens. It is a mosaic of
cells of 512 px cut from ``--pixels``, a picture or a slide, turned and mirrored at random; by default they are the
immunohistochemistry picture that ships in scikit-image. Tissue is an ellipse in the middle, with glass around it. Tiles
are made while they are written, so that memory does not grow with the slide.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from wsi2d.config import PatchConfig
from wsi2d.errors import Wsi2dError
from wsi2d.files import whole_file
from wsi2d.slides.patching import make_patch_grid
from wsi2d.slides.reader import open_slide
from wsi2d.slides.tissue import segment_tissue

CELL_PX = 512
TILE_PX = 256
LEVELS = 6  # to 1/32
QUALITY = 80
MOST_CELLS = 64
GLASS = 244


def cells_of(pixels: Path | None) -> np.ndarray:
    """Cells of tissue, uint8 ``[n, 512, 512, 3]``, from a file or from scikit-image's picture."""
    if pixels is None:
        from skimage import data

        return data.immunohistochemistry()[None, :CELL_PX, :CELL_PX]
    with open_slide(pixels, mpp=1.0) as reader:
        slide = reader.slide
        if min(slide.width, slide.height) < CELL_PX:
            raise SystemExit(f"{pixels}: {slide.width}×{slide.height} px; at least {CELL_PX}×{CELL_PX} are needed")
        grid = make_patch_grid(slide, segment_tissue(reader), PatchConfig(patch_px=CELL_PX, mpp=1.0, min_tissue=0.5))
        inside = (grid.coords + CELL_PX <= (slide.width, slide.height)).all(1)
        corners = grid.coords[inside] if inside.any() else np.zeros((1, 2), int)
        chosen = corners[np.linspace(0, len(corners) - 1, min(len(corners), MOST_CELLS)).round().astype(int)]
        return np.stack([reader.read_patch(int(x), int(y), size_level0=CELL_PX, patch_px=CELL_PX) for x, y in chosen])


class Mosaic:
    """A slide that is not there: its tiles, on any level.

    Args:
        cells: uint8 ``[n, 512, 512, 3]``.
        side: of level 0, px.
        glass: share of the slide that is glass.
        seed: of the arrangement.
    """

    def __init__(self, cells: np.ndarray, side: int, glass: float, seed: int) -> None:
        self.side = side
        turned = [np.rot90(cell, k)[:, ::flip] for cell in cells for k in range(4) for flip in (1, -1)]
        pictures = [Image.fromarray(np.ascontiguousarray(t)) for t in turned]
        self._cells = [[np.asarray(p.reduce(2**level)) for p in pictures] for level in range(LEVELS)]
        count = -(-side // CELL_PX)
        self._which = np.random.default_rng(seed).integers(0, len(pictures), (count, count))
        y, x = (np.mgrid[:count, :count] + 0.5) * (2 * CELL_PX / side) - 1
        self._which[x * x + y * y > 4 * (1 - glass) / np.pi] = -1

    def shape(self, level: int) -> tuple[int, int, int]:
        """Height, width and channels of a level."""
        return (-(-self.side // 2**level),) * 2 + (3,)

    def tiles(self, level: int) -> Iterator[np.ndarray]:
        """The tiles of a level in raster order, uint8 ``[256, 256, 3]``."""
        across = -(-self.shape(level)[1] // TILE_PX)
        for row in range(across):
            for col in range(across):
                yield self._tile(level, row * TILE_PX, col * TILE_PX)

    def _tile(self, level: int, top: int, left: int) -> np.ndarray:
        tile = np.full((TILE_PX, TILE_PX, 3), GLASS, np.uint8)
        cell_px = CELL_PX >> level
        step = min(cell_px, TILE_PX)
        for y in range(0, TILE_PX, step):
            for x in range(0, TILE_PX, step):
                row, col = (top + y) // cell_px, (left + x) // cell_px
                if row < len(self._which) and col < len(self._which) and self._which[row, col] >= 0:
                    cell = self._cells[level][self._which[row, col]]
                    v, u = (top + y) % cell_px, (left + x) % cell_px
                    tile[y : y + step, x : x + step] = cell[v : v + step, u : u + step]
        return tile


def make_slide(
    out: Path, *, side: int = 30_000, pixels: Path | None = None, mpp: float = 0.5, glass: float = 0.25, seed: int = 0
) -> Path:
    """Write the slide; complete or absent."""
    mosaic = Mosaic(cells_of(pixels), side, glass, seed)
    with whole_file(out) as partial, tifffile.TiffWriter(partial, bigtiff=True) as file:
        for level in range(LEVELS):
            file.write(
                mosaic.tiles(level),
                shape=mosaic.shape(level),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",  # stored as YCbCr
                subsampling=(2, 2),
                compression="jpeg",
                compressionargs={"level": QUALITY},
                subfiletype=int(level > 0),
                resolution=(1e4 / (mpp * 2**level),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return out


def main() -> None:
    """Write a slide as the command line asks for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=30_000, help="px of level 0")
    parser.add_argument("--pixels", type=Path, help="a picture or a slide of at least 512 × 512 px")
    parser.add_argument("--mpp", type=float, default=0.5, help="size of a level-0 pixel, µm")
    parser.add_argument("--glass", type=float, default=0.25, help="share of the slide without tissue")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.side < CELL_PX or not 0 <= options.glass < 1 or not options.mpp > 0:
        raise SystemExit(f"--side must be at least {CELL_PX}, --glass from 0 to below 1, --mpp above 0")
    start = time.perf_counter()
    try:
        make_slide(**vars(options))
    except Wsi2dError as error:
        raise SystemExit(str(error)) from error
    size = options.out.stat().st_size / 1e6
    print(f"{options.out}: {options.side}×{options.side} px, {size:.0f} MB, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
