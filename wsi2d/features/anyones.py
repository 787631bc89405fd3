"""Feature files whoever wrote them: ours as they are, those of other tools snapped to the grid as they are read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from wsi2d.errors import ForeignFileError
from wsi2d.features import store
from wsi2d.features.hdf5 import has_old_layout
from wsi2d.features.imports.claims import NO_CLAIMS, Claims
from wsi2d.features.imports.isolated import shared_reader
from wsi2d.features.imports.reading import OURS
from wsi2d.features.store import FeatureBag, FeatureHeader

logger = logging.getLogger(__name__)

Read = TypeVar("Read")
_told: set[tuple[Path, str]] = set()


def read_features(path: Path | str, claims: Claims = NO_CLAIMS) -> FeatureBag:
    """A feature file as a bag, ours or one of TRIDENT, CLAM, STAMP or AtlasPatch.

    Args:
        path: the file.
        claims: what the user says of features whose file does not, and which encoder's to take where there are several.

    Raises:
        FeatureStoreError: the file is missing, damaged, incomplete or nobody's that is known, or says other things than
            the user.
    """
    path = Path(path)
    return _whoevers(path, lambda: store.read_features(path), lambda: shared_reader().read(path, claims=claims))


def read_header(path: Path, claims: Claims = NO_CLAIMS) -> FeatureHeader:
    """What a feature file says of itself, with the user's claims; reads no embeddings. Arguments and errors as
    :func:`read_features`."""

    def foreign() -> FeatureHeader:
        header = shared_reader().inspect(path, claims=claims)
        _tell(path.parent, header)
        return header

    return _whoevers(path, lambda: claims.fill_header(store.read_header(path), str(path)), foreign)


def _whoevers(path: Path, ours: Callable[[], Read], foreign: Callable[[], Read]) -> Read:
    """Read a file as one of ours, or if another tool wrote it as one of theirs."""
    if not has_old_layout(path):
        try:
            return ours()
        except ForeignFileError:
            pass
    found = shared_reader().recognise(path)
    if found is None or found.tool == OURS:
        return ours()  # or the error that says what it is not
    return foreign()


def _tell(folder: Path, header: FeatureHeader) -> None:
    """Say once for each folder what was recognised."""
    made, grid = header.provenance, header.geometry
    if made.imported is None:
        return
    mpp = "unknown resolution" if grid.mpp is None else f"{grid.mpp:.4g} µm/px"
    side = "unknown size" if grid.patch_px is None else f"{grid.patch_px} px"
    what = f"files of {made.imported.tool}, read where they lie: encoder {made.encoder or 'unknown'}, {mpp}, "
    what += f"patches of {side}"
    if (folder, what) not in _told:
        _told.add((folder, what))
        logger.info("features %s: %s", folder, what)
