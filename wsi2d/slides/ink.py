"""Marker ink on a slide, told from tissue by the light it absorbs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wsi2d.slides.bands import bands

_DENSITY = 0.12  # of red, green and blue together
_GRAIN = 0.045  # how much even ink varies from px to px, in shares of its density
_EVEN_SHARE = 0.2  # of a stroke; its edges are not even
_RIM_UM = 32.0  # a marker's edge is too faint to be recognised
_NEXT_UM = 64.0  # what lies next to a stroke is judged over this distance

Balanced = Callable[[slice], np.ndarray]


def ink_on_glass(balanced: Balanced, mask: np.ndarray, *, smooth_px: float, mask_mpp: float) -> np.ndarray:
    """Marker ink that lies on glass, told by the light it absorbs, with the faint rim around it.

    Ink over tissue cannot be told from what is below it, and blood, pigment or a blue stain within tissue can look like
    ink: what looks like it counts only where most of what is next to it is not tissue.

    Source of the stains' densities: A. Ruifrok and D. Johnston, "Quantification of histochemical staining by color
    deconvolution", Anal. Quant. Cytol. Histol. 23 (2001).

    Args:
        balanced: some rows of the picture, float ``[rows, width, 3]``, 0 to 1, glass is 1.
        mask: bool ``[height, width]``, tissue and ink.
        smooth_px: sigma of the Gaussian that takes the noise out of colours, px.
        mask_mpp: µm per px.

    Returns:
        bool ``[height, width]``.
    """
    from scipy import ndimage
    from skimage import filters, morphology

    ink = _looks_like_ink(balanced, mask.shape, smooth_px)
    if not ink.any():
        return ink
    ink = morphology.isotropic_dilation(ink, _RIM_UM / mask_mpp)
    if ink.all():
        return np.zeros_like(ink)
    sigma = _NEXT_UM / mask_mpp
    beside = filters.gaussian((~ink).astype(np.float32), sigma)
    tissue = filters.gaussian((mask & ~ink).astype(np.float32), sigma) / np.maximum(beside, 1e-6)
    rows, cols = ndimage.distance_transform_edt(ink, return_distances=False, return_indices=True)
    return np.asarray(ink & (tissue[rows, cols] < 0.5))


def _looks_like_ink(balanced: Balanced, shape: tuple[int, ...], smooth_px: float) -> np.ndarray:
    """Blue, green, red and black markers: by the shares of red, green and blue in the optical density, and by being
    even, which stained cells and fibres are not.

    Haematoxylin has shares .40 .43 .18, eosin .06 .84 .09, DAB .18 .34 .48; what is in a slide's tissue is a mixture.
    """
    from skimage import measure

    colour, even = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    around = max(4, int(4 * smooth_px + 0.5))  # what the filters reach
    for band in bands(shape, around):
        part = balanced(band.wide)
        colour[band.own] = _marker(part, smooth_px)[band.inner]
        even[band.own] = _even(part)[band.inner]
    found = np.zeros(shape, bool)
    for one in np.unique(colour[colour > 0]):
        strokes = np.asarray(measure.label(colour == one, connectivity=2))
        size = np.bincount(strokes[strokes > 0])
        even_share = np.bincount(strokes[even & (strokes > 0)], minlength=len(size)) / np.maximum(size, 1)
        found |= (even_share >= _EVEN_SHARE)[strokes]
    return found


def _even(balanced: np.ndarray) -> np.ndarray:
    """Bool ``[rows, width]``: where density varies little from pixel to pixel."""
    from scipy import ndimage

    total = -np.log10(np.maximum(balanced, 1 / 255)).sum(-1)
    grain = ndimage.uniform_filter(np.abs(total - ndimage.uniform_filter(total, 3)), 5)
    return np.asarray(grain < _GRAIN * ndimage.uniform_filter(total, 5))


def _marker(balanced: np.ndarray, smooth_px: float) -> np.ndarray:
    """uint8 ``[rows, width]``: 1 to 4 where the colour is that of a blue, green, red or black marker, else 0."""
    from skimage import filters

    density = -np.log10(np.maximum(filters.gaussian(balanced, smooth_px, channel_axis=-1), 1 / 255))
    total = density.sum(-1)
    red, green, blue = np.moveaxis(density / np.maximum(total, 1e-6)[..., None], -1, 0)
    markers = (
        (red > 0.45) & (green > 0.28) & (blue < 0.22),
        (red > 0.40) & (green < 0.28),
        (red < 0.12) & (blue > 0.36) & (blue < 0.47),
        (np.abs(red - 1 / 3) < 0.05) & (np.abs(blue - 1 / 3) < 0.05),
    )
    return np.where(total > _DENSITY, np.select(markers, range(1, 5)), 0).astype(np.uint8)
