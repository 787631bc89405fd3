"""How large is a pixel? The user knows best, then the cohort table, then the header, then sane TIFF tags."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal

from wsi2d.errors import SlideError

logger = logging.getLogger(__name__)

PixelSizeSource = Literal["user", "cohort", "header", "tiff"]

# What a light microscope's scan can have, µm per level-0 px. Desktop publishing writes 72 or 300 dots per inch into
# the same TIFF tags, which would be pixels of 353 or 85 µm.
_SANE_TIFF_MPP = (0.05, 10.0)
_MICROMETRES_PER_UNIT = {"inch": 25_400.0, "centimeter": 10_000.0}
_DISAGREEMENT = 0.10
_NOT_SQUARE = 0.02


@dataclass(frozen=True)
class HeaderPixelSize:
    """What a file says about its pixel size.

    Attributes:
        mpp: from the format's own header, µm/px; the mean over x and y.
        tiff_mpp: from TIFF resolution tags, µm/px, likewise; not yet checked for sense.
        objective_power: nominal magnification, used only in the error's hint.
        not_square: µm in x and in y where they differ by more than 2 %.
    """

    mpp: float | None = None
    tiff_mpp: float | None = None
    objective_power: float | None = None
    not_square: tuple[float, float] | None = None


def resolve_mpp(
    slide_id: str, *, user: float | None, cohort: float | None, header: HeaderPixelSize
) -> tuple[float, PixelSizeSource]:
    """The slide's pixel size in µm and where it came from.

    Raises:
        SlideError: a given value is not positive, or there is none at all.
    """
    found = _from_file(header)
    given: tuple[tuple[float | None, PixelSizeSource, str], ...] = (
        (user, "user", "--slide-mpp"),
        (cohort, "cohort", "the cohort's mpp"),
    )
    for value, source, option in given:
        if value is None:
            continue
        check_mpp(value, f"slide '{slide_id}': {option}")
        if found is not None and abs(value - found[0]) > _DISAGREEMENT * found[0]:
            logger.warning(
                "slide '%s': %s is %g µm/px, but the file's %s says %g; %g is used",
                slide_id, option, value, "header" if found[1] == "header" else "TIFF tags", found[0], value,
            )  # fmt: skip
        return value, source
    if found is not None:
        if header.not_square is not None:
            logger.warning(
                "slide '%s': pixels are %g × %g µm, not square; their mean of %g is used",
                slide_id, *header.not_square, found[0],
            )  # fmt: skip
        return found
    hint = ""
    if header.objective_power:
        hint = f" (scanned at {header.objective_power:g}×, often {10 / header.objective_power:g} µm/px)"
    raise SlideError(
        f"slide '{slide_id}': no pixel size (mpp) in the header{hint}; give --slide-mpp, or --cohort with an mpp column"
    )


def check_mpp(value: float | None, what: str) -> None:
    """Refuse a pixel size that no slide can have; None is none given.

    Raises:
        SlideError: it is not a number above 0.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        raise SlideError(f"{what} must be > 0 µm/px, got {value:g}")


def mpp_from_tiff_tags(x_resolution: float, y_resolution: float, unit: str) -> tuple[float, float] | None:
    """µm per px in x and y from TIFF's XResolution, YResolution (px per unit) and ResolutionUnit; None where they say
    nothing."""
    per_unit = _MICROMETRES_PER_UNIT.get(unit)
    if per_unit is None or not (x_resolution > 0 and y_resolution > 0):
        return None
    return per_unit / x_resolution, per_unit / y_resolution


def mean_mpp(x: float, y: float) -> float | None:
    """One number for pixels that are square or nearly so; None where a value makes no sense."""
    if not (math.isfinite(x) and math.isfinite(y) and x > 0 and y > 0):
        return None
    return (x + y) / 2


def not_square(x: float, y: float) -> tuple[float, float] | None:
    """The two sides of a pixel where they differ by more than 2 %, else None."""
    return (x, y) if mean_mpp(x, y) is not None and abs(x - y) > _NOT_SQUARE * x else None


def _from_file(header: HeaderPixelSize) -> tuple[float, PixelSizeSource] | None:
    if header.mpp is not None:
        return header.mpp, "header"
    if header.tiff_mpp is not None and _SANE_TIFF_MPP[0] <= header.tiff_mpp <= _SANE_TIFF_MPP[1]:
        return header.tiff_mpp, "tiff"
    return None
