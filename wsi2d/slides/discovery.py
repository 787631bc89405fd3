"""Which files are slides: folders searched, MRXS and DICOM counted once, one name for one slide."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi2d.errors import SlideError
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.slides.reader_worker import ReaderProcessError

_OPENSLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".vmu", ".czi")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
SLIDE_SUFFIXES = frozenset((*_OPENSLIDE_SUFFIXES, *_IMAGE_SUFFIXES, ".dcm"))


@dataclass(frozen=True)
class SlideFile:
    """A slide that was found and not opened yet: its id and the path to open."""

    slide_id: str
    path: Path


def find_slides(paths: Sequence[Path | str]) -> list[SlideFile]:
    """Slide files among the given files and, recursively, folders, sorted by slide id.

    A slide's id is its file name without suffix. An MRXS file stands for its companion folder, and all files of a
    DICOM series stand for one slide, named after its folder where the folder holds that series alone.

    Raises:
        SlideError: a path does not exist, nothing was found, or two slides bear one name.
    """
    files: list[Path] = []
    for given in map(Path, paths):
        if given.is_dir():
            files.extend(_walk(given))
        elif given.exists():
            files.append(given)
        else:
            raise SlideError(f"slides: {given} does not exist; give a slide file, or a folder of slides")
    files = list({(f.name, f.resolve()): f for f in reversed(files)}.values())  # a file given twice is one slide
    dicom = [f for f in files if f.suffix.lower() == ".dcm"]
    found = [SlideFile(f.stem, f) for f in files if f.suffix.lower() != ".dcm"] + _dicom_slides(dicom)
    if not found:
        raise SlideError(f"slides: none in {', '.join(map(str, paths))}; looked for {' '.join(sorted(SLIDE_SUFFIXES))}")
    _refuse_shared_names(found)
    return sorted(found, key=lambda slide: slide.slide_id)


def _walk(folder: Path) -> Iterable[Path]:
    for root, folders, names in os.walk(folder, followlinks=True):
        stems = {Path(n).stem for n in names if n.lower().endswith(".mrxs")}
        if any(n.endswith(".h5") for n in names):  # pictures of slides, beside their features
            stems.add("thumbnails")
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in stems)
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in SLIDE_SUFFIXES:
                yield Path(root) / name


def _dicom_slides(files: Sequence[Path]) -> list[SlideFile]:
    by_folder: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    with ReaderPool() as pool:
        for file in files:
            by_folder[file.parent][_series(pool, file)].append(file)
    slides = []
    for folder, series in by_folder.items():
        for members in series.values():
            first = min(members)
            alone = len(series) == 1 and len(members) > 1
            slides.append(SlideFile(folder.resolve().name if alone else first.stem, first))
    return slides


def _series(pool: ReaderPool, file: Path) -> str:
    """A DICOM file's series; a file that cannot be opened is a slide of its own, whose failure is told later."""
    try:
        return pool.call("property", str(file), "dicom.SeriesInstanceUID") or str(file)
    except ReaderProcessError:
        return str(file)


def _refuse_shared_names(slides: Iterable[SlideFile]) -> None:
    by_name: dict[str, set[Path]] = defaultdict(set)
    for slide in slides:
        by_name[slide.slide_id].add(slide.path.resolve())
    for name, paths in sorted(by_name.items()):
        if len(paths) > 1:
            shown = " and ".join(str(p) for p in sorted(paths)[:2])
            raise SlideError(f"slide '{name}': two slides bear this name ({shown}); rename one or extract them apart")
