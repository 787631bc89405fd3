"""The patches that an encoder was made for: the default where none are asked for, a warning where others are."""

from __future__ import annotations

import logging
import math

from wsi2d.config import ExtractConfig, PatchConfig, validate
from wsi2d.features.encoders.catalogue import CATALOGUE

logger = logging.getLogger(__name__)

_SAME_MPP = 0.05


def fit_patches(config: ExtractConfig, *, warn: bool = True) -> ExtractConfig:
    """Fill in what the configuration does not say of the patches with what its encoder was made for.

    Encoders without an entry in the catalogue recommend nothing: the configuration's own defaults stay.

    Args:
        config: which knows what was given to it and what is default.
        warn: log one line where another side, or a resolution that differs by more than 5 %, was given.

    Raises:
        ConfigError: what was given does not fit what is filled in.
    """
    name = config.encoder.partition("=")[0]
    spec = CATALOGUE.get(name)
    if spec is None:
        return config
    given = config.patch.model_dump(exclude_unset=True)
    patch = validate(PatchConfig, {"patch_px": spec.patch_px, "mpp": spec.mpp, **given}, source=f"encoder '{name}'")
    mpp_fits = any(math.isclose(patch.mpp, mpp, rel_tol=_SAME_MPP) for mpp in (spec.mpp, *spec.also_mpp))
    if warn and (patch.patch_px != spec.patch_px or not mpp_fits):
        logger.warning(
            "encoder '%s' was made for patches of %d px at %g µm/px; it is given %d px at %g µm/px",
            name, spec.patch_px, spec.mpp, patch.patch_px, patch.mpp,
        )  # fmt: skip
    return config.model_copy(update={"patch": patch})
