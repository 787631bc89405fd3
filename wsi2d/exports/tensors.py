"""``pt``: tensors as CLAM keeps them in ``pt_files``, for whatever reads those."""

from __future__ import annotations

from pathlib import Path

import torch

from wsi2d.exports.target import ExportOptions, FeatureSource
from wsi2d.files import unwritable, whole_file


class TensorTarget:
    """``<slide_id>.pt``: float32 ``[N, D]``, or with ``coords`` a dict of it and of int64 ``[N, 2]`` level-0 (x, y)."""

    suffix = ".pt"
    takes = frozenset({"coords"})

    def __init__(self, options: ExportOptions) -> None:
        self._coords = bool(options.coords)

    def made_of(self, source: FeatureSource) -> tuple[Path, ...]:
        """See :class:`wsi2d.exports.target.Target`."""
        return (source.path,)

    def is_finished(self, source: FeatureSource, out: Path) -> bool:
        """See :class:`wsi2d.exports.target.Target`; what is there is not read, only its type and shape."""
        found = torch.load(out, mmap=True, weights_only=True)
        features = found["features"] if isinstance(found, dict) else found
        shape = tuple(features.shape)
        return isinstance(found, dict) == self._coords and shape == (source.header.patches, source.header.dim)

    def write(self, source: FeatureSource, out: Path) -> None:
        """See :class:`wsi2d.exports.target.Target`."""
        features = torch.empty(source.header.patches, source.header.dim)
        row = 0
        for block in source.blocks():
            features[row : row + len(block)] = torch.from_numpy(block)
            row += len(block)
        content: object = features
        if self._coords:
            content = {"features": features, "coords": torch.from_numpy(source.grid.coords).long()}
        with whole_file(out) as partial:
            try:
                with partial.open("wb") as file:
                    torch.save(content, file)
            except RuntimeError as error:  # what torch makes of a full disk
                raise unwritable(out, error) from error
