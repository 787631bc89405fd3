"""``geojson``: patches as polygons that QuPath imports, with a run's attention where it is given.

Source of the properties' names: QuPath's own reader, ``QuPathTypeAdapters`` (v0.2 to v0.5).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from wsi2d.exports.attention import AttentionFiles, PatchAttention
from wsi2d.exports.target import ExportOptions, FeatureSource, in_pixels
from wsi2d.files import whole_file

_BEGINNING = '{"type":"FeatureCollection","wsi2d":'
_PATCH = {"name": "Patch", "color": [31, 79, 255]}
# Upper ends, in multiples of what each patch would get if all got the same, and where on the colour scale they stand.
_CLASSES = ((1.0, "Attention below 1x", 0.0), (2.0, "Attention 1x to 2x", 0.5), (np.inf, "Attention above 2x", 1.0))


class GeoJsonTarget:
    """``<slide_id>.geojson``: a FeatureCollection, a polygon a patch in level-0 px, written line by line."""

    suffix = ".geojson"
    takes = frozenset({"attention", "objects"})

    def __init__(self, options: ExportOptions) -> None:
        self._objects = options.objects or "tile"
        self._attention = None if options.attention is None else AttentionFiles(options.attention)

    def made_of(self, source: FeatureSource) -> tuple[Path, ...]:
        """See :class:`wsi2d.exports.target.Target`."""
        return (source.path, *(self._attention.of(source.slide_id) if self._attention is not None else ()))

    def is_finished(self, source: FeatureSource, out: Path) -> bool:
        """See :class:`wsi2d.exports.target.Target`; the first line says what it was made of."""
        first = self._first_line(source)
        with out.open(encoding="utf-8") as file:
            found = file.readline(len(first) + 2)
        if not found.startswith(_BEGINNING):
            raise ValueError("was not written by wsi2d")
        return found == first + "\n"

    def write(self, source: FeatureSource, out: Path) -> None:
        """See :class:`wsi2d.exports.target.Target`."""
        in_pixels(source)
        grid = source.grid
        attention = None if self._attention is None else self._attention.read(source.slide_id, grid.coords)
        with whole_file(out) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(self._first_line(source))
            between = "\n"
            for feature in self._features(source, attention):
                file.write(between + json.dumps(feature, separators=(",", ":")))
                between = ",\n"
            file.write("\n]}\n")

    def _first_line(self, source: FeatureSource) -> str:
        made, grid = source.header.provenance, source.header.geometry
        about = {
            "slide_id": source.slide_id,
            "encoder": made.encoder,
            "encoder_hash": made.encoder_hash,
            "slide_mpp": made.slide_mpp,
            "mpp": grid.mpp,
            "patch_px": grid.patch_px,
            "patch_level0": grid.patch_level0,
            "stride_level0": grid.stride_level0,
            "patches": source.header.patches,
            "objects": self._objects,
            "attention": None if self._attention is None else self._attention.describe(source.slide_id),
        }
        return f'{_BEGINNING}{json.dumps(about)},"features":['

    def _features(self, source: FeatureSource, attention: PatchAttention | None) -> Iterator[dict[str, Any]]:
        grid = source.grid
        colours = None if attention is None else _colours(attention)
        for k in range(len(grid)):
            xy, cell = grid.coords[k].tolist(), grid.index[k].tolist()
            measured: dict[str, float] = {"Row": cell[0], "Column": cell[1]}
            properties: dict[str, Any] = {"objectType": self._objects, "classification": _PATCH}
            if attention is not None and colours is not None:
                measured["Attention"] = _short(attention.weights[k])
                measured["Attention relative"] = _short(attention.relative[k])
                measured["Attention percentile"] = _short(attention.percentile[k])
                properties["classification"] = _class_of(attention.relative[k])
                properties["color"] = colours[k].tolist()
            name = f"wsi2d:{source.slide_id}:{grid.patch_px}:{grid.stride_level0}:{cell[0]}:{cell[1]}"
            yield {
                "type": "Feature",
                "id": str(uuid5(NAMESPACE_URL, name)),
                "geometry": {"type": "Polygon", "coordinates": [_ring(xy, grid.patch_level0)]},
                "properties": {**properties, "measurements": measured},
            }


def _ring(corner: list[int], side: float) -> list[list[float]]:
    left, top = corner
    right, bottom = (_px(n + side) for n in corner)
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def _px(place: float) -> float:
    """To a hundredth of a px, and whole where it is."""
    rounded = round(place, 2)
    return int(rounded) if rounded.is_integer() else rounded


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _class_of(relative: float) -> dict[str, Any]:
    name, where = next((name, where) for end, name, where in _CLASSES if relative < end)
    return {"name": name, "color": _on_scale(np.array([where]))[0].tolist()}


def _colours(attention: PatchAttention) -> np.ndarray:
    """Colours of the heatmap, uint8 ``[N, 3]``."""
    from wsi2d.explain.heatmap import colour_limit  # brings in torch

    if not len(attention.relative):
        return np.zeros((0, 3), np.uint8)
    return _on_scale((attention.relative / colour_limit(attention.relative)).clip(0, 1))


def _on_scale(values: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    from wsi2d.explain.heatmap import COLOUR_MAP

    return np.asarray(colormaps[COLOUR_MAP](values, bytes=True))[:, :3]
