"""What features must have in common to be used together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wsi2d.features.store import FeatureHeader

SAME_MPP = 1e-3  # resolutions that differ by no more than this share of each other are the same


@dataclass(frozen=True)
class FeatureSpec:
    """What features must have in common to be used together; None stands for what is not known of imported ones.

    Attributes:
        encoder, encoder_hash: who made them.
        mpp: resolution of a patch, µm/px.
        patch_px, overlap_px: side and overlap of patches, px.
        dim: width of an embedding.
    """

    encoder: str | None
    encoder_hash: str | None
    mpp: float | None
    patch_px: int | None
    overlap_px: int | None
    dim: int

    def difference(self, other: FeatureSpec) -> str | None:
        """The first thing in which another differs, as ``name this, not that``; None where they agree.

        What is known of one and unknown of the other is a difference, but for the overlap.
        """
        for name in ("encoder", "encoder_hash", "mpp", "patch_px", "overlap_px", "dim"):
            mine, theirs = getattr(self, name), getattr(other, name)
            same = mine == theirs or (name == "overlap_px" and None in (mine, theirs))
            if not same and not (name == "mpp" and same_mpp(mine, theirs)):
                return f"{name} {_shown(theirs)}, not {_shown(mine)}"
        return None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Which of encoder, resolution and size of a patch are not known."""
        return tuple(name for name in ("encoder", "mpp", "patch_px") if getattr(self, name) is None)


def spec_of(header: FeatureHeader) -> FeatureSpec:
    """What a feature file's features are."""
    made, grid = header.provenance, header.geometry
    assumed = made.imported is not None and made.imported.pitch_from == "assumed"
    overlap_px = None if assumed else grid.overlap_px
    return FeatureSpec(made.encoder, made.encoder_hash, grid.mpp, grid.patch_px, overlap_px, header.dim)


def same_mpp(a: float | None, b: float | None) -> bool:
    """Whether two resolutions are the same, but for what their digits leave out; unknown ones are not."""
    return a is not None and b is not None and math.isclose(a, b, rel_tol=SAME_MPP)


def _shown(value: object) -> object:
    return "unknown" if value is None else value
