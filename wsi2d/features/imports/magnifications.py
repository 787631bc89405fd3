"""Attributes that TRIDENT and AtlasPatch have in common: patches cut at a magnification."""

from __future__ import annotations

from typing import Any

from wsi2d.features.imports.peer import Attributes, slide_size

UM_PER_PX_AT_1X = 10.0  # the convention of both tools


def patch_attributes(attributes: Attributes) -> dict[str, Any]:
    """Patch, pitch, resolution and slide as :class:`wsi2d.features.imports.peer.PeerSlide` names them.

    The pitch is the patch less the overlap, both in level-0 px. ``patch_size_level0`` may be a rounded number.
    """
    patch_px = attributes.number("patch_size", least=1, above=False)
    patch = attributes.number("patch_size_level0", least=1, above=False)
    target = attributes.number("target_magnification")
    level0 = attributes.number("level0_magnification", above=False) or None
    overlap = attributes.number("overlap", above=False)
    scale = level0 / target if level0 and target else patch / patch_px if patch and patch_px else None
    if patch is None and patch_px is not None and scale is not None:
        patch = patch_px * scale
    pitch = None
    if patch is not None and overlap is not None and (scale is not None or overlap == 0):
        pitch = patch - overlap * (scale or 0.0)
        if pitch <= 0:
            raise ValueError(f"its patches of {patch:g} px overlap by {overlap * (scale or 0.0):g} px")
    return {
        "patch_px": None if patch_px is None else round(patch_px),
        "mpp": None if target is None else UM_PER_PX_AT_1X / target,
        "nominal_mpp": True,
        "patch": patch,
        "pitch": pitch,
        "pitch_from": "arithmetic",
        "size": slide_size(attributes),
        "slide_mpp": None if level0 is None else UM_PER_PX_AT_1X / level0,
    }
