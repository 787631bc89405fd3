"""A run's models on another cohort: predictions with the truth beside them, for evaluation."""

from __future__ import annotations

import logging
from pathlib import Path

from wsi2d.config import ClassificationTask, SurvivalTask
from wsi2d.data.bags import FeatureSpec, load_bag
from wsi2d.data.cohort import Cohort, CohortSlide, load_cohort
from wsi2d.data.cohort_bags import bags_of
from wsi2d.errors import CohortError, FeatureStoreError
from wsi2d.evaluation.predictions import predictions_frame
from wsi2d.features.imports.claims import NO_CLAIMS, Claims
from wsi2d.features.store import feature_path
from wsi2d.files import make_folder, write_text
from wsi2d.training.origin import tell_what_is_believed
from wsi2d.training.predict import check_features, load_run_models
from wsi2d.training.run import open_run

logger = logging.getLogger(__name__)


def predict_cohort(
    run: Path | str,
    cohort: Path | str,
    features: Path | str,
    out: Path | str,
    *,
    slide_column: str = "slide_id",
    case_column: str = "case_id",
    label: str | None = None,
    time: str | None = None,
    event: str | None = None,
    device: str = "auto",
    claims: Claims = NO_CLAIMS,
) -> int:
    """Predict the slides (patients, where the run joins their slides) of another cohort with the mean over a run's
    folds, and write them with their truth.

    Args:
        run: the run folder.
        cohort: table of the other cohort, CSV or a zip that holds one.
        features: folder of its feature files, of the run's encoder, mpp and patch size.
        out: CSV to write, columns as in ``predictions.csv``.
        slide_column, case_column: columns of ids.
        label, time, event: columns of the truth (the event as ``COLUMN=VALUE``) where they are not the run's.
        device: auto, cpu, cuda or cuda:N.
        claims: what the user says of features whose files do not say it.

    Returns:
        How many slides (or patients) were predicted. Slides without features or without tissue are left out, with a
        warning.

    Raises:
        CohortError: the table cannot be read, holds a class that the run does not know, or slides that cannot be
            joined.
        FeatureStoreError: no slide has features, or features of another encoder, mpp or patch size than the run's.
        RunError: there is no such run, or no fold of it is trained.
    """
    opened = open_run(run)
    models = load_run_models(opened, device=device)
    card, task = models.cards[0], opened.config.task
    if isinstance(task, ClassificationTask):
        labels = task.labels if label is None else None
        task = task.model_copy(update={"label": label or task.label, "labels": labels, "classes": card.classes})
    else:
        task = SurvivalTask(time=time or task.time, event=event or task.event, bins=task.bins)
    table = load_cohort(cohort, task, slide_column=slide_column, case_column=case_column, some_classes=True)
    folder = Path(features)
    tell_what_is_believed(models.features, folder)
    usable = _usable(table, folder, models.features, claims)
    if not usable:
        raise FeatureStoreError(f"features {features}: no slide of {cohort} has features here; extract them into it")
    try:
        bags = bags_of(usable, models.unit)
    except CohortError as error:
        raise CohortError(f"cohort {cohort}: {error}") from error
    predictions = [
        models.predict_bag(bag, [load_bag(feature_path(folder, i), claims) for i in bag.slide_ids]) for bag in bags
    ]
    make_folder(Path(out).parent, "give another --out")
    write_text(Path(out), predictions_frame(predictions, card.kind, card.classes).to_csv(index=False))
    _tell_absent_classes(table)
    return len(predictions)


def _usable(table: Cohort, folder: Path, expected: FeatureSpec, claims: Claims) -> list[CohortSlide]:
    """The slides that have features with tissue; the others are warned of."""
    usable, missing = [], []
    for slide in table.slides:
        path = feature_path(folder, slide.slide_id)
        if not path.exists():
            missing.append(slide.slide_id)
        elif check_features(path, expected, claims):
            usable.append(slide)
        else:
            logger.warning("slide '%s': has no tissue and is left out", slide.slide_id)
    if missing:
        logger.warning("%d slides have no features and are left out (the first is '%s')", len(missing), missing[0])
    return usable


def _tell_absent_classes(cohort: Cohort) -> None:
    absent = [name for name in cohort.classes if name not in {slide.label for slide in cohort.slides}]
    if absent:
        logger.warning("no slide of the cohort is %s", " or ".join(absent))
