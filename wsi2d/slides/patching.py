"""A slide and its tissue become a grid of patches on one global origin."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace

import numpy as np

from wsi2d.config import PatchConfig
from wsi2d.errors import SlideError
from wsi2d.slides.reader import Slide
from wsi2d.slides.tissue import TissueMask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GridGeometry:
    """How a slide is cut.

    Attributes:
        shape: rows and columns of the grid over the whole slide.
        patch_px: side of a patch as the encoder sees it, px; None where unknown, as it can be for imported features.
        mpp: resolution of a patch, µm/px; None where unknown.
        patch_level0, stride_level0: side and pitch in level-0 px; fractional where ``mpp`` does not divide evenly.
        origin: level-0 (x, y) of the first cell's corner, px; not (0, 0) only for imported features.
    """

    shape: tuple[int, int]
    patch_px: int | None
    mpp: float | None
    patch_level0: float
    stride_level0: float
    origin: tuple[float, float] = field(default=(0.0, 0.0), kw_only=True)

    def __post_init__(self) -> None:
        for name in ("patch_px", "mpp", "patch_level0", "stride_level0"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SlideError(f"patch grid: {name} must be > 0, got {value}")
        if not all(math.isfinite(start) for start in self.origin):
            raise SlideError(f"patch grid: origin must be finite, got {self.origin}")

    @property
    def overlap_px(self) -> int | None:
        """Overlap of neighbouring patches, px as the encoder sees them; None where the side of a patch is unknown."""
        return None if self.patch_px is None else round(self.patch_px * (1 - self.stride_level0 / self.patch_level0))


@dataclass(frozen=True)
class PatchGrid(GridGeometry):
    """Patches with tissue, by place.

    Attributes:
        coords: int32 ``[N, 2]``, level-0 (x, y) of the top-left corners, ``round(index[:, ::-1] * stride_level0)``;
            of imported features those of their tool, up to a pitch from there.
        index: int32 ``[N, 2]``, (row, col) on the slide's grid, in raster order, no cell twice.
    """

    coords: np.ndarray
    index: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.index.ndim != 2 or self.index.shape[1] != 2 or self.coords.shape != self.index.shape:
            raise SlideError(
                f"patch grid: index and coords must be [N, 2], got {self.index.shape} and {self.coords.shape}"
            )
        if self.index.dtype.kind not in "iu" or self.coords.dtype.kind not in "iu":
            raise SlideError(
                f"patch grid: index and coords must be integers, got {self.index.dtype} and {self.coords.dtype}"
            )
        n = len(self.index)
        if n and ((self.index < 0).any() or (self.index >= np.array(self.shape)).any()):
            raise SlideError(f"patch grid: an index lies outside the grid of {self.shape[0]}×{self.shape[1]}")
        if len(np.unique(self.index, axis=0)) != n:
            raise SlideError("patch grid: a cell occurs twice")

    def __len__(self) -> int:
        return len(self.index)

    def scaled(self, factor: float) -> PatchGrid:
        """The same cells where level-0 pixels are that many times as small."""
        x, y = self.origin
        return replace(
            self,
            coords=np.rint(self.coords * factor).astype(np.int32),
            patch_level0=self.patch_level0 * factor,
            stride_level0=self.stride_level0 * factor,
            origin=(x * factor, y * factor),
        )


def make_patch_grid(slide: Slide, tissue: TissueMask, config: PatchConfig | None = None) -> PatchGrid:
    """The cells of the slide's grid whose share of tissue is at least ``min_tissue`` (and above none).

    The grid starts in the slide's top-left corner whatever the tissue, so that two runs, two people or two tools with
    one patch size choose among the same cells. The last row and column may reach over the edge.
    """
    config = config or PatchConfig()
    scale = config.mpp / slide.mpp
    if scale < 0.9:
        logger.warning(
            "slide '%s': scanned at %.3g µm/px, coarser than the target of %.3g; patches are enlarged %.2g times",
            slide.slide_id, slide.mpp, config.mpp, 1 / scale,
        )  # fmt: skip
    patch_level0 = config.patch_px * scale
    stride_level0 = (config.patch_px - config.overlap_px) * scale
    shape = (grid_cells(slide.height, stride_level0), grid_cells(slide.width, stride_level0))
    index = np.indices(shape).reshape(2, -1).T.astype(np.int32)
    coords = cell_coords(index, stride_level0)
    share = tissue.coverage(coords, patch_level0)
    chosen = (share >= config.min_tissue) & (share > 0)
    return PatchGrid(
        shape, config.patch_px, config.mpp, patch_level0, stride_level0, coords[chosen], index[chosen]
    )  # fmt: skip


def cell_coords(index: np.ndarray, stride_level0: float, origin: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Level-0 (x, y) of cells: int32 ``[N, 2]`` from (row, col) ``[N, 2]``."""
    coords: np.ndarray = np.rint(np.asarray(index)[:, ::-1] * stride_level0 + np.array(origin)).astype(np.int32)
    return coords


def grid_cells(length: int, stride_level0: float) -> int:
    """Cells whose origin lies on a slide of that length, level-0 px; a remainder of a millionth of a cell is rounding.

    Raises:
        SlideError: there is no such grid.
    """
    if not (math.isfinite(stride_level0) and stride_level0 > 0 and length > 0):
        raise SlideError(f"patch grid: no cells of {stride_level0} px on a slide of {length} px")
    return max(1, math.ceil(length / stride_level0 - 1e-6))
