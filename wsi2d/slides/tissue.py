"""Tissue from glass, ink and edges: Otsu on saturation at low resolution, then morphology in micrometres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi2d.config import TissueConfig
from wsi2d.errors import SlideError
from wsi2d.slides.reader import SlideReader

# What glass looks like: even, bright, nearly grey. Levels are 0 to 1.
_GLASS_VALUE = 0.6
_GLASS_SATURATION = 0.16
_GLASS_UNEVEN = 0.03  # largest difference of luminance between neighbours
_GLASS_SHARE = 0.002  # of the slide that must look like glass to be believed
_GLASS_NEAR = 0.04  # colours that are one glass

_INK_DENSITY = 0.12  # of red, green and blue together
_INK_GRAIN = 0.045  # how much even ink varies from px to px, in shares of its density
_INK_EVEN_SHARE = 0.2  # of a stroke; its edges are not even
_INK_RIM_UM = 32.0  # a marker's edge is too faint to be recognised
_INK_NEXT_UM = 64.0  # what lies next to a stroke is judged over this distance


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
    rgb = reader.read_overview(downsample).astype(np.float32) / 255
    dark = rgb.max(-1) < config.min_value
    glass = glass_colour(rgb, dark) if config.glass == "auto" else np.array(config.glass.split(","), np.float32) / 255
    balanced = np.minimum(rgb / glass, 1.0)
    balanced[dark] = 1.0
    sharp = _saturation(balanced)
    saturation = filters.gaussian(sharp, smooth_px)
    threshold = saturation_threshold(saturation, config)
    low = min(config.grow_saturation, threshold)
    mask = filters.apply_hysteresis_threshold(saturation, low, threshold)
    mask &= (saturation > threshold) | (sharp > low)  # smoothing spreads strong tissue over its edge
    # A closing never takes away; scikit-image's clears a corner of a mask that is true everywhere.
    mask |= morphology.isotropic_closing(mask, config.close_um / mask_mpp)
    holes = ~mask & morphology.remove_small_holes(mask, max_size=int(config.min_hole_um2 / mask_mpp**2))
    mask |= segmentation.clear_border(holes)  # glass that reaches the slide's edge is no hole, however small
    if config.ink == "drop":
        mask &= ~ink_on_glass(balanced, mask, smooth_px=smooth_px, mask_mpp=mask_mpp)
    mask = morphology.remove_small_objects(mask, max_size=int(config.min_piece_um2 / mask_mpp**2))
    return TissueMask(mask, downsample, threshold)


def saturation_threshold(saturation: np.ndarray, config: TissueConfig) -> float:
    """Otsu's threshold on saturation (0 to 1), held within ``min_saturation`` and ``max_saturation``."""
    from skimage import filters

    if np.ptp(saturation) == 0:
        return float(np.clip(float(saturation.flat[0]), config.min_saturation, config.max_saturation))
    return float(np.clip(float(filters.threshold_otsu(saturation)), config.min_saturation, config.max_saturation))


def glass_colour(rgb: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """Colour of the empty slide: the brightest common one among even, bright and nearly grey places; white where there
    are none.

    Args:
        rgb: float ``[height, width, 3]``, 0 to 1.
        dark: bool ``[height, width]``, what was not scanned.

    Returns:
        float32 ``[3]``, 0 to 1.
    """
    from scipy import ndimage

    highest, lowest = rgb.max(-1), rgb.min(-1)
    luminance = rgb.mean(-1)
    uneven = ndimage.maximum_filter(luminance, 3) - ndimage.minimum_filter(luminance, 3)
    candidate = ~dark & (uneven < _GLASS_UNEVEN) & (highest > _GLASS_VALUE)
    candidate &= highest - lowest < _GLASS_SATURATION * highest
    filler = lowest == 1  # what a scanner left out is pure white
    if (candidate & ~filler).sum() >= _GLASS_SHARE * rgb[..., 0].size:
        candidate &= ~filler
    elif candidate.sum() < _GLASS_SHARE * rgb[..., 0].size:
        return np.ones(3, np.float32)
    colours = rgb[candidate]
    bins, counts = np.unique((colours * 31).astype(np.int64) @ [1024, 32, 1], return_counts=True)
    common = bins[counts >= 0.1 * counts.max()]
    brightest = np.array(max(common, key=lambda c: c // 1024 + c // 32 % 32 + c % 32))
    centre = (np.stack([brightest // 1024, brightest // 32 % 32, brightest % 32]) + 0.5) / 31
    near = np.abs(colours - centre).max(-1) < _GLASS_NEAR
    return np.asarray(np.median(colours[near], 0), np.float32)


def ink_on_glass(balanced: np.ndarray, mask: np.ndarray, *, smooth_px: float, mask_mpp: float) -> np.ndarray:
    """Marker ink that lies on glass, told by the light it absorbs, with the faint rim around it.

    Ink over tissue cannot be told from what is below it, and blood, pigment or a blue stain within tissue can look like
    ink: what looks like it counts only where most of what is next to it is not tissue.

    Source of the stains' densities: A. Ruifrok and D. Johnston, "Quantification of histochemical staining by color
    deconvolution", Anal. Quant. Cytol. Histol. 23 (2001).

    Args:
        balanced: float ``[height, width, 3]``, 0 to 1, glass is 1.
        mask: bool ``[height, width]``, tissue and ink.
        smooth_px: sigma of the Gaussian that takes the noise out of colours, px.
        mask_mpp: µm per px.

    Returns:
        bool ``[height, width]``.
    """
    from scipy import ndimage
    from skimage import filters, morphology

    ink = _looks_like_ink(balanced, smooth_px)
    if not ink.any():
        return ink
    ink = morphology.isotropic_dilation(ink, _INK_RIM_UM / mask_mpp)
    if ink.all():
        return np.zeros_like(ink)
    sigma = _INK_NEXT_UM / mask_mpp
    beside = filters.gaussian((~ink).astype(np.float32), sigma)
    tissue = filters.gaussian((mask & ~ink).astype(np.float32), sigma) / np.maximum(beside, 1e-6)
    rows, cols = ndimage.distance_transform_edt(ink, return_distances=False, return_indices=True)
    return np.asarray(ink & (tissue[rows, cols] < 0.5))


def _looks_like_ink(balanced: np.ndarray, smooth_px: float) -> np.ndarray:
    """Blue, green, red and black markers: by the shares of red, green and blue in the optical density, and by being
    even, which stained cells and fibres are not.

    Haematoxylin has shares .40 .43 .18, eosin .06 .84 .09, DAB .18 .34 .48; what is in a slide's tissue is a mixture.
    """
    from scipy import ndimage
    from skimage import filters, measure

    total = -np.log10(np.maximum(balanced, 1 / 255)).sum(-1)
    grain = ndimage.uniform_filter(np.abs(total - ndimage.uniform_filter(total, 3)), 5)
    even = grain < _INK_GRAIN * ndimage.uniform_filter(total, 5)
    density = -np.log10(np.maximum(filters.gaussian(balanced, smooth_px, channel_axis=-1), 1 / 255))
    total = density.sum(-1)
    red, green, blue = np.moveaxis(density / np.maximum(total, 1e-6)[..., None], -1, 0)
    blue_ink = (red > 0.45) & (green > 0.28) & (blue < 0.22)
    green_ink = (red > 0.40) & (green < 0.28)
    red_ink = (red < 0.12) & (blue > 0.36) & (blue < 0.47)
    black_ink = (np.abs(red - 1 / 3) < 0.05) & (np.abs(blue - 1 / 3) < 0.05)
    found = np.zeros(total.shape, bool)
    for colour in (blue_ink, green_ink, red_ink, black_ink):
        strokes = np.asarray(measure.label(colour & (total > _INK_DENSITY), connectivity=2))
        size = np.bincount(strokes.ravel())
        even_share = np.bincount(strokes.ravel(), weights=even.ravel()) / np.maximum(size, 1)
        even_share[0] = 0.0  # what is no stroke
        found |= (even_share >= _INK_EVEN_SHARE)[strokes]
    return found


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
