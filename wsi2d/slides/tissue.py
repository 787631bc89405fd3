"""Tissue from background: Otsu on saturation at low resolution, then morphology in micrometres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi2d.config import TissueConfig
from wsi2d.errors import SlideError
from wsi2d.slides.reader import SlideReader


@dataclass(frozen=True)
class TissueMask:
    """Where a slide has tissue.

    Attributes:
        mask: bool ``[height, width]``, true on tissue.
        downsample: level-0 px per mask px.
        threshold: the saturation (0 to 1) above which a pixel was taken for tissue.
    """

    mask: np.ndarray
    downsample: float
    threshold: float

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_:
            raise SlideError(f"tissue mask: must be bool [height, width], got {self.mask.dtype} {self.mask.shape}")
        if self.downsample < 1:
            raise SlideError(f"tissue mask: downsample must be at least 1, got {self.downsample}")

    def coverage(self, coords: np.ndarray, size_level0: float) -> np.ndarray:
        """Share of tissue in squares, weighted by area to fractions of a mask pixel; outside the slide is none.

        Args:
            coords: ``[N, 2]`` level-0 (x, y) of top-left corners, px.
            size_level0: side of the squares, level-0 px.

        Returns:
            float64 ``[N]``, 0 to 1.
        """
        height, width = self.mask.shape
        integral = np.zeros((height + 1, width + 1))
        integral[1:, 1:] = self.mask.cumsum(0).cumsum(1)
        left, top = np.asarray(coords, np.float64).T / self.downsample
        side = size_level0 / self.downsample
        right, bottom = left + side, top + side
        area = (
            _bilinear(integral, bottom, right) - _bilinear(integral, top, right)
            - _bilinear(integral, bottom, left) + _bilinear(integral, top, left)
        )  # fmt: skip
        return np.clip(area / side**2, 0.0, 1.0)


def segment_tissue(reader: SlideReader, config: TissueConfig | None = None) -> TissueMask:
    """Tissue mask of a slide.

    Saturation of the overview is smoothed and cut by Otsu's threshold, held within the configured bounds (a blank
    slide has no two classes to tell apart, and tissue that fills the picture has no background); gaps are closed,
    small holes filled, small pieces dropped.

    Source: N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979).

    Raises:
        SlideError: the slide cannot be read.
    """
    from skimage import filters, morphology, segmentation

    config = config or TissueConfig()
    slide = reader.slide
    downsample = max(1.0, config.mpp / slide.mpp)
    mask_mpp = downsample * slide.mpp
    saturation = filters.gaussian(
        _saturation(reader.read_overview(downsample), config.min_value), config.smooth_um / mask_mpp
    )
    threshold = saturation_threshold(saturation, config)
    mask = saturation > threshold
    # A closing never takes away; scikit-image's clears a corner of a mask that is true everywhere.
    mask |= morphology.isotropic_closing(mask, config.close_um / mask_mpp)
    holes = ~mask & morphology.remove_small_holes(mask, max_size=int(config.min_hole_um2 / mask_mpp**2))
    mask |= segmentation.clear_border(holes)  # glass that reaches the slide's edge is no hole, however small
    mask = morphology.remove_small_objects(mask, max_size=int(config.min_piece_um2 / mask_mpp**2))
    return TissueMask(mask, downsample, threshold)


def saturation_threshold(saturation: np.ndarray, config: TissueConfig) -> float:
    """Otsu's threshold on saturation (0 to 1), held within ``min_saturation`` and ``max_saturation``."""
    from skimage import filters

    if np.ptp(saturation) == 0:
        return float(np.clip(float(saturation.flat[0]), config.min_saturation, config.max_saturation))
    return float(np.clip(float(filters.threshold_otsu(saturation)), config.min_saturation, config.max_saturation))


def _saturation(rgb: np.ndarray, min_value: float) -> np.ndarray:
    """HSV saturation ``[height, width]``, 0 to 1; zero where a pixel is too dark for it to mean anything."""
    highest = rgb.max(-1).astype(np.float32)
    lowest = rgb.min(-1).astype(np.float32)
    saturation = (highest - lowest) / np.maximum(highest, 1.0)
    saturation[highest < min_value * 255] = 0.0
    return saturation


def _bilinear(table: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Values of a table between its nodes, held at its border."""
    rows, cols = np.clip(rows, 0, table.shape[0] - 1), np.clip(cols, 0, table.shape[1] - 1)
    r = np.minimum(rows.astype(np.int64), table.shape[0] - 2)
    c = np.minimum(cols.astype(np.int64), table.shape[1] - 2)
    fr, fc = rows - r, cols - c
    return (
        table[r, c] * (1 - fr) * (1 - fc) + table[r, c + 1] * (1 - fr) * fc
        + table[r + 1, c] * fr * (1 - fc) + table[r + 1, c + 1] * fr * fc
    )  # fmt: skip
