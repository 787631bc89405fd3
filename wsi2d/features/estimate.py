"""What an extraction would take: patches, bytes and time, from the slides themselves and a measured sample."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from wsi2d.config import ExtractConfig
from wsi2d.errors import SlideError
from wsi2d.features.encoders import Encoder
from wsi2d.features.encoders.recommended import fit_patches
from wsi2d.features.extract import given_mpp
from wsi2d.features.extract_slide import encoded_patches
from wsi2d.features.outcomes import ExtractProgress, SlideOutcome
from wsi2d.features.settings import finished_slides, load_encoder, provenance_of
from wsi2d.features.store import file_bytes
from wsi2d.slides.discovery import SlideFile
from wsi2d.slides.patching import PatchGrid, make_patch_grid
from wsi2d.slides.pixel_size import check_mpp
from wsi2d.slides.reader import SlideReader, open_slide
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.slides.tissue import segment_tissue

_SAMPLED_SLIDES = 5
_SAMPLED_BATCHES = 8
_SAMPLED_S = 5.0  # a slide's sample ends with the batch that is done after it


@dataclass(frozen=True)
class SlideEstimate:
    """What one slide would take.

    Attributes:
        slide_id, path: the slide.
        state: ``to do``, ``empty`` (no tissue: a file without patches), ``finished`` (nothing to do) or ``failed``.
        patches, bytes: of its feature file; 0 where there is nothing to do.
        seconds: to find its tissue, as measured, and to read and encode its patches, as estimated.
        error: why it failed.
    """

    slide_id: str
    path: Path
    state: Literal["to do", "empty", "finished", "failed"]
    patches: int = 0
    bytes: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class RateSample:
    """Patches that were really read and encoded.

    Attributes:
        slides, patches: how many.
        lowest, median, highest: patches per second, over slides.
    """

    slides: int
    patches: int
    lowest: float
    median: float
    highest: float


@dataclass(frozen=True)
class ExtractEstimate:
    """What an extraction would take.

    Attributes:
        slides: in order of their ids.
        sample: what the times were estimated from; None where no patch is to be encoded.
        fastest_s, slowest_s: the time in all if every slide were as quick, or as slow, as the extreme of the sample.
    """

    slides: tuple[SlideEstimate, ...]
    sample: RateSample | None
    fastest_s: float
    slowest_s: float

    @property
    def patches(self) -> int:
        """To be encoded."""
        return sum(s.patches for s in self.slides)

    @property
    def bytes(self) -> int:
        """To be written."""
        return sum(s.bytes for s in self.slides)

    @property
    def seconds(self) -> float:
        """In all."""
        return sum(s.seconds for s in self.slides)

    @property
    def failures(self) -> tuple[SlideEstimate, ...]:
        """The slides that cannot be read."""
        return tuple(s for s in self.slides if s.state == "failed")


def estimate(
    slides: Sequence[SlideFile],
    out: Path | str,
    config: ExtractConfig | None = None,
    *,
    slide_mpp: float | None = None,
    cohort_mpp: Mapping[str, float] | None = None,
    overwrite: bool = False,
    progress: ExtractProgress | None = None,
) -> ExtractEstimate:
    """What :func:`wsi2d.features.extract.extract` would take with the same arguments; writes nothing.

    The tissue of every slide is found, as in an extraction. From some slides a run of patches is read and encoded, with
    the same processes and the same encoder, and timed.

    Raises:
        ConfigError, ModelError: as ``extract`` raises them.
        SlideError: an impossible ``slide_mpp``.
    """
    config, progress, out = fit_patches(config or ExtractConfig()), progress or ExtractProgress(), Path(out)
    check_mpp(slide_mpp, "slide_mpp:")
    encoder = load_encoder(config)
    given = given_mpp(slides, slide_mpp, cohort_mpp)
    finished = set() if overwrite else finished_slides(slides, out, config, encoder, given)
    to_do = [f.slide_id for f in slides if f.slide_id not in finished]
    places = np.linspace(0, len(to_do) - 1, min(len(to_do), _SAMPLED_SLIDES)).round().astype(int)
    with ReaderPool(config.workers, limit_s=config.read_limit_s) as pool:
        survey = _Survey(config, encoder, pool, {to_do[i] for i in places})
        for file in slides:
            if file.slide_id in finished:
                survey.found.append(SlideEstimate(file.slide_id, file.path, "finished"))
            else:
                survey.look_at(file, slide_mpp, (cohort_mpp or {}).get(file.slide_id))
            progress.slide_finished(SlideOutcome(file.slide_id, file.path, "skipped"))
    return survey.result()


class _Survey:
    """Looks at slides one after the other.

    Args:
        config: as for an extraction.
        encoder: on its device.
        pool: processes that read.
        sampled: ids of slides that a sample is taken of, or of the next one that has patches.
    """

    def __init__(self, config: ExtractConfig, encoder: Encoder, pool: ReaderPool, sampled: set[str]) -> None:
        self.found: list[SlideEstimate] = []
        self._config, self._encoder, self._pool, self._sampled = config, encoder, pool, sampled
        self._owed = 0
        self._rates: dict[str, float] = {}
        self._patches = 0

    def look_at(self, file: SlideFile, slide_mpp: float | None, cohort_mpp: float | None) -> None:
        """One slide."""
        self._owed += file.slide_id in self._sampled
        start = time.perf_counter()
        try:
            with open_slide(
                file.path, slide_id=file.slide_id, mpp=slide_mpp, cohort_mpp=cohort_mpp, pool=self._pool
            ) as reader:
                tissue = segment_tissue(reader, self._config.tissue)
                grid = make_patch_grid(reader.slide, tissue, self._config.patch)
                seconds = time.perf_counter() - start
                if self._owed and len(grid):
                    self._sample(reader, grid)
                    self._owed -= 1
                provenance = provenance_of(reader.slide, self._encoder, self._config, tissue.threshold)
        except SlideError as error:
            self.found.append(SlideEstimate(file.slide_id, file.path, "failed", error=str(error)))
            return
        size = file_bytes(grid, provenance, dim=self._encoder.dim, dtype=self._encoder.store_dtype)
        state: Literal["to do", "empty"] = "to do" if len(grid) else "empty"
        self.found.append(SlideEstimate(file.slide_id, file.path, state, len(grid), size, seconds))

    def result(self) -> ExtractEstimate:
        """With the times to read and encode, which are known once all slides have been seen."""
        rates = sorted(self._rates.values())
        if not rates:
            seconds = sum(s.seconds for s in self.found)
            return ExtractEstimate(tuple(self.found), None, seconds, seconds)
        sample = RateSample(len(rates), self._patches, rates[0], statistics.median(rates), rates[-1])
        tissue_s, patches = sum(s.seconds for s in self.found), sum(s.patches for s in self.found)
        slides = tuple(
            replace(s, seconds=s.seconds + s.patches / self._rates.get(s.slide_id, sample.median)) for s in self.found
        )
        return ExtractEstimate(slides, sample, tissue_s + patches / sample.highest, tissue_s + patches / sample.lowest)

    def _sample(self, reader: SlideReader, grid: PatchGrid) -> None:
        """Time a run of patches in the middle of a slide; before the first, a batch that is not counted."""
        if not self._rates:
            self._timed(reader, grid, batches=1)
        patches, seconds = self._timed(reader, grid, batches=_SAMPLED_BATCHES)
        self._rates[reader.slide.slide_id] = patches / seconds
        self._patches += patches

    def _timed(self, reader: SlideReader, grid: PatchGrid, *, batches: int) -> tuple[int, float]:
        """Patches that were encoded, and the seconds that took."""
        count = min(len(grid), batches * self._config.batch_size)
        first = (len(grid) - count) // 2
        part = replace(grid, coords=grid.coords[first:][:count], index=grid.index[first:][:count])
        done, start = 0, time.perf_counter()
        with encoded_patches(reader, part, self._encoder, self._config) as encoded:
            for features in encoded:
                done += len(features)
                if time.perf_counter() - start > _SAMPLED_S:
                    break
            return done, time.perf_counter() - start
