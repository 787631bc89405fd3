"""What can be exported to. A new target is a file with its class, and a line here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wsi2d.errors import ConfigError, FeatureStoreError
from wsi2d.features.store import FeatureHeader, file_attributes, read_blocks, read_grid, read_header
from wsi2d.slides.patching import PatchGrid

OBJECTS = ("tile", "annotation")

TARGETS: dict[str, str] = {
    "zarr": "wsi2d.exports.zarr_group:ZarrTarget",
    "pt": "wsi2d.exports.tensors:TensorTarget",
    "geojson": "wsi2d.exports.geojson:GeoJsonTarget",
    "trident": "wsi2d.exports.trident:TridentTarget",
}


@dataclass(frozen=True)
class ExportOptions:
    """What targets can be told; None is not given.

    Attributes:
        attention: ``geojson``: a run, a folder of attention files, or one of them, whose scores go with the patches.
        objects: ``geojson``: what patches become in QuPath, ``tile`` (the default) or ``annotation``.
        coords: ``pt``: coordinates too, in a dict with the features.

    Raises:
        ConfigError: unknown objects.
    """

    attention: Path | None = None
    objects: str | None = None
    coords: bool | None = None

    def __post_init__(self) -> None:
        if self.objects is not None and self.objects not in OBJECTS:
            raise ConfigError(f"objects '{self.objects}': must be {' or '.join(OBJECTS)}")


class FeatureSource:
    """A feature file that is exported; memory does not grow with its features.

    Attributes:
        path: the file.
        slide_id: its name without suffix, under which its features are found and its exports go.
        header: what it says of itself.

    Raises:
        FeatureStoreError: it is missing, damaged, incomplete, not ours, or of a name that is no text.
    """

    def __init__(self, path: Path) -> None:
        if any("\ud800" <= c <= "\udfff" for c in path.stem):
            raise FeatureStoreError(f"{path}: its name is no UTF-8; rename the file")
        self.path, self.slide_id = path, path.stem
        self.header: FeatureHeader = read_header(path)

    @cached_property
    def grid(self) -> PatchGrid:
        """The patches, in the order of the features."""
        return read_grid(self.path)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """All attributes of the file, as JSON has them."""
        return file_attributes(self.path)

    def blocks(self) -> Iterator[np.ndarray]:
        """The features in order, ``[n, D]`` at a time."""
        return read_blocks(self.path)


def in_pixels(source: FeatureSource) -> None:
    """Refuse imported features whose places are known in micrometres alone, where a format has them in pixels.

    Raises:
        FeatureStoreError: they are.
    """
    if source.header.provenance.mpp_source == "micrometres":
        raise FeatureStoreError(
            f"{source.path}: its places are known in micrometres, not in pixels of the slide; export to zarr or pt"
        )


class Target(Protocol):
    """A format.

    It is built from :class:`ExportOptions`, of which it takes those in ``takes``.

    Attributes:
        suffix: of its files, or folders.
        takes: names of the options it knows.
    """

    suffix: str
    takes: frozenset[str]

    def made_of(self, source: FeatureSource) -> tuple[Path, ...]:
        """All files that an export is made of; where one is newer than the export, it is made again.

        Raises:
            RunError: one is not there.
        """
        ...

    def is_finished(self, source: FeatureSource, out: Path) -> bool:
        """Whether what is there was made of such a feature file with these options. What is no export raises what
        reading it raises, or ValueError."""
        ...

    def write(self, source: FeatureSource, out: Path) -> None:
        """Write an export, complete or absent.

        Raises:
            FeatureStoreError, RunError: what it is made of is damaged or does not fit together.
            StorageError: the disk does not take it.
        """
        ...
