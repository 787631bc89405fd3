"""What feature files hold: where they come from, how they are cut, whether their numbers look sound, what differs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from wsi2d.errors import FeatureStoreError
from wsi2d.features.listing import feature_files
from wsi2d.features.store import SCHEMA, FeatureHeader, file_attributes, read_blocks, read_grid, read_header

JSON_SCHEMA = "wsi2d-inspect/1"
# Compared between files, as are the parameters of the tissue.
_COMPARED = ("encoder", "encoder_hash", "mpp", "patch_px", "overlap_px", "dim", "dtype")
# Attributes that feature files have, the last two where they were imported.
_KNOWN = {
    "schema", "slide_id", "encoder", "encoder_hash", "mpp", "patch_px", "slide_mpp", "mpp_source", "patch_level0",
    "stride_level0", "grid_shape", "level0_width", "level0_height", "tissue", "wsi2d_version", "complete",
    "imported", "origin",
}  # fmt: skip


@dataclass(frozen=True)
class FeatureStatistics:
    """Numbers over all of a file's features.

    Attributes:
        mean, sd, minimum, maximum: of the finite values; NaN where there are none.
        nan, infinite: how many values are not finite.
        constant_rows: patches whose values are all the same number.
        constant_columns: values that are the same number in all patches (of two or more).
        duplicate_rows: patches whose values are exactly those of an earlier patch.
    """

    mean: float
    sd: float
    minimum: float
    maximum: float
    nan: int
    infinite: int
    constant_rows: int
    constant_columns: int
    duplicate_rows: int

    def oddities(self) -> str:
        """What is not as it should be, as ``NaN: 3, constant columns: 1``; empty where all is well."""
        named = {
            "NaN": self.nan,
            "infinite": self.infinite,
            "constant columns": self.constant_columns,
            "constant patches": self.constant_rows,
            "duplicate patches": self.duplicate_rows,
        }
        return ", ".join(f"{name}: {count}" for name, count in named.items() if count)


@dataclass(frozen=True)
class Inspection:
    """A feature file.

    Attributes:
        path: the file.
        size: of the file on disk, bytes.
        header: where its features come from and how the slide was cut.
        version: of the wsi2d that wrote it; empty where it does not say.
        box: rows and columns of the smallest part of the grid that holds all patches; None where it was not looked for
            or there are no patches.
        statistics: of its features; None where they were not read.
        index: int32 ``[N, 2]``, (row, col) of its patches; None where it was not read.
        other: attributes that are not in ``docs/formats.md``, as JSON has them.
    """

    path: Path
    size: int
    header: FeatureHeader
    version: str
    box: tuple[int, int] | None
    statistics: FeatureStatistics | None
    index: np.ndarray | None
    other: Mapping[str, Any]

    @property
    def slide_id(self) -> str:
        """The slide, as the file's attributes name it."""
        return self.header.provenance.slide_id

    @property
    def occupied(self) -> float:
        """Share of the grid's cells that hold a patch."""
        return self.header.patches / math.prod(self.header.geometry.shape)

    @property
    def tissue(self) -> dict[str, Any]:
        """The parameters that chose the patches."""
        parameters: dict[str, Any] = json.loads(self.header.provenance.tissue, parse_constant=str)
        return parameters

    def to_dict(self) -> dict[str, Any]:
        """All of it but the index, ready for JSON."""
        made, grid = self.header.provenance, self.header.geometry
        return {
            "path": str(self.path),
            "bytes": self.size,
            "schema": SCHEMA,
            "wsi2d_version": self.version,
            **{name: value for name, value in asdict(made).items() if name != "tissue"},
            "tissue": self.tissue,
            **{
                name: getattr(grid, name) for name in ("mpp", "patch_px", "overlap_px", "patch_level0", "stride_level0")
            },
            "patches": self.header.patches,
            "dim": self.header.dim,
            "dtype": self.header.dtype,
            "grid_shape": list(grid.shape),
            "occupied": self.occupied,
            "tissue_box": None if self.box is None else list(self.box),
            "statistics": None if self.statistics is None else _finite_or_none(asdict(self.statistics)),
            "other": dict(self.other),
        }


@dataclass(frozen=True)
class Disagreement:
    """Something in which files differ.

    Attributes:
        name: what, as ``mpp`` or ``tissue.close_um``.
        values: each value as text, with the files that have it; the commonest first.
    """

    name: str
    values: tuple[tuple[str, tuple[Path, ...]], ...]

    def describe(self, named: int = 2) -> str:
        """One line: each value with how many files have it, and which where they are few."""
        parts = []
        for value, files in self.values:
            which = f" ({', '.join(f.name for f in files)})" if len(files) <= named else ""
            parts.append(f"{value} in {len(files)}{which}")
        return f"{self.name}: {', '.join(parts)}"


@dataclass(frozen=True)
class Survey:
    """Several feature files.

    Attributes:
        files: those that are sound.
        failures: the others, with what is wrong, one line each.
        disagreements: in what the sound ones differ.
    """

    files: tuple[Inspection, ...]
    failures: tuple[tuple[Path, str], ...]
    disagreements: tuple[Disagreement, ...]

    def to_json(self) -> str:
        """Schema ``wsi2d-inspect/1``, described in ``docs/formats.md``."""
        content = {
            "schema": JSON_SCHEMA,
            "files": [file.to_dict() for file in self.files],
            "failures": [{"path": str(path), "error": error} for path, error in self.failures],
            "disagreements": [
                {"name": d.name, "values": [{"value": v, "paths": [str(p) for p in paths]} for v, paths in d.values]}
                for d in self.disagreements
            ],
        }
        return json.dumps(content, indent=2) + "\n"


def inspect_features(sources: Sequence[Path | str], *, values: bool | None = None) -> Survey:
    """Look at feature files.

    Args:
        sources: feature files, and folders of them.
        values: read the features too, for :class:`FeatureStatistics` and the places of patches; by default only where
            one file is given.

    Raises:
        FeatureStoreError: a source is not there, or a folder without feature files. What is wrong with a file is told
            in the survey.
    """
    paths = feature_files(sources)
    values = len(paths) == 1 and Path(sources[0]).is_file() if values is None else values
    files, failures = [], []
    for path in paths:
        try:
            files.append(inspect_file(path, values=values))
        except FeatureStoreError as error:
            failures.append((path, str(error)))
    return Survey(tuple(files), tuple(failures), tuple(_disagreements(files)))


def inspect_file(path: Path, *, values: bool = True) -> Inspection:
    """Look at one feature file; memory does not grow with its features.

    Args:
        path: the file.
        values: read its features and the places of its patches too.

    Raises:
        FeatureStoreError: it is missing, damaged, incomplete or not ours.
    """
    header, attributes = read_header(path), file_attributes(path)
    index, box = None, None
    if values:
        index = read_grid(path).index
        rows, cols = (np.ptp(index, 0) + 1).tolist() if len(index) else (0, 0)
        box = (rows, cols) if rows else None
    return Inspection(
        path=path,
        size=path.stat().st_size,
        header=header,
        version=str(attributes.get("wsi2d_version", "")),
        box=box,
        statistics=feature_statistics(read_blocks(path)) if values else None,
        index=index,
        other={name: value for name, value in attributes.items() if name not in _KNOWN},
    )


def feature_statistics(blocks: Iterable[np.ndarray]) -> FeatureStatistics:
    """Statistics of features that come in blocks ``[n, D]``, one after the other."""
    moments, seen = _Moments(), set[bytes]()
    nan = infinite = rows = constant_rows = 0
    first: np.ndarray | None = None
    constant: np.ndarray = np.zeros(0, bool)
    for block in blocks:
        if first is None:
            first, constant = block[:1].copy(), np.ones(block.shape[1], bool)
        constant &= _same(block, first).all(0)
        constant_rows += int(_same(block, block[:, :1]).all(1).sum()) if block.shape[1] > 1 else 0
        rows += len(block)
        seen.update(blake2b(row.tobytes(), digest_size=16).digest() for row in block)
        nan += int(np.isnan(block).sum())
        infinite += int(np.isinf(block).sum())
        moments.add(block[np.isfinite(block)].astype(np.float64))
    known = moments.count > 0
    return FeatureStatistics(
        mean=moments.mean if known else math.nan,
        sd=math.sqrt(moments.squares / moments.count) if known else math.nan,
        minimum=moments.low if known else math.nan,
        maximum=moments.high if known else math.nan,
        nan=nan,
        infinite=infinite,
        constant_rows=constant_rows,
        constant_columns=int(constant.sum()) if rows > 1 else 0,
        duplicate_rows=rows - len(seen),
    )


class _Moments:
    """Count, mean, sum of squared deviations and range of values that come in parts.

    Source: T. Chan, G. Golub, R. LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 37
    (1983), equation 2.1.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Some more, float64."""
        if not values.size:
            return
        mean, together = float(values.mean()), self.count + values.size
        step = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + step**2 * self.count * values.size / together
        self.mean += step * values.size / together
        self.count = together
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))


def _same(block: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where values are the same number, or both none."""
    return np.asarray((block == other) | (np.isnan(block) & np.isnan(other)))


def _disagreements(files: Sequence[Inspection]) -> Iterable[Disagreement]:
    for name, of_file in _compared_values(files).items():
        by_value: dict[str, list[Path]] = {}
        for path, value in of_file.items():
            by_value.setdefault(value, []).append(path)
        if len(by_value) > 1:
            ordered = sorted(by_value.items(), key=lambda item: -len(item[1]))
            yield Disagreement(name, tuple((value, tuple(paths)) for value, paths in ordered))


def _compared_values(files: Sequence[Inspection]) -> dict[str, dict[Path, str]]:
    """What is compared, by name, with each file's value as text."""
    values: dict[str, dict[Path, str]] = {}
    tissue_names = sorted(
        {name for file in files for name in file.tissue} - {"threshold"}
    )  # it is found anew each time
    for file in files:
        all_of_it = file.to_dict()
        for name in _COMPARED:
            values.setdefault(name, {})[file.path] = "unknown" if all_of_it[name] is None else str(all_of_it[name])
        for name in tissue_names:
            values.setdefault(f"tissue.{name}", {})[file.path] = str(file.tissue.get(name, "not given"))
    return values


def _finite_or_none(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
