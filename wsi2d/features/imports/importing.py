"""A folder of another tool's features becomes feature files of ours: finished ones are skipped, bad ones named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wsi2d.compute import map_ahead
from wsi2d.errors import ConfigError, FeatureStoreError, ForeignFileError, SlideError, TakenOverError, one_line
from wsi2d.features.failures import list_failures
from wsi2d.features.hdf5 import has_old_layout
from wsi2d.features.imports.claims import NO_CLAIMS, Claims
from wsi2d.features.imports.folders import PeerFolder, find_peer_files
from wsi2d.features.imports.isolated import PeerReader
from wsi2d.features.imports.reading import patches_file
from wsi2d.features.locks import Locks, clear_partial
from wsi2d.features.outcomes import Outcome, Report, SlideOutcome
from wsi2d.features.spec import FeatureSpec, spec_of
from wsi2d.features.store import FeatureHeader, feature_path, read_header
from wsi2d.files import Stamp, make_folder, partial_path, remove, stamp
from wsi2d.slides.reader import check_slide_id

logger = logging.getLogger(__name__)

SCHEMA = "wsi2d-import/1"
_SHOWN = 5


@dataclass(frozen=True)
class SlideImport(SlideOutcome):
    """What became of one slide, and what was found on it.

    Attributes:
        header: of the feature file; None where the slide failed.
    """

    header: FeatureHeader | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not known is None."""
        values: dict[str, Any] = {"slide_id": self.slide_id, "path": str(self.path), "outcome": self.outcome}
        if self.header is None or self.header.provenance.imported is None:
            return {**values, "error": self.error}
        made, grid, imported = self.header.provenance, self.header.geometry, self.header.provenance.imported
        unit = "um" if made.mpp_source == "micrometres" else "px"
        return {
            **values,
            "tool": imported.tool,
            "tool_version": imported.version,
            "encoder": made.encoder,
            "mpp": grid.mpp,
            "patch_px": grid.patch_px,
            "overlap_px": grid.overlap_px,
            "dim": self.header.dim,
            "unit": unit,
            "pitch": grid.stride_level0,
            "pitch_from": imported.pitch_from,
            "grid_shape": list(grid.shape),
            "origin": list(grid.origin),
            "size": [made.level0_width, made.level0_height],
            "size_from": imported.level0_size,
            "slide_mpp": made.slide_mpp if unit == "px" else None,
            **imported.counts,
            "largest_shift": imported.largest_shift,
        }


@dataclass(frozen=True)
class ImportReport(Report[SlideImport]):
    """What became of all slides, in order of their ids.

    Attributes:
        tool: who wrote them.
        spec: what the imported features are; None where no slide could be read.
    """

    tool: str
    spec: FeatureSpec | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        spec = None if self.spec is None else asdict(self.spec)
        return {"schema": SCHEMA, "tool": self.tool, "spec": spec, "slides": [s.as_dict() for s in self.slides]}


class ImportProgress:
    """Told what happens; the base class says nothing. The command line draws bars from it."""

    def started(self, what: str, slides: int) -> None:
        """``reading`` (coordinates, of so many slides) or ``writing`` begins."""

    def slide_done(self) -> None:
        """One more slide is read or written."""


def import_features(
    source: Path | str,
    out: Path | str | None,
    *,
    claims: Claims = NO_CLAIMS,
    patches: Path | str | None = None,
    check: bool = False,
    overwrite: bool = False,
    workers: int = 2,
    progress: ImportProgress | None = None,
) -> ImportReport:
    """Write features that TRIDENT, CLAM, STAMP or AtlasPatch extracted as feature files of ours.

    Several runs may write to one folder: each slide is written by one of them, and what another has in hand is left to
    it.

    Args:
        source: the tool's root folder, the folder with the features, or one file.
        out: folder of the feature files; also gets ``failures.csv`` where a slide failed. None only with ``check``.
        claims: what the user says of the features where their files do not.
        patches: folder of the files with coordinates, where the tool keeps them apart and they are not found (CLAM).
        check: read and report only.
        overwrite: import finished slides again.
        workers: processes that read files.
        progress: told what happens.

    Raises:
        FeatureStoreError: the source holds no features, or those of several encoders; what is wrong with one slide is
            told in the report.
        ConfigError: ``out`` holds other features, with which these must not be mixed.
        StorageError: the folder or its disk does not take the files.
    """
    source = Path(source)
    folder = None if out is None else Path(out)
    if folder is None and not check:
        raise ConfigError("import: there is no folder to write to; give --out, or --check to read only")
    with PeerReader(workers) as reader:
        apart = None if patches is None else Path(patches)
        found = find_peer_files(source, reader, encoder=claims.encoder, patches=apart)
        claims = replace(claims, encoder=found.encoder or claims.encoder)
        job = _Job(found, claims, reader, workers, progress or ImportProgress())
        if folder is not None:
            _refuse_strangers(folder, found)
        before = {} if folder is None else {name: stamp(feature_path(folder, name)) for name in found.files}
        finished = {} if folder is None or overwrite else _finished(folder, found, claims)
        slides = job.inspect({slide_id: path for slide_id, path in found.files.items() if slide_id not in finished})
        spec = _common_spec([*slides.values(), *finished.values()], source)
        slides = {slide_id: _alike(slide, spec) for slide_id, slide in slides.items()}
        if folder is not None:
            _refuse_mixing(folder, slides, spec)
            if not check:
                make_folder(folder, "give another --out")
                _clear(folder, finished)
                slides |= job.write(folder, slides, before)
                _remove_unlike(folder, slides.values(), spec)
    slides |= finished
    _name_elsewhere(slides)
    report = ImportReport(tuple(slides[slide_id] for slide_id in found.files), found.tool, spec)
    if not check and folder is not None:
        list_failures(folder, report.slides)
    return report


@dataclass(frozen=True)
class _Job:
    """How files are read and written."""

    found: PeerFolder
    claims: Claims
    reader: PeerReader
    workers: int
    progress: ImportProgress

    def inspect(self, files: Mapping[str, Path]) -> dict[str, SlideImport]:
        """Read coordinates."""
        return self._each("reading", files, lambda _, path: self.reader.inspect(path, self.found.patches, self.claims))

    def write(
        self, out: Path, slides: Mapping[str, SlideImport], before: Mapping[str, Stamp | None]
    ) -> dict[str, SlideImport]:
        """Write the slides that could be read, unless another run does, or has since it was looked ``before``."""

        def convert(slide_id: str, path: Path) -> FeatureHeader | SlideImport:
            try:
                check_slide_id(slide_id)
            except SlideError as error:
                raise FeatureStoreError(str(error)) from error
            to, elsewhere = feature_path(out, slide_id), SlideImport(slide_id, path, "elsewhere")
            with Locks() as locks:  # the thread's own: it holds its lock until its half-written file is gone
                lock = locks.take(to)
                if lock is None:
                    return elsewhere
                remove(partial_path(to))  # of a run that was killed
                if stamp(to) != before[slide_id]:
                    made = _finished(out, replace(self.found, files={slide_id: path}), self.claims)
                    if made:
                        return made[slide_id]
                try:
                    return self.reader.convert(path, to, self.found.patches, self.claims)
                except TakenOverError:
                    return elsewhere
                finally:
                    if lock.is_mine():
                        remove(partial_path(to))  # of a process that was killed now

        sound = {slide_id: slide.path for slide_id, slide in slides.items() if slide.outcome != "failed"}
        done: dict[bool, Outcome] = {True: "done", False: "empty"}
        return {
            slide_id: slide if slide.outcome != "checked" else replace(slide, outcome=done[slide.patches > 0])
            for slide_id, slide in self._each("writing", sound, convert).items()
        }

    def _each(
        self, what: str, files: Mapping[str, Path], read: Callable[[str, Path], FeatureHeader | SlideImport]
    ) -> dict[str, SlideImport]:
        """Do something with each file, some at a time; what is wrong with one is its outcome."""

        def one(item: tuple[str, Path]) -> SlideImport:
            slide_id, path = item
            try:
                header = read(slide_id, path)
            except FeatureStoreError as error:
                return SlideImport(slide_id, path, "failed", error=str(error))
            if isinstance(header, SlideImport):
                return header
            return SlideImport(slide_id, path, "checked", header.patches, header=header)

        self.progress.started(what, len(files))
        slides = {}
        for slide in map_ahead(one, files.items(), workers=self.workers, ahead=2 * self.workers):
            slides[slide.slide_id] = slide
            self.progress.slide_done()
        return slides


def _name_elsewhere(slides: Mapping[str, SlideImport]) -> None:
    names = [slide_id for slide_id, slide in slides.items() if slide.outcome == "elsewhere"]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        said = ", ".join(f"'{name}'" for name in names[:_SHOWN])
        logger.warning("another run is writing %s%s; left to it", said, more)


def _clear(out: Path, finished: Iterable[str]) -> None:
    """Remove what killed runs left: their locks, and their half of what is finished by now."""
    with Locks() as locks:
        locks.clear(out)
        for slide_id in finished:
            clear_partial(feature_path(out, slide_id), locks)


def _common_spec(slides: Iterable[SlideImport], source: Path) -> FeatureSpec | None:
    """What most slides' features are; None where no slide has any."""
    groups: list[list[FeatureSpec]] = []
    for slide in slides:
        if slide.header is None or not slide.header.patches:
            continue
        spec = spec_of(slide.header)
        group = next((g for g in groups if g[0].difference(spec) is None), None)
        if group is None:
            groups.append([spec])
        else:
            group.append(spec)
    if not groups:
        return None
    groups.sort(key=len, reverse=True)
    if len(groups) > 1 and len(groups[0]) == len(groups[1]):
        raise FeatureStoreError(
            f"features {source}: as many slides have {groups[0][0].difference(groups[1][0])} as not; give the files of "
            "each kind an --out of their own"
        )
    return max(groups[0], key=lambda spec: spec.overlap_px is not None)


def _alike(slide: SlideImport, spec: FeatureSpec | None) -> SlideImport:
    """The slide, failed if its features are others than most slides'."""
    if spec is None or slide.header is None or not slide.header.patches:
        return slide
    difference = spec.difference(spec_of(slide.header))
    if difference is None:
        return slide
    error = f"{slide.path}: has {difference} as most slides; import it with an --out of its own"
    return SlideImport(slide.slide_id, slide.path, "failed", error=error)


def _refuse_mixing(out: Path, todo: Mapping[str, SlideImport], spec: FeatureSpec | None) -> None:
    """Features go together in one folder only if they are alike, as far as is known of both."""
    if spec is None:
        return
    for path in sorted(out.glob("*.h5")) if out.is_dir() else ():
        if path.stem in todo or path.name.startswith(".") or has_old_layout(path):
            continue
        try:
            header = read_header(path)
        except FeatureStoreError as error:
            logger.warning("%s", error)
            continue
        difference = spec_of(header).difference(spec) if header.patches else None
        if difference is not None:
            raise ConfigError(
                f"out {out}: the slides to import have {difference} as '{path.stem}' there; give another --out, or say "
                "with --encoder, --mpp and --patch-px what their files do not"
            )


def _finished(out: Path, found: PeerFolder, claims: Claims) -> dict[str, SlideImport]:
    """Slides whose file is complete, no older than what it was made of, and says all that the user says now; others are
    imported again."""
    finished = {}
    for slide_id, source in found.files.items():
        path = feature_path(out, slide_id)
        if not path.exists():
            continue
        try:
            header = read_header(path)
        except FeatureStoreError as error:
            logger.warning("%s", error)
            continue
        imported = header.provenance.imported
        if imported is None or imported.tool != found.tool:
            made = "was extracted by wsi2d" if imported is None else f"was imported from {imported.tool}"
            raise ConfigError(f"{path}: {made}, and {source} is {found.tool}'s; use another --out, or --overwrite")
        try:
            now = claims.fill_header(header, str(path))
        except FeatureStoreError as error:
            raise ConfigError(f"{one_line(str(error)).partition(';')[0]}; use another --out, or --overwrite") from error
        if now == header and not _is_outdated(path, (source, patches_file(source, found.patches))):
            finished[slide_id] = SlideImport(slide_id, source, "skipped", header.patches, header=header)
    return finished


def _is_outdated(path: Path, made_of: Iterable[Path | None]) -> bool:
    """Whether a file is older than one of those it was made of."""
    stamps = [stamp(made) for made in made_of if made is not None]
    return any(made is not None and made[-1] > path.stat().st_mtime_ns for made in stamps)


def _refuse_strangers(out: Path, found: PeerFolder) -> None:
    """No file that is not ours is written over, least of all the tool's own."""
    for slide_id in found.files:
        path = feature_path(out, slide_id)
        if not path.exists():
            continue
        try:
            foreign = has_old_layout(path)
            if not foreign:
                read_header(path)
        except ForeignFileError:
            foreign = True
        except FeatureStoreError:
            continue  # damaged; it is written again
        if foreign:
            raise ConfigError(f"out {out}: its {path.name} is no feature file of wsi2d; give another --out")


def _remove_unlike(out: Path, slides: Iterable[SlideImport], spec: FeatureSpec | None) -> None:
    """An earlier file of a slide that failed now stays if it is sound and like the others, as after an extraction."""
    for slide in slides:
        path = feature_path(out, slide.slide_id)
        if slide.outcome != "failed" or not path.exists():
            continue
        try:
            header = read_header(path)
        except FeatureStoreError:
            remove(path)
            continue
        if spec is not None and header.patches and spec.difference(spec_of(header)) is not None:
            remove(path)
