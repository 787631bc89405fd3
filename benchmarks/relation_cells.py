"""Cells of real texture for the relations: windows of a stained picture, embedded with the library's own encoder."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from relations import BACKGROUND, DISTRACTOR, FIRST, SECOND, Kinds
from skimage import color, data

from wsi2d.features.histology_stats import HistologyStats

Side = Literal["train", "test"]

WINDOW_PX = 48  # the least that the encoder takes
_STRIDE_PX = 8
_BLOCK_PX = 128
_UNSTAINED, _WEAK, _STRONG = 0.04, (0.045, 0.07), 0.085  # mean DAB of a window, as rgb2hed has it
_PALE, _DENSE = 0.018, 0.021  # mean haematoxylin of an unstained one


class Mosaic:
    """Windows of scikit-image's immunohistochemistry picture (colon; haematoxylin and DAB), by how they are stained.

    Background is without DAB and pale, the first kind of mark strong in DAB, the second without DAB and dense in
    nuclei; distractors are weak in DAB. A window's kind comes from its mean stains, what a model sees is its embedding.
    Encoding a mosaic of windows patch by patch gives the same, as every window fills a patch.

    Args:
        side: the picture is a chessboard of 4×4 blocks; ``train`` cuts from one colour of it, ``test`` from the other,
            so no pixel is in both.
        stride_px: from one window to the next.

    Attributes:
        corners: int64 ``[windows, 2]``, row and column of each window's top left pixel.
        kinds: uint8 ``[windows]``, rising.
        embeddings: float32 ``[windows, dim]``.
    """

    def __init__(self, side: Side, *, stride_px: int = _STRIDE_PX) -> None:
        self.picture: NDArray[np.uint8] = data.immunohistochemistry()
        corners, kinds = _windows(self.picture, side, stride_px)
        order = np.argsort(kinds, kind="stable")
        self.corners, self.kinds = corners[order], kinds[order]
        encoder = HistologyStats()
        self.dim = encoder.dim
        self.embeddings: NDArray[np.float32] = encoder.encode(torch.from_numpy(self.windows())).numpy()
        self._counts = np.bincount(self.kinds, minlength=DISTRACTOR + 1)
        self._first = self._counts.cumsum() - self._counts

    def windows(self) -> NDArray[np.uint8]:
        """The pixels, uint8 ``[windows, 48, 48, 3]``."""
        return np.stack([self.picture[y : y + WINDOW_PX, x : x + WINDOW_PX] for y, x in self.corners])

    def draw(self, kinds: Kinds, generator: np.random.Generator) -> NDArray[np.float32]:
        """Embeddings ``[..., dim]`` of windows of the kinds ``[...]``, each drawn anew."""
        within = (generator.random(kinds.shape) * self._counts[kinds]).astype(np.int64)
        drawn: NDArray[np.float32] = self.embeddings[self._first[kinds] + within]
        return drawn


def _windows(picture: NDArray[np.uint8], side: Side, stride_px: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Corners of a side's windows, and their kinds; windows between two kinds are left out."""
    within = np.arange(0, _BLOCK_PX - WINDOW_PX + 1, stride_px)
    corners = np.array(
        [
            (top + y, left + x)
            for top in range(0, picture.shape[0], _BLOCK_PX) for left in range(0, picture.shape[1], _BLOCK_PX)
            for y in within for x in within
            if (top + left) // _BLOCK_PX % 2 == (side == "test")
        ]
    )  # fmt: skip
    stains = color.rgb2hed(picture)
    means = np.array([stains[y : y + WINDOW_PX, x : x + WINDOW_PX].mean((0, 1)) for y, x in corners])
    haematoxylin, dab = means[:, 0], means[:, 2]
    chosen = np.full(len(corners), DISTRACTOR + 1, np.uint8)
    chosen[(dab < _UNSTAINED) & (haematoxylin < _PALE)] = BACKGROUND
    chosen[dab > _STRONG] = FIRST
    chosen[(dab < _UNSTAINED) & (haematoxylin > _DENSE)] = SECOND
    chosen[(dab > _WEAK[0]) & (dab < _WEAK[1])] = DISTRACTOR
    taken = chosen <= DISTRACTOR
    return corners[taken], chosen[taken]
