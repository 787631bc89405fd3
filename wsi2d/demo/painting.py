"""Slides painted from a real immunohistochemistry picture: tissue with an outline, and patches of two kinds.

The picture (colon, haematoxylin and DAB) ships inside scikit-image. Colour deconvolution takes its DAB away for the
common kind of patch; the rarer kind is cut from where the DAB is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CELL_PX = 128  # side of a patch at MPP
MPP = 0.5
_TILE_PX = 256
_LEVELS = 3
_JPEG_QUALITY = 85
_DAB_LEFT = 0.12  # share of its DAB that the common kind keeps
_LEAST_HAEMATOXYLIN = 0.02
_HAEMATOXYLIN_GAIN = 2.0
_DAB_RICH = 0.75  # windows in the upper quarter of DAB are what the rarer kind is cut from


@dataclass(frozen=True)
class Layout:
    """What a slide shows, on its grid of patches.

    Attributes:
        tissue: bool ``[height, width]`` at MPP, the tissue's outline.
        positive: bool ``[rows, cols]``, cells of the rarer kind, all wholly inside the tissue.
    """

    tissue: NDArray[np.bool_]
    positive: NDArray[np.bool_]


class Painter:
    """Paints layouts with real texture; built once for a cohort.

    Patches are put together at the slide's own resolution, so that no pixel of one bleeds into its neighbour: what
    lies beside a patch must not be told by the patch.
    """

    def __init__(self) -> None:
        from skimage import color, data

        stains = color.rgb2hed(data.immunohistochemistry()).astype(np.float32)
        # Lumina are pale to the point of background; which patches count as tissue must not depend on their contents.
        stains[..., 0] = _HAEMATOXYLIN_GAIN * np.maximum(stains[..., 0], _LEAST_HAEMATOXYLIN)
        dab = stains[..., 2]
        corners = [(y, x) for y in range(0, 512 - CELL_PX + 1, 16) for x in range(0, 512 - CELL_PX + 1, 16)]
        amount = np.array([dab[y : y + CELL_PX, x : x + CELL_PX].mean() for y, x in corners])
        self._rich = [c for c, a in zip(corners, amount, strict=True) if a >= np.quantile(amount, _DAB_RICH)]
        self._stains = {scale: _enlarged(stains, scale) for scale in (1, 2)}

    def paint(self, layout: Layout, generator: np.random.Generator, *, scale: int = 1) -> NDArray[np.uint8]:
        """A slide: uint8 ``[scale * height, scale * width, 3]``, white around the tissue; stains vary by slide.

        Args:
            layout: what to paint.
            generator: of texture and stain strength.
            scale: 1 for a slide at MPP, 2 for one at half of it (twice the magnification).
        """
        from skimage import color

        gain = generator.normal(1.0, 0.06, 3).clip(0.88, 1.12).astype(np.float32)
        kinds = (gain, gain * np.array([1, 1, _DAB_LEFT], np.float32))
        positive, common = (
            np.rint(255 * np.clip(color.hed2rgb(self._stains[scale] * kind), 0, 1)).astype(np.uint8) for kind in kinds
        )
        height, width = (scale * n for n in layout.tissue.shape)
        cell = scale * CELL_PX
        background = generator.integers(242, 247)
        canvas = _mirror_tiled(common, height, width, generator)
        for row, col in np.argwhere(layout.positive):
            y, x = (scale * n for n in self._rich[generator.integers(len(self._rich))])
            patch = np.rot90(positive[y : y + cell, x : x + cell], int(generator.integers(4)))
            canvas[row * cell : (row + 1) * cell, col * cell : (col + 1) * cell] = patch[:: generator.choice((-1, 1))]
        canvas[~layout.tissue.repeat(scale, 0).repeat(scale, 1)] = background
        return canvas


def write_slide(picture: NDArray[np.uint8], path: Path, *, mpp: float) -> None:
    """Write a pyramidal, tiled JPEG TIFF that OpenSlide opens, with its pixel size in the resolution tags.

    Args:
        picture: uint8 ``[height, width, 3]`` of level 0.
        path: the file.
        mpp: size of a level-0 pixel, µm.
    """
    import tifffile

    partial = path.with_name(f".{path.name}.partial")
    with tifffile.TiffWriter(partial) as file:
        for level in range(_LEVELS):
            per_cm = 10_000 / (mpp * 2**level)
            file.write(
                picture,
                tile=(_TILE_PX, _TILE_PX),
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                # No chroma subsampling: decoders smooth what they upsample, and a patch would get its neighbour's
                # colour.
                subsampling=(1, 1),
                photometric="rgb",
                metadata=None,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                software="wsi2d demo",
            )
            picture = _halved(picture)
    os.replace(partial, path)


def _enlarged(stains: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    from skimage import transform

    height, width = stains.shape[:2]
    return stains if scale == 1 else transform.resize(stains, (scale * height, scale * width), order=3, mode="reflect")


def _halved(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of blocks of two by two; an odd last row or column is left out, as scanners do."""
    from PIL import Image

    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    return np.asarray(Image.fromarray(picture[:height, :width]).reduce(2))


def _mirror_tiled(
    texture: NDArray[np.uint8], height: int, width: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """A picture repeated with mirroring, so that no seam shows, from a random place in it."""
    size = len(texture)
    wave = np.concatenate([np.arange(size), np.arange(size)[::-1]])
    rows = wave[(np.arange(height) + generator.integers(2 * size)) % (2 * size)]
    cols = wave[(np.arange(width) + generator.integers(2 * size)) % (2 * size)]
    return texture[np.ix_(rows, cols)]
