"""The colour of a slide's glass, and its picture as it would be on white glass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi2d.slides.bands import bands

# What glass looks like: even, bright, nearly grey. Levels are 0 to 1.
_VALUE = 0.6
_SATURATION = 0.16
_UNEVEN = 0.03  # largest difference of luminance between neighbours
_SHARE = 0.002  # of the slide that must look like glass to be believed
_NEAR = 0.04  # colours that are one glass

_LEVELS = np.arange(256, dtype=np.float32) / 255
_SHADES = (_LEVELS * 31).astype(np.int64)  # of which colours are made that are counted


@dataclass(frozen=True)
class Overview:
    """A slide at low resolution.

    Attributes:
        rgb: uint8 ``[height, width, 3]``.
        glass: float32 ``[3]``, the colour of the empty slide, 0 to 1.
        min_value: what is darker, 0 to 1, was not scanned.
    """

    rgb: np.ndarray
    glass: np.ndarray
    min_value: float

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.rgb.shape[0], self.rgb.shape[1]

    def balanced(self, rows: slice) -> np.ndarray:
        """Some rows divided by the colour of the glass, so that glass is white, as is what was not scanned.

        Returns:
            float32 ``[rows, width, 3]``, 0 to 1.
        """
        rgb = self.rgb[rows].astype(np.float32) / 255
        light: np.ndarray = np.minimum(rgb / self.glass, 1.0)
        light[rgb.max(-1) < self.min_value] = 1.0
        return light


def glass_colour(rgb: np.ndarray, min_value: float) -> np.ndarray:
    """Colour of the empty slide: the brightest common one among even, bright and nearly grey places; white where there
    are none.

    Args:
        rgb: uint8 ``[height, width, 3]``.
        min_value: what is darker, 0 to 1, was not scanned.

    Returns:
        float32 ``[3]``, 0 to 1.
    """
    candidate, filled = _candidates(rgb, min_value), 0
    for band in bands(candidate.shape):
        filled += int((candidate[band.own] & _filler(rgb[band.own])).sum())
    found, enough = int(candidate.sum()), _SHARE * candidate.size
    if found < enough:
        return np.ones(3, np.float32)
    if found - filled >= enough:
        for band in bands(candidate.shape):
            candidate[band.own] &= ~_filler(rgb[band.own])
    counts = np.zeros(32**3, np.int64)
    for band in bands(candidate.shape):
        counts += np.bincount(_SHADES[rgb[band.own][candidate[band.own]]] @ [1024, 32, 1], minlength=counts.size)
    common = np.flatnonzero(counts >= max(1, 0.1 * counts.max()))
    brightest = np.array(max(common, key=lambda c: c // 1024 + c // 32 % 32 + c % 32))
    centre = (np.stack([brightest // 1024, brightest // 32 % 32, brightest % 32]) + 0.5) / 31
    near = np.abs(_LEVELS[:, None] - centre) < _NEAR  # [256, 3]
    levels = np.zeros((3, 256), np.int64)
    for band in bands(candidate.shape):
        colours = rgb[band.own][candidate[band.own]]
        colours = colours[near[colours, range(3)].all(-1)]
        levels += [np.bincount(channel, minlength=256) for channel in colours.T]
    return np.array([_median(channel) for channel in levels], np.float32)


def _candidates(rgb: np.ndarray, min_value: float) -> np.ndarray:
    """Bool ``[height, width]``: what looks like glass."""
    from scipy import ndimage

    candidate = np.zeros(rgb.shape[:2], bool)
    for band in bands(candidate.shape, around=1):
        part = rgb[band.wide].astype(np.float32) / 255
        highest, luminance = part.max(-1), part.mean(-1)
        uneven = ndimage.maximum_filter(luminance, 3) - ndimage.minimum_filter(luminance, 3)
        here = (highest >= min_value) & (highest > _VALUE) & (uneven < _UNEVEN)
        here &= highest - part.min(-1) < _SATURATION * highest
        candidate[band.own] = here[band.inner]
    return candidate


def _filler(rgb: np.ndarray) -> np.ndarray:
    """Pure white: what a scanner left out."""
    return np.asarray(rgb.min(-1) == 255)


def _median(counts: np.ndarray) -> float:
    """Median of levels 0 to 255, given how often there is each, as 0 to 1."""
    at = counts.cumsum()
    lower, upper = np.searchsorted(at, [(at[-1] + 1) // 2, at[-1] // 2 + 1])
    return float((_LEVELS[lower] + _LEVELS[upper]) / 2)
