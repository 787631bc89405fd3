"""Pictures beside features: what was cut from each slide, drawn while extraction goes on."""

from __future__ import annotations

import json
from pathlib import Path

from wsi2d.config import TissueConfig, validate
from wsi2d.errors import FeatureStoreError, Wsi2dError
from wsi2d.explain.canvas import save_figure
from wsi2d.explain.tissue_picture import draw, take
from wsi2d.features.outcomes import ExtractProgress, SlideOutcome
from wsi2d.features.store import feature_path, read_grid, read_header
from wsi2d.files import remove
from wsi2d.slides.reader import open_slide
from wsi2d.slides.reader_pool import READ_LIMIT_S, ReaderPool
from wsi2d.slides.tissue import segment_tissue

FOLDER = "thumbnails"


def thumbnail_path(features: Path, slide_id: str) -> Path:
    """Where the picture of a slide lies, beside the folder's feature files."""
    return features / FOLDER / f"{slide_id}.jpg"


class Thumbnails(ExtractProgress):
    """Draws every slide that extraction is done with and that has no picture yet, or one older than its features.

    It is the ``progress`` of an extraction: ``extract(slides, out, progress=Thumbnails(out))``. Slides that were
    finished before get their pictures without being extracted again.

    Args:
        features: the folder that is extracted into; it gets ``thumbnails/<slide_id>.jpg``.
        progress: told what happens as well.
        limit_s: seconds that opening a slide or reading a region of it may take.

    Attributes:
        drawn: number of pictures drawn.
        failures: a line for each slide that could not be drawn.
    """

    def __init__(
        self, features: Path | str, progress: ExtractProgress | None = None, *, limit_s: float = READ_LIMIT_S
    ) -> None:
        self._features, self._progress, self._limit_s = Path(features), progress or ExtractProgress(), limit_s
        self.drawn = 0
        self.failures: list[str] = []

    def slide_started(self, slide_id: str, patches: int) -> None:
        """Passed on."""
        self._progress.slide_started(slide_id, patches)

    def patches_done(self, count: int) -> None:
        """Passed on."""
        self._progress.patches_done(count)

    def slide_finished(self, outcome: SlideOutcome) -> None:
        """The slide is drawn if need be, and the word is passed on."""
        try:
            self._bring_up_to_date(outcome)
        except Wsi2dError as error:
            self.failures.append(f"thumbnail: {error}")
        self._progress.slide_finished(outcome)

    def _bring_up_to_date(self, outcome: SlideOutcome) -> None:
        picture = thumbnail_path(self._features, outcome.slide_id)
        features = feature_path(self._features, outcome.slide_id)
        if not features.exists():
            remove(picture)
        elif not picture.exists() or picture.stat().st_mtime_ns < features.stat().st_mtime_ns:
            write_thumbnail(outcome.path, features, picture, limit_s=self._limit_s)
            self.drawn += 1


def write_thumbnail(slide: Path, features: Path, out: Path, *, limit_s: float = READ_LIMIT_S) -> None:
    """Draw a slide with the outline of its tissue and the patches that its feature file holds.

    Args:
        slide: the slide file.
        features: its feature file; the tissue is found as that file says, with its pixel size.
        out: JPEG, PNG, PDF or SVG to write.
        limit_s: seconds that opening the slide or reading a region of it may take.

    Raises:
        FeatureStoreError: the feature file is damaged, or of a slide of another size.
        SlideError: the slide cannot be read.
        StorageError: the picture cannot be written.
    """
    made, grid = read_header(features).provenance, read_grid(features)
    chosen_by = {name: value for name, value in json.loads(made.tissue).items() if name in TissueConfig.model_fields}
    config = validate(TissueConfig, chosen_by, source=f"in {features}")
    with (
        ReaderPool(limit_s=limit_s) as pool,
        open_slide(slide, slide_id=made.slide_id, mpp=made.slide_mpp, pool=pool) as reader,
    ):
        size = reader.slide.width, reader.slide.height
        if size != (made.level0_width, made.level0_height):
            raise FeatureStoreError(
                f"{features}: was made of {made.level0_width}×{made.level0_height} px, {slide} has "
                f"{size[0]}×{size[1]}; extract the slide again (--overwrite)"
            )
        picture = take(reader, segment_tissue(reader, config), grid)
    save_figure(draw(picture), out)
