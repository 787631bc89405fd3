"""The settings that decide what a feature file holds: those asked for, and those that a finished file was made with."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from wsi2d.compute import resolve_device
from wsi2d.config import ExtractConfig
from wsi2d.errors import ConfigError, FeatureStoreError
from wsi2d.features.encoders import Encoder, get_encoder
from wsi2d.features.store import FeatureHeader, Provenance, feature_path, read_header
from wsi2d.files import stamp
from wsi2d.slides.discovery import SlideFile
from wsi2d.slides.reader import Slide

logger = logging.getLogger(__name__)


def load_encoder(config: ExtractConfig) -> Encoder:
    """The encoder on its device.

    Raises:
        ConfigError: the encoder or the device is unknown, or patches are too small for it.
        ModelError: its weights are not here, are damaged, or belong to another network.
    """
    encoder = get_encoder(config.encoder).to(resolve_device(config.device))
    if config.patch.patch_px < encoder.min_patch_px:
        raise ConfigError(
            f"patch_px {config.patch.patch_px}: encoder '{encoder.name}' needs at least {encoder.min_patch_px}"
        )
    return encoder


def provenance_of(slide: Slide, encoder: Encoder, config: ExtractConfig, threshold: float) -> Provenance:
    """What a slide's feature file says of its origin; ``threshold`` is that of its tissue."""
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


def finished_slides(
    slides: Iterable[SlideFile], out: Path, config: ExtractConfig, encoder: Encoder, given: Mapping[str, float | None]
) -> set[str]:
    """Ids of slides whose file is complete and was made with these very settings.

    A file that cannot be read is simply redone; one that is sound but made otherwise stops the run, since mixing
    settings in one folder would go unnoticed.

    Args:
        slides: whose files are looked for.
        out: folder of the feature files.
        config: what is asked for.
        encoder: likewise.
        given: level-0 pixel sizes given by the user or the cohort, µm/px, by slide id; None where it is the header's.

    Raises:
        ConfigError: a file was made with other settings.
    """
    finished, by_hand = set(), []
    for file in slides:
        path = feature_path(out, file.slide_id)
        if path.parent != out or stamp(path) is None:  # an id that leads elsewhere, or is too long, fails in its turn
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


def is_as_asked(path: Path, config: ExtractConfig, encoder: Encoder, given_mpp: float | None) -> bool:
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
