"""What is known of a slide's features, and the attributes that a feature file keeps of it (``docs/formats.md``)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import h5py
import numpy as np

from wsi2d import __version__
from wsi2d.errors import FeatureStoreError
from wsi2d.slides.patching import GridGeometry, PatchGrid, grid_cells

SCHEMA = "wsi2d/1"


@dataclass(frozen=True)
class Imported:
    """Who extracted features that were imported.

    Attributes:
        tool, version: the tool, and its version where its files tell it.
        pitch_from: what the pitch of the grid was inferred from; :mod:`wsi2d.features.imports.pitch` has the words.
        level0_size: whether the slide's size is the tool's (``stated``) or as far as patches reach (``patches``).
        counts: what became of the tool's patches, by the names of :class:`wsi2d.features.imports.placement.Counts`.
        largest_shift: how far from its cell's corner a patch lies at most, along an axis, in pitches.
    """

    tool: str
    version: str | None
    pitch_from: str
    level0_size: str
    counts: dict[str, int]
    largest_shift: float


@dataclass(frozen=True)
class Provenance:
    """Where features come from.

    Attributes:
        slide_id: the slide.
        encoder, encoder_hash: the encoder's name and fingerprint; None where unknown, as for imported features.
        slide_mpp, mpp_source: level-0 pixel size, µm, and where it was found; None where unknown.
        level0_width, level0_height: the slide's size, px.
        tissue: the parameters that chose the patches, as JSON.
        imported: who extracted the features; None: this package.
    """

    slide_id: str
    encoder: str | None
    encoder_hash: str | None
    slide_mpp: float | None
    mpp_source: str
    level0_width: int
    level0_height: int
    tissue: str
    imported: Imported | None = None


@dataclass(frozen=True)
class FeatureHeader:
    """What a feature file says of itself.

    Attributes:
        provenance: slide, encoder and pixel size.
        geometry: how the slide was cut.
        patches, dim: how many embeddings, and their width.
        dtype: how they are kept, as ``float16``.
    """

    provenance: Provenance
    geometry: GridGeometry
    patches: int
    dim: int
    dtype: str


@dataclass(frozen=True)
class FeatureBag:
    """A slide's embeddings with their places.

    Attributes:
        features: float16 or float32 ``[N, D]``.
        grid: the patches, in the same order.
        provenance: slide, encoder and pixel size.
    """

    features: np.ndarray
    grid: PatchGrid
    provenance: Provenance

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.grid):
            raise FeatureStoreError(
                f"slide '{self.provenance.slide_id}': features {list(self.features.shape)} do not belong to "
                f"{len(self.grid)} patches"
            )
        if self.features.dtype not in (np.float16, np.float32):
            raise FeatureStoreError(
                f"slide '{self.provenance.slide_id}': features must be float16 or float32, got {self.features.dtype}"
            )


def to_attributes(grid: PatchGrid, provenance: Provenance) -> dict[str, Any]:
    """Attributes of a feature file that is not complete yet."""
    imported = provenance.imported
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "slide_id": provenance.slide_id,
        "encoder": provenance.encoder or "",
        "encoder_hash": provenance.encoder_hash or "",
        "mpp": math.nan if grid.mpp is None else grid.mpp,
        "slide_mpp": math.nan if provenance.slide_mpp is None else provenance.slide_mpp,
        "mpp_source": provenance.mpp_source,
        "patch_px": grid.patch_px or 0,
        "patch_level0": grid.patch_level0,
        "stride_level0": grid.stride_level0,
        "grid_shape": np.array(grid.shape, np.int32),
        "level0_width": provenance.level0_width,
        "level0_height": provenance.level0_height,
        "tissue": provenance.tissue,
        "wsi2d_version": __version__,
        "complete": False,
    }
    if imported is not None:
        values |= {"imported": json.dumps(asdict(imported)), "origin": np.array(grid.origin)}
    return values


def parse_header(attrs: Mapping[str, Any], features: h5py.Dataset) -> FeatureHeader:
    """What attributes and the array of embeddings say.

    Raises:
        KeyError, TypeError, ValueError, OverflowError, SlideError: something is missing or cannot be.
    """
    imported = _parse_imported(str(attrs["imported"])) if "imported" in attrs else None
    text = {name: str(attrs[name]) for name in ("slide_id", "mpp_source", "tissue")}
    if not isinstance(json.loads(text["tissue"]), dict):
        raise ValueError("tissue is no JSON object")
    provenance = Provenance(
        **text,
        encoder=str(attrs["encoder"]) or None,
        encoder_hash=str(attrs["encoder_hash"]) or None,
        slide_mpp=_known(float(attrs["slide_mpp"])),
        level0_width=int(attrs["level0_width"]),
        level0_height=int(attrs["level0_height"]),
        imported=imported,
    )
    rows, cols = (int(n) for n in attrs["grid_shape"])
    x, y = (0.0, 0.0) if imported is None else (float(n) for n in attrs["origin"])
    geometry = GridGeometry(
        shape=(rows, cols),
        patch_px=int(attrs["patch_px"]) or None,
        mpp=_known(float(attrs["mpp"])),
        patch_level0=float(attrs["patch_level0"]),
        stride_level0=float(attrs["stride_level0"]),
        origin=(x, y),
    )
    unknown = [
        name
        for name in ("encoder", "encoder_hash", "slide_mpp", "mpp", "patch_px")
        if getattr(geometry if name in ("mpp", "patch_px") else provenance, name) is None
    ]
    if unknown and imported is None:
        raise ValueError(f"{unknown[0]} must be > 0 or a name, got {attrs[unknown[0]]!r}")
    if provenance.slide_mpp is not None and not (math.isfinite(provenance.slide_mpp) and provenance.slide_mpp > 0):
        raise ValueError(f"slide_mpp must be > 0, got {provenance.slide_mpp}")
    _check_shape(geometry, provenance)
    return FeatureHeader(provenance, geometry, int(features.shape[0]), int(features.shape[1]), str(features.dtype))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _parse_imported(text: str) -> Imported:
    values = json.loads(text)
    counts = {str(name): int(count) for name, count in dict(values["counts"]).items()}
    version = values["version"]
    words = {name: str(values[name]) for name in ("tool", "pitch_from", "level0_size")}
    version = None if version is None else str(version)
    return Imported(**words, version=version, counts=counts, largest_shift=float(values["largest_shift"]))


def _check_shape(geometry: GridGeometry, provenance: Provenance) -> None:
    """A grid is as large as its slide: one that says otherwise would be built, cell by cell, for nothing. Imported ones
    may begin a cell before it and reach a cell beyond."""
    more = 0 if provenance.imported is None else 2
    most = (grid_cells(n, geometry.stride_level0) for n in (provenance.level0_height, provenance.level0_width))
    if any(not 0 < n <= at_most + more for n, at_most in zip(geometry.shape, most, strict=True)):
        rows, cols = geometry.shape
        raise ValueError(f"grid_shape {rows}×{cols} is not that of the slide")
    if any(not -geometry.stride_level0 * more <= start < geometry.stride_level0 for start in geometry.origin):
        raise ValueError(f"origin {geometry.origin} is not at the slide's corner")


def trident_attributes(grid: PatchGrid, provenance: Provenance) -> dict[str, Any]:
    """The names under which TRIDENT's tools look for the same facts (10 µm/px is 1×); what is unknown is left out."""
    values = {
        "name": provenance.slide_id,
        "patch_size": grid.patch_px,
        "patch_size_level0": grid.patch_level0,
        "level0_magnification": None if provenance.slide_mpp is None else 10.0 / provenance.slide_mpp,
        "target_magnification": None if grid.mpp is None else 10.0 / grid.mpp,
        "overlap": grid.overlap_px,
        "level0_width": provenance.level0_width,
        "level0_height": provenance.level0_height,
    }
    return {name: value for name, value in values.items() if value is not None}
