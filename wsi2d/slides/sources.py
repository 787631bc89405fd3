"""The two kinds of file a slide can be: what OpenSlide opens, and a plain image held in memory."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from openslide import lowlevel
from PIL import Image

from wsi2d.slides.pixel_size import HeaderPixelSize, mean_mpp, mpp_from_tiff_tags, not_square
from wsi2d.slides.reader import PixelSource
from wsi2d.slides.regions import Region

_TIFF_X, _TIFF_Y, _TIFF_UNIT = 282, 283, 296
_TIFF_UNITS = {2: "inch", 3: "centimeter"}
# OpenSlide's function, which gives alpha, red, green and blue from the highest byte to the lowest. openslide-python
# makes a picture with alpha of that; to make it and to undo it takes a tenth of the time that a patch takes to decode.
# It has no public name there: without it, patches are read by way of that picture.
_READ_REGION = getattr(lowlevel, "_read_region", None) if sys.byteorder == "little" else None
_UINT32_P = ctypes.POINTER(ctypes.c_uint32)
_OPAQUE = 0xFF000000


class OpenSlideSource(PixelSource):
    """A slide in a format that OpenSlide knows."""

    def __init__(self, path: Path) -> None:
        self._slide = openslide.OpenSlide(path)
        self.width, self.height = self._slide.dimensions
        self.level_downsamples = (1.0, *map(float, self._slide.level_downsamples[1:]))
        self.header = _openslide_pixel_size(self._slide.properties)
        background = self._slide.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)
        self._background = f"#{background}" if background else "white"

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Image.Image:
        """Picture; what is transparent (outside the scan) takes the slide's background colour, else white."""
        return _opaque(self._slide.read_region((x, y), level, (width, height)), self._background)

    def read_resized(self, x: int, y: int, region: Region) -> np.ndarray:
        """As for any source; quicker where nothing is resampled and nothing transparent."""
        if region.size == region.out and _READ_REGION is not None:
            pixels = np.empty(region.out[::-1], np.uint32)
            _READ_REGION(self._slide._osr, pixels.ctypes.data_as(_UINT32_P), x, y, region.level, *region.out)
            if pixels.min() >= _OPAQUE:
                picture = Image.frombuffer("RGBX", region.out, pixels, "raw", "RGBX", 0, 1)
                return np.frombuffer(picture.tobytes("raw", "BGR"), np.uint8).reshape(region.shape)
        return super().read_resized(x, y, region)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


class PlainImageSource(PixelSource):
    """An image that Pillow opens, held in memory as one level."""

    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            # Pillow remarks on damaged metadata; what cannot be read ends in an error of its own.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"{image.mode} pixels; 8 bits a channel are needed")
                self.header = _tiff_pixel_size(image)
                self._image = _opaque(image, "white").convert("RGB")
        self.width, self.height = self._image.size
        self.level_downsamples = (1.0,)

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Image.Image:
        """RGB picture, white outside the image."""
        box = (max(x, 0), max(y, 0), min(x + width, self.width), min(y + height, self.height))
        if box == (x, y, x + width, y + height):
            return self._image.crop(box)
        picture = Image.new("RGB", (width, height), "white")
        if box[0] < box[2] and box[1] < box[3]:
            picture.paste(self._image.crop(box), (box[0] - x, box[1] - y))
        return picture

    def close(self) -> None:
        """Release the pixels."""
        self._image.close()


def _opaque(image: Image.Image, background: str) -> Image.Image:
    """RGB, or RGBA that is opaque everywhere: to convert it takes as long as to decode a tenth of it."""
    if image.mode not in {"RGBA", "LA", "PA"} and "transparency" not in image.info:
        return image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    alpha = rgba.tobytes("raw", "A")
    if alpha == b"\xff" * len(alpha):
        return rgba
    canvas = Image.new("RGB", rgba.size, background)
    canvas.paste(rgba, mask=rgba)
    return canvas


def _openslide_pixel_size(properties: Mapping[str, str]) -> HeaderPixelSize:
    header = None
    x, y = _number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y")
    # For a generic TIFF OpenSlide derives these two from the resolution tags, so they are no header's word.
    if x is not None and y is not None and properties.get("openslide.vendor") != "generic-tiff":
        header = (x, y)
    tiff = None
    x, y = _number(properties, "tiff.XResolution"), _number(properties, "tiff.YResolution")
    if x is not None and y is not None:
        tiff = mpp_from_tiff_tags(x, y, properties.get("tiff.ResolutionUnit", ""))
    return _pixel_size(header, tiff, _number(properties, "openslide.objective-power"))


def _tiff_pixel_size(image: Image.Image) -> HeaderPixelSize:
    tags = getattr(image, "tag_v2", None)
    if tags is None or _TIFF_X not in tags or _TIFF_Y not in tags:
        return HeaderPixelSize()
    unit = _TIFF_UNITS.get(tags.get(_TIFF_UNIT, 2), "")
    return _pixel_size(None, mpp_from_tiff_tags(float(tags[_TIFF_X]), float(tags[_TIFF_Y]), unit))


def _pixel_size(
    header: tuple[float, float] | None, tiff: tuple[float, float] | None, objective_power: float | None = None
) -> HeaderPixelSize:
    sides = header if header is not None and mean_mpp(*header) is not None else tiff
    return HeaderPixelSize(
        mean_mpp(*header) if header is not None else None,
        mean_mpp(*tiff) if tiff is not None else None,
        objective_power,
        not_square(*sides) if sides is not None else None,
    )


def _number(properties: Mapping[str, str], name: str) -> float | None:
    try:
        return float(properties[name])
    except (KeyError, ValueError):
        return None
