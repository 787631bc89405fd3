"""Where a run's models look on a slide: the fold that did not see it, or all folds for a new slide."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi2d.config import ExtractConfig, TissueConfig, nearest, validate
from wsi2d.data.bags import FeatureSpec, load_bag, read_spec
from wsi2d.data.cohort import CohortSlide
from wsi2d.data.cohort_bags import CohortBag, bags_of
from wsi2d.errors import FeatureStoreError, ModelError, RunError, SlideError
from wsi2d.evaluation.evaluate import PREDICTIONS_FILE
from wsi2d.evaluation.predictions import Prediction, read_predictions
from wsi2d.features.anyones import read_features
from wsi2d.features.encoders import has_name
from wsi2d.features.extract import extract
from wsi2d.features.store import feature_path, read_header
from wsi2d.slides.discovery import SlideFile, find_slides
from wsi2d.slides.patching import PatchGrid
from wsi2d.slides.reader import open_slide
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.training.origin import claims_of
from wsi2d.training.predict import check_features, load_run_models
from wsi2d.training.run import Run, open_run

_LONG_HINT = 200  # characters of names


@dataclass(frozen=True)
class SlideAttention:
    """A prediction with the places of its patches.

    Attributes:
        slide: the slide file.
        prediction: scores, and attention ``[N]`` of the slide; of all slides of its patient where they are joined.
        grid: the slide's patches, in the order of its attention.
        classes: class names in the order of the scores; empty for survival.
        folds: the folds whose models spoke.
        slide_mpp: level-0 pixel size with which the features were made, or as given where they do not say it, µm; None
            where the slide's header has to say it.
        truth: the known label, or time and event, as text; empty where unknown.
    """

    slide: SlideFile
    prediction: Prediction
    grid: PatchGrid
    classes: tuple[str, ...]
    folds: tuple[int, ...]
    slide_mpp: float | None
    truth: str

    def relative(self) -> np.ndarray:
        """Attention ``[N]`` of the slide's patches in multiples of what each patch of the bag would get if all got the
        same; its mean is 1 over a bag, and over a slide that is one of several as much as the model looks at it."""
        attention = self.prediction.attention_by_slide()[self.slide.slide_id]
        return attention * len(self.prediction.attention)

    def on_grid(self) -> np.ndarray:
        """:meth:`relative` on the slide's grid, float64 ``[rows, cols]``, NaN where there is no patch."""
        grid = np.full(self.grid.shape, np.nan)
        grid[tuple(self.grid.index.T)] = self.relative()
        return grid


def slide_attention(
    run: Path | str,
    slide: Path | str,
    *,
    folds: Sequence[int] | None = None,
    slides: Path | str | None = None,
    features: Path | str | None = None,
    slide_mpp: float | None = None,
    device: str = "auto",
) -> SlideAttention:
    """Attention of a run's models over one slide.

    Args:
        run: the run folder.
        slide: a slide's id, or the path of a slide file.
        folds: whose models to ask; by default the fold that had the slide on its test side, else all.
        slides: folder in which to look for an id; the run's ``data.slides`` if not given.
        features: folder of feature files; the run's if not given. A slide that has none is extracted on the way, as
            the run's features were made.
        slide_mpp: level-0 pixel size for that, µm.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        RunError, SlideError, FeatureStoreError: the run, the slide or its features cannot be found or do not fit.
    """
    opened = open_run(run)
    file = _find_slide(opened, slide, slides)
    known = _known(opened, file.slide_id)
    asked = tuple(folds) if folds is not None else known.folds
    unknown = sorted(set(asked) - set(opened.folds))
    if unknown:
        raise RunError(f"run {run}: fold {unknown[0]} is not trained; there are {', '.join(map(str, opened.folds))}")
    models = load_run_models(opened, asked, device=device)
    folder = Path(features) if features is not None else opened.config.data.features
    with tempfile.TemporaryDirectory(prefix="wsi2d-") as scratch:
        path = feature_path(folder, file.slide_id)
        if not path.exists():
            path = _extract_alike(file, models.features, folder, Path(scratch), slide_mpp, device)
        claims, own = claims_of(opened.config.data), folder == opened.config.data.features
        if not check_features(path, models.features, claims, own=own):
            raise SlideError(f"slide '{file.slide_id}': no tissue was found on it; there is nothing to show")
        stored = read_features(path, claims)
        paths = {i: path if i == file.slide_id else feature_path(folder, i) for i in known.bag.slide_ids}
        for other in paths.values():
            check_features(other, models.features, claims, own=own)
        prediction = models.predict_bag(known.bag, [load_bag(p, claims) for p in paths.values()])
    classes = models.cards[0].classes
    made, grid, mpp = stored.provenance, stored.grid, stored.provenance.slide_mpp or slide_mpp
    if made.mpp_source == "micrometres":
        mpp = _slide_mpp(file, slide_mpp)
        grid = grid.scaled(1 / mpp)
    return SlideAttention(file, prediction, grid, classes, asked, mpp, known.truth)


def _find_slide(run: Run, slide: Path | str, slides: Path | str | None) -> SlideFile:
    if Path(slide).is_file():
        return find_slides([slide])[0]
    folder = Path(slides) if slides is not None else run.config.data.slides
    there = folder is not None and folder.exists()
    found = {file.slide_id: file for file in find_slides([folder])} if folder is not None and there else {}
    if str(slide) in found:
        return found[str(slide)]
    if Path(slide).is_dir():  # a DICOM series
        inside = find_slides([slide])
        if len(inside) > 1:
            raise SlideError(f"slide '{slide}': is a folder of {len(inside)} slides; give one of them")
        return inside[0]
    if folder is None:
        raise SlideError(f"slide '{slide}': is no file, and the run has no data.slides; give --slides FOLDER")
    if not there:
        raise SlideError(f"slide '{slide}': is no file, and {folder} does not exist; give --slides FOLDER")
    hint = nearest(str(slide), list(found))
    if len(hint) > _LONG_HINT:
        hint = f"{len(found)} others are, as '{next(iter(found))}'; give another --slides"
    raise SlideError(f"slide '{slide}': is no file, and no slide of that name is in {folder}; {hint}")


def _slide_mpp(file: SlideFile, given: float | None) -> float:
    """Size of a level-0 pixel, for features whose places are known in micrometres alone."""
    with ReaderPool() as pool, open_slide(file.path, slide_id=file.slide_id, mpp=given, pool=pool) as reader:
        return reader.slide.mpp


@dataclass(frozen=True)
class _Known:
    """What a run knows of a slide: the folds to ask, its bag, and its truth as text."""

    folds: tuple[int, ...]
    bag: CohortBag
    truth: str


def _known(run: Run, slide_id: str) -> _Known:
    """What a run knows of a slide: of a new one, that all folds may be asked, and nothing else."""
    path = run.folder / PREDICTIONS_FILE
    if not path.exists():
        raise RunError(f"run {run.folder}: no {PREDICTIONS_FILE}; train it to the end first")
    table = read_predictions(path)
    unit = run.config.data.bag
    names = [(i, names) for i, names in enumerate(table.slide_ids()) if slide_id in names]
    if not names:
        return _Known(run.folds, bags_of([CohortSlide(slide_id, slide_id)], unit)[0], "")
    row = table.rows.iloc[names[0][0]]
    (bag,) = bags_of([CohortSlide(i, row["case_id"]) for i in names[0][1]], unit)
    folds = (int(float(row["fold"])),) if str(row["fold"]).strip() else run.folds
    if table.kind == "classification":
        return _Known(folds, bag, str(row["label"]))
    return _Known(folds, bag, f"{row['time']:g}, {'event' if row['event'] else 'censored'}")


def _extract_alike(
    file: SlideFile, spec: FeatureSpec, features: Path, scratch: Path, slide_mpp: float | None, device: str
) -> Path:
    """Extract one slide with the settings of the run's own feature files."""
    if spec.encoder_hash is None:
        raise FeatureStoreError(
            f"slide '{file.slide_id}': has no feature file in {features}, and another tool extracted those the run was "
            "trained on; extract it with that, and give --features FOLDER"
        )
    example = next((p for p in sorted(features.glob("*.h5")) if not p.name.startswith(".")), None)
    if example is None:
        raise FeatureStoreError(
            f"features {features}: no feature files to take the tissue settings from; give --features FOLDER"
        )
    by_hand = "extract it as the run's slides were, and give --features FOLDER"
    if spec.encoder is None or not has_name(spec.encoder):
        raise FeatureStoreError(
            f"slide '{file.slide_id}': has no feature file in {features}, and encoder '{spec.encoder}' does not come "
            f"with wsi2d; {by_hand}"
        )
    made = json.loads(read_header(example).provenance.tissue)
    if "min_tissue" not in made:
        raise FeatureStoreError(
            f"{example}: does not say how much of a patch must be tissue (min_tissue); give --features FOLDER with the "
            f"features of slide '{file.slide_id}'"
        )
    tissue = {name: made[name] for name in TissueConfig.model_fields if name in made}
    patch = {name: getattr(spec, name) for name in ("patch_px", "mpp", "overlap_px")}
    values = {
        "encoder": spec.encoder,
        "patch": {**patch, "min_tissue": made["min_tissue"]},
        "tissue": tissue,
        "device": device,
    }
    config = validate(ExtractConfig, values, source=f"in {example}")
    try:
        report = extract([file], scratch, config, slide_mpp=slide_mpp)
    except ModelError as error:
        raise FeatureStoreError(
            f"slide '{file.slide_id}': has no feature file in {features}; {by_hand} ({error})"
        ) from error
    if report.failures:
        raise SlideError(report.failures[0].error)
    path = feature_path(scratch, file.slide_id)
    difference = spec.difference(read_spec(path)[0])
    if difference:
        raise FeatureStoreError(
            f"slide '{file.slide_id}': extracted now, it has {difference} as the run was trained on; give --features "
            "FOLDER with features that were made alike"
        )
    return path
