"""One slide becomes a feature file, whichever process asks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from wsi2d.compute import available_cores, resolve_device, torch_threads
from wsi2d.config import ExtractConfig
from wsi2d.errors import ModelError, SlideError
from wsi2d.features.encoders import Encoder
from wsi2d.features.feeding import encode_batches
from wsi2d.features.outcomes import ExtractProgress, SlideOutcome
from wsi2d.features.settings import is_as_asked, provenance_of
from wsi2d.features.store import FeatureWriter, feature_path
from wsi2d.files import partial_path, remove
from wsi2d.slides.discovery import SlideFile
from wsi2d.slides.patching import PatchGrid, make_patch_grid
from wsi2d.slides.reader import SlideReader, check_slide_id, open_slide
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.slides.tissue import segment_tissue

logger = logging.getLogger(__name__)


def extract_slide(
    file: SlideFile,
    out: Path,
    config: ExtractConfig,
    encoder: Encoder,
    pool: ReaderPool,
    *,
    slide_mpp: float | None = None,
    cohort_mpp: float | None = None,
    progress: ExtractProgress | None = None,
    check: Callable[[], None] = lambda: None,
) -> SlideOutcome:
    """Cut one slide into patches, encode them, and write its feature file.

    A slide that cannot be read is an outcome and no error, and so is one of which the encoder gives no numbers: its
    earlier file, where there is one, goes unless it was made with these very settings.

    Args:
        file: the slide.
        out: folder of the feature files; it exists.
        config: patches, tissue and batch size, with what
            :func:`~wsi2d.features.encoders.recommended.fit_patches` fills in; its ``encoder`` and ``device`` are those
            of ``encoder``, see :func:`wsi2d.features.settings.load_encoder`.
        encoder: on its device.
        pool: processes that read the slide; they may read others before and after it.
        slide_mpp: level-0 pixel size given by the user, µm/px; goes before all else.
        cohort_mpp: likewise from the cohort; goes before the header.
        progress: told when encoding begins and how far it is; not that the slide is finished.
        check: called right before anything bears the feature file's name or is removed under it; what it raises ends
            the work on the slide.

    Returns:
        ``done``, ``empty`` or ``failed``.

    Raises:
        StorageError: the folder or its disk does not take the file.
        TakenOverError: another run has begun the same file.
    """
    try:
        check_slide_id(file.slide_id)  # before anything is made or removed under its name
    except SlideError as error:
        return SlideOutcome(file.slide_id, file.path, "failed", error=str(error))
    path = feature_path(out, file.slide_id)
    remove(partial_path(path))
    try:
        with open_slide(file.path, slide_id=file.slide_id, mpp=slide_mpp, cohort_mpp=cohort_mpp, pool=pool) as reader:
            return _extract(reader, path, config, encoder, progress or ExtractProgress(), check)
    except (SlideError, ModelError) as error:
        check()
        if not is_as_asked(path, config, encoder, slide_mpp if slide_mpp is not None else cohort_mpp):
            remove(path)
        said = f"slide '{file.slide_id}': {error}" if isinstance(error, ModelError) else str(error)
        return SlideOutcome(file.slide_id, file.path, "failed", error=said)


def _extract(
    reader: SlideReader,
    path: Path,
    config: ExtractConfig,
    encoder: Encoder,
    progress: ExtractProgress,
    check: Callable[[], None],
) -> SlideOutcome:
    slide = reader.slide
    tissue = segment_tissue(reader, config.tissue)
    grid = make_patch_grid(slide, tissue, config.patch)
    if not len(grid):
        logger.warning("slide '%s': no tissue found; its feature file is complete and empty", slide.slide_id)
    progress.slide_started(slide.slide_id, len(grid))
    provenance = provenance_of(slide, encoder, config, tissue.threshold)
    writing = FeatureWriter(path, grid, provenance, dim=encoder.dim, dtype=encoder.store_dtype, check=check)
    with writing as writer, encoded_patches(reader, grid, encoder, config) as encoded:
        for features in encoded:
            writer.append(features)
            progress.patches_done(len(features))
    return SlideOutcome(slide.slide_id, slide.path, "done" if len(grid) else "empty", len(grid))


@contextmanager
def encoded_patches(
    reader: SlideReader, grid: PatchGrid, encoder: Encoder, config: ExtractConfig
) -> Iterator[Iterator[np.ndarray]]:
    """Within it, the embeddings of a grid's patches in order, float32 ``[n, D]`` with n at most ``batch_size``.

    Reading processes are ahead of the encoder by two batches; memory does not grow with the slide.
    """
    patches = reader.read_patches(
        grid.coords, size_level0=grid.patch_level0, patch_px=config.patch.patch_px, batch_size=config.batch_size
    )
    encoded = encode_batches(encoder, patches, resolve_device(config.device))
    # Half of the cores encode, the reading processes have the rest: torch's threads spin while they wait for each
    # other, and with one a core that costs several times the work as soon as anyone else wants a core.
    with closing(patches), closing(encoded), torch_threads(max(1, available_cores() // 2)):
        yield encoded
