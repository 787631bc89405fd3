"""Slides become feature files: finished ones are skipped, bad ones named, the rest goes on."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from wsi2d.compute import available_cores, map_ahead, resolve_device, torch_threads
from wsi2d.config import ExtractConfig
from wsi2d.errors import ConfigError, FeatureStoreError, SlideError
from wsi2d.features.encoders import Encoder, get_encoder
from wsi2d.features.store import FeatureHeader, FeatureWriter, Provenance, feature_path, read_header
from wsi2d.files import make_folder, partial_path, remove, write_text
from wsi2d.slides.discovery import SlideFile
from wsi2d.slides.patching import PatchGrid, make_patch_grid
from wsi2d.slides.pixel_size import check_mpp
from wsi2d.slides.reader import Slide, SlideReader, open_slide
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.slides.tissue import segment_tissue

logger = logging.getLogger(__name__)

Outcome = Literal["done", "empty", "skipped", "failed"]


@dataclass(frozen=True)
class SlideOutcome:
    """What became of one slide: ``done``, ``empty`` (no tissue), ``skipped`` (was finished) or ``failed``."""

    slide_id: str
    path: Path
    outcome: Outcome
    patches: int = 0
    error: str = ""


@dataclass(frozen=True)
class ExtractReport:
    """What became of all slides, in order of their ids."""

    slides: tuple[SlideOutcome, ...]

    def count(self, outcome: Outcome) -> int:
        """Number of slides with that outcome."""
        return sum(s.outcome == outcome for s in self.slides)

    @property
    def failures(self) -> tuple[SlideOutcome, ...]:
        """The slides that failed."""
        return tuple(s for s in self.slides if s.outcome == "failed")


class ExtractProgress:
    """Told what happens; the base class says nothing. The command line draws bars from it."""

    def slide_started(self, slide_id: str, patches: int) -> None:
        """A slide's patches are known and their encoding begins."""

    def patches_done(self, count: int) -> None:
        """That many more patches of the current slide are encoded."""

    def slide_finished(self, outcome: SlideOutcome) -> None:
        """A slide is done with, one way or the other."""


def extract(
    slides: Sequence[SlideFile],
    out: Path | str,
    config: ExtractConfig | None = None,
    *,
    slide_mpp: float | None = None,
    cohort_mpp: Mapping[str, float] | None = None,
    overwrite: bool = False,
    progress: ExtractProgress | None = None,
) -> ExtractReport:
    """Cut slides into patches, encode them, and write one feature file a slide into ``out``.

    Args:
        slides: what :func:`wsi2d.slides.discovery.find_slides` found.
        out: folder of the feature files; also gets ``failures.csv`` where a slide failed.
        config: encoder, patches, tissue, batch size, reading processes and device.
        slide_mpp: level-0 pixel size of every slide, µm/px; goes before all else.
        cohort_mpp: level-0 pixel size by slide id, µm/px; goes before the header.
        overwrite: redo finished slides too; where one fails now, its file stays if it was made with these settings.
        progress: told what happens.

    Raises:
        ConfigError: unknown encoder, unfit patch size, or finished files made with other settings.
        SlideError: an impossible ``slide_mpp``; what is wrong with one slide is told in the report.
        StorageError: the folder or its disk does not take the files.
    """
    config, progress, out = config or ExtractConfig(), progress or ExtractProgress(), Path(out)
    check_mpp(slide_mpp, "slide_mpp:")
    encoder = get_encoder(config.encoder).to(resolve_device(config.device))
    if config.patch.patch_px < encoder.min_patch_px:
        raise ConfigError(
            f"patch_px {config.patch.patch_px}: encoder '{encoder.name}' needs at least {encoder.min_patch_px}"
        )
    make_folder(out, "give another --out")
    given = {f.slide_id: slide_mpp if slide_mpp is not None else (cohort_mpp or {}).get(f.slide_id) for f in slides}
    finished = set() if overwrite else _finished(slides, out, config, encoder, given)
    outcomes = []
    with ReaderPool(config.workers, limit_s=config.read_limit_s) as pool:
        for file in slides:
            remove(partial_path(feature_path(out, file.slide_id)))
            if file.slide_id in finished:
                outcome = SlideOutcome(file.slide_id, file.path, "skipped")
            else:
                try:
                    with open_slide(
                        file.path,
                        slide_id=file.slide_id,
                        mpp=slide_mpp,
                        cohort_mpp=(cohort_mpp or {}).get(file.slide_id),
                        pool=pool,
                    ) as reader:
                        outcome = _extract_slide(reader, out, config, encoder, progress)
                except SlideError as error:
                    outcome = SlideOutcome(file.slide_id, file.path, "failed", error=str(error))
                    earlier = feature_path(out, file.slide_id)
                    if not _is_as_asked(earlier, config, encoder, given[file.slide_id]):
                        remove(earlier)
            progress.slide_finished(outcome)
            outcomes.append(outcome)
    report = ExtractReport(tuple(outcomes))
    _write_failures(out / "failures.csv", report.failures)
    return report


def _extract_slide(
    reader: SlideReader, out: Path, config: ExtractConfig, encoder: Encoder, progress: ExtractProgress
) -> SlideOutcome:
    slide = reader.slide
    tissue = segment_tissue(reader, config.tissue)
    grid = make_patch_grid(slide, tissue, config.patch)
    if not len(grid):
        logger.warning("slide '%s': no tissue found; its feature file is complete and empty", slide.slide_id)
    progress.slide_started(slide.slide_id, len(grid))
    provenance = _provenance(slide, encoder, config, tissue.threshold)
    path = feature_path(out, slide.slide_id)
    writing = FeatureWriter(path, grid, provenance, dim=encoder.dim, dtype=encoder.store_dtype)
    # Half of the cores encode, the reading processes have the rest: torch's threads spin while they wait for each
    # other, and with one a core that costs several times the work as soon as anyone else wants a core.
    with writing as writer, torch_threads(max(1, available_cores() // 2)):
        for batch in _batches(_patches(reader, grid, config), config.batch_size):
            writer.append(encoder.encode(torch.from_numpy(np.stack(batch))).cpu().numpy())
            progress.patches_done(len(batch))
    return SlideOutcome(slide.slide_id, slide.path, "done" if len(grid) else "empty", len(grid))


def _patches(reader: SlideReader, grid: PatchGrid, config: ExtractConfig) -> Iterable[np.ndarray]:
    read = partial(reader.read_patch, size_level0=grid.patch_level0, patch_px=grid.patch_px)
    corners = ((int(x), int(y)) for x, y in grid.coords)
    return map_ahead(lambda xy: read(*xy), corners, workers=config.workers, ahead=2 * config.batch_size)


def _batches(items: Iterable[np.ndarray], size: int) -> Iterable[list[np.ndarray]]:
    batch: list[np.ndarray] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _provenance(slide: Slide, encoder: Encoder, config: ExtractConfig, threshold: float) -> Provenance:
    tissue = {**_chosen_by(config), "threshold": round(threshold, 6)}
    return Provenance(
        slide_id=slide.slide_id,
        encoder=encoder.name,
        encoder_hash=encoder.fingerprint,
        slide_mpp=slide.mpp,
        mpp_source=slide.mpp_source,
        level0_width=slide.width,
        level0_height=slide.height,
        tissue=json.dumps(tissue),
    )


def _chosen_by(config: ExtractConfig) -> dict[str, float]:
    """The settings that choose a slide's patches, as they are kept with the features."""
    return {**config.tissue.model_dump(), "min_tissue": config.patch.min_tissue}


def _as_configured(chosen_by: Mapping[str, float]) -> dict[str, float]:
    """The same under their names in the configuration: tissue and patches both have an ``mpp``."""
    return {f"{'patch' if key == 'min_tissue' else 'tissue'}.{key}": value for key, value in chosen_by.items()}


def _finished(
    slides: Iterable[SlideFile], out: Path, config: ExtractConfig, encoder: Encoder, given: Mapping[str, float | None]
) -> set[str]:
    """Ids of slides whose file is complete and was made with these very settings.

    A file that cannot be read is simply redone; one that is sound but made otherwise stops the run, since mixing
    settings in one folder would go unnoticed.
    """
    finished, by_hand = set(), []
    for file in slides:
        path = feature_path(out, file.slide_id)
        if not path.exists():
            continue
        try:
            header = read_header(path)
        except FeatureStoreError as error:
            logger.warning("%s", error)
            continue
        differs = _difference(header, config, encoder, given[file.slide_id])
        if differs:
            raise ConfigError(f"{path}: was made with {differs}; use another --out, or --overwrite")
        if given[file.slide_id] is None and header.provenance.mpp_source in {"user", "cohort"}:
            by_hand.append(file.slide_id)
        finished.add(file.slide_id)
    if by_hand:
        logger.warning(
            "%d finished slides were made with a pixel size given then and not now (the first is '%s'); they are kept, "
            "--overwrite does them again", len(by_hand), by_hand[0],
        )  # fmt: skip
    return finished


def _is_as_asked(path: Path, config: ExtractConfig, encoder: Encoder, given_mpp: float | None) -> bool:
    """Whether a feature file is there, sound, and was made with these very settings."""
    try:
        return not _difference(read_header(path), config, encoder, given_mpp)
    except FeatureStoreError:
        return False


def _difference(header: FeatureHeader, config: ExtractConfig, encoder: Encoder, given_mpp: float | None) -> str:
    """The first setting in which a file differs from what is asked, as ``patch.mpp 0.5, not 0.6``; empty for none."""
    provenance, grid = header.provenance, header.geometry
    made = {
        "encoder": provenance.encoder_hash,
        "patch.patch_px": grid.patch_px,
        "patch.mpp": grid.mpp,
        "patch.overlap_px": grid.overlap_px,
        **_as_configured(json.loads(provenance.tissue)),
        "slide_mpp": provenance.slide_mpp,
    }
    asked = {
        "encoder": encoder.fingerprint,
        "patch.patch_px": config.patch.patch_px,
        "patch.mpp": config.patch.mpp,
        "patch.overlap_px": config.patch.overlap_px,
        **_as_configured(_chosen_by(config)),
    }
    if given_mpp is not None:
        asked["slide_mpp"] = given_mpp
    return next((f"{key} {made.get(key)}, not {asked[key]}" for key in asked if made.get(key) != asked[key]), "")


def _write_failures(path: Path, failures: Sequence[SlideOutcome]) -> None:
    remove(partial_path(path))
    if not failures:
        remove(path)
        return
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("slide_id", "path", "error"))
    rows.writerows((f.slide_id, str(f.path), f.error) for f in failures)
    write_text(path, table.getvalue().encode("utf-8", "backslashreplace").decode())
