"""A peer's file becomes a feature bag: recognised, snapped to the grid, with what it says of itself and no more.

These functions run in processes of their own; call them through :mod:`wsi2d.features.imports.isolated`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np

from wsi2d.errors import FeatureStoreError, Wsi2dError, one_line
from wsi2d.features.hdf5 import check_bytes, find, read_array
from wsi2d.features.imports import atlaspatch, clam, stamp, trident
from wsi2d.features.imports.claims import NO_CLAIMS, Claims
from wsi2d.features.imports.peer import PeerSlide, Source
from wsi2d.features.imports.pitch import Pitch, infer_pitch
from wsi2d.features.imports.placement import Placement, place
from wsi2d.features.store import FeatureBag, FeatureHeader, FeatureWriter, Imported, Provenance
from wsi2d.slides.patching import GridGeometry, PatchGrid
from wsi2d.slides.reader_process import limit_computing

# The first that recognises a file has it; CLAM's files have no marks of their own, so it is the last.
PEERS: tuple[ModuleType, ...] = (stamp, atlaspatch, trident, clam)
OURS = "wsi2d"
_EXPORTED = "wsi2d-trident/1"
_PATCHES = "patches"
_LARGEST = 2**31 - 1  # px: what our files hold coordinates in
_BATCH_BYTES = 2**26


@dataclass(frozen=True)
class Recognised:
    """Whose file it is, and the encoders that it holds features of by name."""

    tool: str
    encoders: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Slide:
    """A slide of a peer's that is snapped to the grid."""

    peer: PeerSlide
    placement: Placement
    header: FeatureHeader
    grid: PatchGrid
    dtype: np.dtype


def recognise(path: Path, seconds: int) -> Recognised | None:
    """Whose feature file it is; None where it is a sound HDF5 file of something else.

    Raises:
        FeatureStoreError: it cannot be read.
    """
    limit_computing(seconds)
    with _opened(path, None, None) as source:
        if _is_ours(source.file):
            return Recognised(OURS)
        peer = _peer(source)
        if peer is None:
            return None
        if peer is atlaspatch:
            names = atlaspatch.encoders(source.file)
            return Recognised(peer.NAME, tuple(sorted(names))) if names else None
        patch_features = source.file["feats" if peer is stamp else "features"]
        if patch_features.ndim != 2 and patch_features.shape != (0,):
            return None  # of a slide or a patient
        name = None if peer is clam else peer.encoder(source)
        return Recognised(peer.NAME, () if name is None else (name,))


def inspect(path: Path, seconds: int, patches: Path | None = None, claims: Claims = NO_CLAIMS) -> FeatureHeader:
    """The header that an imported file would have; reads coordinates and no embeddings.

    Args:
        path: the file.
        seconds: of computing, after which this process ends itself.
        patches: folder of the files with coordinates that go with it; found beside it where not given.
        claims: what the user says of the features.

    Raises:
        FeatureStoreError: the file is no peer's, damaged, or says other things than the user.
    """
    limit_computing(seconds)
    with _opened(path, patches, claims.encoder) as source:
        return _read_slide(source, claims).header


def read(path: Path, seconds: int, patches: Path | None = None, claims: Claims = NO_CLAIMS) -> FeatureBag:
    """A peer's file as a bag; arguments and errors as :func:`inspect`."""
    limit_computing(seconds)
    with _opened(path, patches, claims.encoder) as source:
        slide = _read_slide(source, claims)
        features = _embeddings(source, slide)
    return FeatureBag(features[slide.placement.rows], slide.grid, slide.header.provenance)


def convert(
    path: Path, seconds: int, out: Path, patches: Path | None = None, claims: Claims = NO_CLAIMS
) -> FeatureHeader:
    """Write a peer's file as one of ours; arguments and errors as :func:`inspect`, and:

    Raises:
        StorageError: the disk does not take it.
    """
    limit_computing(seconds)
    with _opened(path, patches, claims.encoder) as source:
        slide = _read_slide(source, claims)
        features = _embeddings(source, slide)
    header, rows = slide.header, slide.placement.rows
    with FeatureWriter(out, slide.grid, header.provenance, dim=header.dim, dtype=slide.dtype.name) as writer:
        step = max(1, _BATCH_BYTES // max(1, header.dim * slide.dtype.itemsize))
        for start in range(0, len(rows), step):
            writer.append(features[rows[start : start + step]])
    return header


@contextmanager
def _opened(path: Path, patches: Path | None, encoder: str | None) -> Iterator[Source]:
    """An open file, and where the one with its patches lies; whatever HDF5 raises on damage becomes one line."""
    try:
        with Source(path, patches_file(path, patches), encoder) as source:
            yield source
    except FeatureStoreError as error:
        raise _told(path, str(error)) from error
    except Wsi2dError:
        raise
    except KeyError as error:
        raise _told(path, f"has no {one_line(str(error.args[0]))[:200]}") from error
    except (OSError, RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError) as error:
        raise _told(path, one_line(str(error))[:300] or type(error).__name__) from error


_REMEDY = "copy it again, or extract the slide with `wsi2d extract`"


def _told(path: Path, text: str) -> FeatureStoreError:
    """One line that names the file and a remedy."""
    named = text if str(path) in text else f"{path}: {text}"
    return FeatureStoreError(named if "; " in named else f"{named}; {_REMEDY}")


def patches_file(path: Path, folder: Path | None) -> Path | None:
    """The file with a slide's coordinates, in a given folder or where CLAM and TRIDENT put it."""
    home = path.parent
    folders = [place / _PATCHES for place in (home, home.parent, home.parent.parent)] if folder is None else [folder]
    names = (path.name, f"{path.stem}_patches.h5")
    found = (place / name for place in folders for name in names)
    return next((file for file in found if file.is_file() and not file.samefile(path)), None)


def _is_ours(file: h5py.File) -> bool:
    """Whether it bears a schema's name, which TRIDENT's files do only where this package exported them."""
    schema = file.attrs.get("schema")
    return schema is not None and schema not in (_EXPORTED, _EXPORTED.encode())


def _peer(source: Source) -> ModuleType | None:
    return next((peer for peer in PEERS if peer.recognises(source)), None)


def _read_slide(source: Source, claims: Claims) -> _Slide:
    """Recognise a file and put its patches into cells."""
    if any("\ud800" <= c <= "\udfff" for c in source.path.stem):
        raise FeatureStoreError(f"{source.path}: its name is no UTF-8; rename the file")
    if _is_ours(source.file):
        raise FeatureStoreError(f"{source.path}: is a wsi2d feature file; there is nothing to import")
    peer = _peer(source)
    if peer is None:
        raise FeatureStoreError(
            f"{source.path}: is no feature file of TRIDENT, CLAM, STAMP or AtlasPatch; extract the slide with "
            "`wsi2d extract`"
        )
    said: PeerSlide = peer.describe(source)
    slide = claims.fill_slide(said, str(source.path))
    data = find(source.file, slide.features)
    pitch, patch = _pitch(slide)
    placement = place(slide.coords, pitch.value, patch=patch, size=slide.size)
    grid = _grid(slide, placement, pitch, patch)
    dtype = data.dtype if data.dtype in (np.float16, np.float32) and data.dtype.isnative else np.dtype(np.float32)
    provenance = _provenance(source.path, slide, placement, pitch, grid)
    geometry = GridGeometry(
        grid.shape, grid.patch_px, grid.mpp, grid.patch_level0, grid.stride_level0, origin=grid.origin
    )
    header = FeatureHeader(provenance, geometry, len(grid), slide.dim, dtype.name)
    return _Slide(slide, placement, header, grid, dtype)


def _pitch(slide: PeerSlide) -> tuple[Pitch, float]:
    """The pitch, and the side of a patch, which is the pitch where the file does not say."""
    if not len(slide.coords):
        known = slide.pitch or slide.usual_pitch or slide.patch or 1.0
        return Pitch(known, slide.pitch_from if slide.pitch else "none"), slide.patch or known
    usual = slide.usual_pitch or slide.patch
    pitch = infer_pitch(slide.coords, stated=slide.pitch, source=slide.pitch_from, patch=usual, one_grid=slide.one_grid)
    if slide.patch is None:
        return pitch, pitch.value
    # A stated pitch that coordinates correct by a rounding was rounded as the patch was.
    rounded = slide.pitch is not None and pitch.source != "statistics"
    return pitch, slide.patch * (pitch.value / slide.pitch if rounded and slide.pitch else 1.0)


def _grid(slide: PeerSlide, placement: Placement, pitch: Pitch, patch: float) -> PatchGrid:
    coords = slide.coords[placement.rows]
    return PatchGrid(
        placement.shape,
        slide.patch_px,
        slide.mpp,
        patch,
        pitch.value,
        np.rint(coords).astype(np.int32),
        placement.index,
        origin=placement.origin,
    )


def _provenance(path: Path, slide: PeerSlide, placement: Placement, pitch: Pitch, grid: PatchGrid) -> Provenance:
    slide_mpp, source = slide.slide_mpp, "magnification"
    if slide.unit == "um":
        slide_mpp, source = 1.0, "micrometres"  # coordinates are kept in µm, as if a pixel were of that size
    elif slide_mpp is None and slide.mpp is not None and slide.patch is not None and slide.patch_px is not None:
        slide_mpp, source = slide.mpp * slide.patch_px / grid.patch_level0, "user"
    elif slide_mpp is None:
        source = "unknown"
    imported = Imported(
        tool=slide.tool,
        version=slide.version,
        pitch_from=pitch.source,
        level0_size="stated" if slide.size is not None else "patches",
        counts=placement.counts.as_dict(),
        largest_shift=round(placement.largest_shift, 6),
    )
    width, height = (min(_LARGEST, max(1, int(np.ceil(length)))) for length in placement.size)
    return Provenance(path.stem, slide.encoder, None, slide_mpp, source, width, height, "{}", imported)


def _embeddings(source: Source, slide: _Slide) -> np.ndarray:
    """All embeddings in the file's order, in the type that is kept."""
    data = find(source.file, slide.peer.features)
    check_bytes(data)
    values = read_array(data)
    if not len(values):
        return np.zeros((0, slide.header.dim), slide.dtype)
    with np.errstate(over="ignore"):
        values = values.astype(slide.dtype, copy=False)
    bad = len(values) - int(np.isfinite(values).all(1).sum())
    if bad:
        raise FeatureStoreError(f"the features of {bad} of its {len(values)} patches hold NaN or infinity; {_REMEDY}")
    return values
