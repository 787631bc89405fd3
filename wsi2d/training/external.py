"""A run's models on another cohort: predictions with the truth beside them, for evaluation."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from wsi2d.config import ClassificationTask, SurvivalTask
from wsi2d.data.bags import FeatureSpec, load_bag
from wsi2d.data.cohort import Cohort, CohortSlide, barcode_case, load_cases, load_cohort, plain_slide_id
from wsi2d.data.cohort_bags import bags_of
from wsi2d.errors import CohortError, FeatureStoreError, SplitError
from wsi2d.evaluation.evaluate import NOTES_FILE, notes_beside, read_notes
from wsi2d.evaluation.predictions import predictions_frame
from wsi2d.features.imports.claims import NO_CLAIMS, Claims
from wsi2d.features.store import feature_path
from wsi2d.files import make_folder, remove, write_text
from wsi2d.training.origin import tell_what_is_believed
from wsi2d.training.predict import RunModels, check_features, load_run_models
from wsi2d.training.run import COHORT_FILE, Run, open_run

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
    allow_leakage: bool = False,
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
        allow_leakage: predict although patients or slides of the other cohort were in the run's own; a note says so.

    What a reader of the numbers must know (also of the run itself) is written beside ``out``, as ``*.notes.json``.

    Returns:
        How many slides (or patients) were predicted. Slides without features or without tissue are left out, with a
        warning.

    Raises:
        CohortError: the table cannot be read, holds a class that the run does not know, or slides that cannot be
            joined.
        SplitError: some of its patients were in the run's own cohort.
        FeatureStoreError: no slide has features, or features of another encoder, mpp or patch size than the run's.
        RunError: there is no such run, or no fold of it is trained.
    """
    opened = open_run(run)
    models = load_run_models(opened, device=device)
    card = models.cards[0]
    task = _task(opened.config.task, card.classes, label=label, time=time, event=event)
    table = load_cohort(
        cohort, task, slide_column=slide_column, case_column=case_column,
        case_pattern=opened.config.data.case_pattern, some_classes=True,
    )  # fmt: skip
    leaks = _leaks(opened, table, allowed=allow_leakage)
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
    _write_notes(Path(out), [*read_notes(opened.folder / NOTES_FILE), *leaks, *_without_cuts(models)])
    _tell_absent_classes(table)
    return len(predictions)


def _task(
    own: ClassificationTask | SurvivalTask,
    classes: tuple[str, ...],
    *,
    label: str | None,
    time: str | None,
    event: str | None,
) -> ClassificationTask | SurvivalTask:
    """The run's task, in the other cohort's columns."""
    if isinstance(own, ClassificationTask):
        labels = own.labels if label is None else None
        return own.model_copy(update={"label": label or own.label, "labels": labels, "classes": classes})
    return SurvivalTask(time=time or own.time, event=event or own.event, bins=own.bins)


def _leaks(run: Run, cohort: Cohort, *, allowed: bool) -> list[str]:
    """Refuse patients who were in the run's own cohort, by their ids, their slides' or TCGA's barcodes; where that is
    allowed, or cannot be told, what must be noted."""
    path = run.folder / COHORT_FILE
    if not path.exists():
        return [f"the run keeps no {COHORT_FILE}: whether patients of this cohort were in its own is not known"]
    own = {name for pair in load_cases(path).items() for name in _names(*pair)}
    shared = [
        case
        for case, slides in cohort.cases().items()
        if not own.isdisjoint(name for slide in slides for name in _names(slide.slide_id, case))
    ]
    if not shared:
        return []
    some = ", ".join(shared[:3]) + (", …" if len(shared) > 3 else "")
    if not allowed:
        raise SplitError(
            f"cohort: {len(shared)} of its {len(cohort.cases())} patients were in the run's own ({some}); leave them "
            "out, or give --allow-leakage and say so"
        )
    return [f"{len(shared)} patients of this cohort were in the run's own, which its models were trained on ({some})"]


def _names(slide_id: str, case_id: str) -> set[str]:
    return {slide_id, plain_slide_id(case_id), barcode_case(slide_id), barcode_case(case_id)}


def _without_cuts(models: RunModels) -> list[str]:
    if models.cards[0].kind == "classification" or all(card.risk_cut is not None for card in models.cards):
        return []
    return [
        "the run's models do not hold the median risk of those trained on: risk groups are cut at these patients' own"
    ]


def _write_notes(out: Path, notes: Sequence[str]) -> None:
    path = notes_beside(out)
    if notes:
        write_text(path, json.dumps(notes, indent=2, ensure_ascii=False) + "\n")
    else:
        remove(path)


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
