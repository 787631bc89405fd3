"""Feature files become files of other tools: finished ones are skipped, bad ones named, the rest goes on."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from wsi2d.errors import ConfigError, FeatureStoreError, StorageError, Wsi2dError
from wsi2d.exports.target import TARGETS, ExportOptions, FeatureSource, Target
from wsi2d.features.listing import feature_files
from wsi2d.files import discard, make_folder, partial_path
from wsi2d.registry import load

_WHAT_READING_RAISES = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, pickle.UnpicklingError,
)  # fmt: skip

Outcome = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class ExportOutcome:
    """What became of one feature file: ``done``, ``skipped`` (was finished) or ``failed``; and where its export is."""

    source: Path
    path: Path
    outcome: Outcome
    error: str = ""


@dataclass(frozen=True)
class ExportReport:
    """What became of all feature files, in the order in which they were given."""

    slides: tuple[ExportOutcome, ...]

    def count(self, outcome: Outcome) -> int:
        """Number of files with that outcome."""
        return sum(s.outcome == outcome for s in self.slides)

    @property
    def failures(self) -> tuple[ExportOutcome, ...]:
        """The files that failed."""
        return tuple(s for s in self.slides if s.outcome == "failed")


def export(
    sources: Sequence[Path | str] | Path | str,
    out: Path | str,
    to: str,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[ExportOutcome], object] | None = None,
) -> ExportReport:
    """Write features in the format of another tool, a file (``zarr``: a folder) a slide, named after it.

    Args:
        sources: feature files, and folders of them.
        out: folder of what is written.
        to: ``zarr``, ``pt``, ``geojson`` or ``trident``; ``docs/formats.md`` describes them.
        options: what the format can be told.
        overwrite: write again what is finished; otherwise only what is missing, was made with other options, or is
            older than what it is made of.
        progress: called with each outcome.

    Raises:
        ConfigError: unknown format, an option that it does not take, two slides of one name, a package that is missing.
        FeatureStoreError: a source is not there; what is wrong with one file is told in the report.
        RunError: the attention is not there.
        StorageError: the folder or its disk does not take the files.
    """
    out, options = Path(out), options or ExportOptions()
    target = _target(to, options)
    paths = feature_files([sources] if isinstance(sources, Path | str) else sources)
    places = _places(paths, out, target.suffix)
    make_folder(out, "give another --out")
    outcomes = []
    for path, place in zip(paths, places, strict=True):
        try:
            outcome = ExportOutcome(path, place, _export_one(path, place, target, overwrite=overwrite))
        except StorageError:
            raise
        except Wsi2dError as error:
            outcome = ExportOutcome(path, place, "failed", str(error))
        if progress is not None:
            progress(outcome)
        outcomes.append(outcome)
    return ExportReport(tuple(outcomes))


def _target(name: str, options: ExportOptions) -> Target:
    kind = load(TARGETS, name, f"export to '{name}':")
    given = {field.name for field in fields(options) if getattr(options, field.name) is not None}
    unknown = sorted(given - kind.takes)
    if unknown:
        raise ConfigError(f"export to {name}: does not take {unknown[0]}; leave it out")
    target: Target = kind(options)
    return target


def _places(paths: Sequence[Path], out: Path, suffix: str) -> list[Path]:
    """Where each export goes."""
    places: dict[Path, Path] = {}
    for path in paths:
        place = out / f"{path.stem}{suffix}"
        if place in places:
            raise ConfigError(f"slide '{path.stem}': {places[place]} and {path} bear this name; export them apart")
        if place.resolve() == path.resolve():
            raise ConfigError(f"out {out}: holds the features themselves; give another --out")
        places[place] = path
    return list(places)


def _export_one(path: Path, place: Path, target: Target, *, overwrite: bool) -> Outcome:
    discard(partial_path(place))
    source = FeatureSource(path)
    made_of = target.made_of(source)
    if not overwrite and place.exists() and _is_finished(source, place, target, made_of):
        return "skipped"
    target.write(source, place)
    return "done"


def _is_finished(source: FeatureSource, place: Path, target: Target, made_of: Sequence[Path]) -> bool:
    """Whether the export that is there need not be made again.

    Raises:
        FeatureStoreError: it is something else, perhaps drawn by hand.
    """
    try:
        finished = target.is_finished(source, place)
    except _WHAT_READING_RAISES as error:
        raise FeatureStoreError(
            f"slide '{source.slide_id}': {place} is there and no export of ours; move it away, or --overwrite"
        ) from error
    return finished and place.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in made_of)
