"""Tissue from glass, ink and edges: Otsu on saturation at low resolution, then morphology in micrometres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi2d.config import TissueConfig
from wsi2d.errors import SlideError
from wsi2d.slides.bands import bands
from wsi2d.slides.glass import Overview, glass_colour
from wsi2d.slides.ink import ink_on_glass
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
        integral = np.zeros((height + 1, width + 1), np.int32)
        np.cumsum(self.mask, 0, out=integral[1:, 1:])
        np.cumsum(integral, 1, out=integral)
        left, top = np.asarray(coords, np.float64).T / self.downsample
        side = size_level0 / self.downsample
        right, bottom = left + side, top + side
        area = (
            _bilinear(integral, bottom, right) - _bilinear(integral, top, right)
            - _bilinear(integral, bottom, left) + _bilinear(integral, top, left)
        )  # fmt: skip
        share: np.ndarray = np.clip(area / side**2, 0.0, 1.0)
        return share


def segment_tissue(reader: SlideReader, config: TissueConfig | None = None) -> TissueMask:
    """Tissue mask of a slide.

    The overview is divided by the colour of its glass, so that yellowish or grey glass becomes white; what is darker
    than ``min_value`` (an unscanned area, the slide's edge) has no saturation. Saturation is smoothed and cut by Otsu's
    threshold, held within the configured bounds (a blank slide has no two classes to tell apart, and tissue that fills
    the picture has no background), and what was found goes on into paler tissue that touches it. Gaps are closed, small
    holes filled, marker ink that lies on glass dropped, and small pieces too.

    Source: N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979).

    Raises:
        SlideError: the slide cannot be read.
    """
    from skimage import filters, morphology, segmentation

    config = config or TissueConfig()
    slide = reader.slide
    downsample = max(1.0, config.mpp / slide.mpp)
    mask_mpp = downsample * slide.mpp
    smooth_px = config.smooth_um / mask_mpp
    picture = _overview(reader, downsample, config)
    sharp = np.empty(picture.shape, np.float32)
    for band in bands(picture.shape):
        sharp[band.own] = _saturation(picture.balanced(band.own))
    saturation = filters.gaussian(sharp, smooth_px)
    threshold = saturation_threshold(saturation, config)
    low = min(config.grow_saturation, threshold)
    mask = _touching(saturation > low, saturation > threshold)
    mask &= (saturation > threshold) | (sharp > low)  # smoothing spreads strong tissue over its edge
    del saturation, sharp
    mask = _closed(mask, config.close_um / mask_mpp)
    holes = ~mask & morphology.remove_small_holes(mask, max_size=int(config.min_hole_um2 / mask_mpp**2))
    mask |= segmentation.clear_border(holes)  # glass that reaches the slide's edge is no hole, however small
    if config.ink == "drop":
        mask &= ~ink_on_glass(picture.balanced, mask, smooth_px=smooth_px, mask_mpp=mask_mpp)
    mask = morphology.remove_small_objects(mask, max_size=int(config.min_piece_um2 / mask_mpp**2))
    return TissueMask(mask, downsample, threshold)


def _overview(reader: SlideReader, downsample: float, config: TissueConfig) -> Overview:
    rgb = reader.read_overview(downsample)
    if config.glass == "auto":
        glass = glass_colour(rgb, config.min_value)
    else:
        glass = np.array(config.glass.split(","), np.float32) / 255
    return Overview(rgb, glass, config.min_value)


def _touching(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Connected pieces of ``low`` that hold a pixel of ``high``: hysteresis, in a fifth of scikit-image's memory."""
    from scipy import ndimage

    pieces, count = ndimage.label(low)
    holds = np.zeros(count + 1, bool)
    for band in bands(low.shape):
        holds[pieces[band.own][high[band.own]]] = True
    holds[0] = False
    return np.asarray(holds[pieces])


def _closed(mask: np.ndarray, radius: float) -> np.ndarray:
    """The mask with gaps of up to twice the radius (px) closed; a closing never takes away."""
    from scipy import ndimage

    closed = mask.copy()
    for band in bands(mask.shape, around=2 * int(radius) + 2):
        part = mask[band.wide]
        if not part.any() or part.all():  # nothing to close; and a distance to nothing would be no distance
            continue
        grown = ndimage.distance_transform_edt(~part) <= radius
        kept = grown.all() or ndimage.distance_transform_edt(grown) > radius
        closed[band.own] |= np.broadcast_to(kept, part.shape)[band.inner]
    return closed


def saturation_threshold(saturation: np.ndarray, config: TissueConfig) -> float:
    """Otsu's threshold on saturation (0 to 1), held within ``min_saturation`` and ``max_saturation``."""
    from skimage import filters

    if np.ptp(saturation) == 0:
        return float(np.clip(float(saturation.flat[0]), config.min_saturation, config.max_saturation))
    return float(np.clip(float(filters.threshold_otsu(saturation)), config.min_saturation, config.max_saturation))


def _saturation(rgb: np.ndarray) -> np.ndarray:
    """HSV saturation ``[height, width]``, 0 to 1, of ``[height, width, 3]``."""
    highest, lowest = rgb.max(-1), rgb.min(-1)
    return np.asarray((highest - lowest) / np.maximum(highest, 1 / 255))


def _bilinear(table: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Values of a table between its nodes, held at its border."""
    rows, cols = np.clip(rows, 0, table.shape[0] - 1), np.clip(cols, 0, table.shape[1] - 1)
    r = np.minimum(rows.astype(np.int64), table.shape[0] - 2)
    c = np.minimum(cols.astype(np.int64), table.shape[1] - 2)
    fr, fc = rows - r, cols - c
    values: np.ndarray = (
        table[r, c] * (1 - fr) * (1 - fc) + table[r, c + 1] * (1 - fr) * fc
        + table[r + 1, c] * fr * (1 - fc) + table[r + 1, c + 1] * fr * fc
    )  # fmt: skip
    return values
