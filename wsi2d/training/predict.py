"""A trained run applied to slides: the ensemble for new ones, the fold that did not see it for its own."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from wsi2d.compute import resolve_device
from wsi2d.config import Arrangement, BagUnit
from wsi2d.data.arrangements import TURNS, arrange
from wsi2d.data.bags import FeatureSpec, GridBag, load_bag, read_spec
from wsi2d.data.cohort import CohortSlide, load_cases
from wsi2d.data.cohort_bags import CohortBag, bags_of
from wsi2d.errors import CohortError, FeatureStoreError, RunError
from wsi2d.evaluation.evaluate import PREDICTIONS_FILE
from wsi2d.evaluation.predictions import Prediction, predictions_frame
from wsi2d.features.imports.claims import NO_CLAIMS, Claims
from wsi2d.features.listing import feature_files
from wsi2d.files import make_folder, write_text
from wsi2d.models.aggregator import Aggregator
from wsi2d.training.checkpoint import ModelCard
from wsi2d.training.inference import ensemble, predict_bags, to_prediction
from wsi2d.training.origin import refuse_other_features, tell_what_is_believed
from wsi2d.training.run import Run, open_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunModels:
    """Some folds' models of one run, loaded.

    Attributes:
        models, cards: of each fold.
        device: where they are.
        unit: what they were trained to take for a bag, a slide or a patient.
        arrangement, seed: where they were trained to have a slide's patches instead.
    """

    models: tuple[Aggregator, ...]
    cards: tuple[ModelCard, ...]
    device: torch.device
    unit: BagUnit = "slide"
    arrangement: tuple[Arrangement, ...] = ()
    seed: int = 0

    @property
    def features(self) -> FeatureSpec:
        """What features the models were trained on."""
        return self.cards[0].features

    def predict(self, slide: GridBag, case_id: str | None = None) -> Prediction:
        """The models' mean prediction of one slide."""
        (bag,) = bags_of([CohortSlide(slide.slide_id, case_id or slide.slide_id)], self.unit)
        return self.predict_bag(bag, [slide])

    def predict_bag(self, bag: CohortBag, slides: Sequence[GridBag]) -> Prediction:
        """The models' mean prediction of a bag, given what is to be seen of its slides."""
        single = []
        slides = [arrange(slide, self.arrangement, seed=self.seed) for slide in slides]
        for model, card in zip(self.models, self.cards, strict=True):
            logits, attention = predict_bags(model, slides, self.device, [len(slides)])
            single.append(
                to_prediction(bag, logits[0], attention, card.task, card.fold, risk_cut=card.risk_cut)
            )  # fmt: skip
        return ensemble(single)


def load_run_models(run: Run, folds: Sequence[int] | None = None, *, device: str = "auto") -> RunModels:
    """Load models of a run; those of all folds if none are named.

    Raises:
        RunError: a model is missing or damaged, or the models' outputs cannot be averaged.
    """
    where = resolve_device(device)
    loaded = [run.model(fold, where) for fold in (run.folds if folds is None else folds)]
    if len({(card.out_dim, len(card.bin_edges)) for _, card in loaded}) > 1:
        raise RunError(f"run {run.folder}: its folds have different numbers of time bins and cannot be averaged")
    data = run.config.data
    fixed = tuple(name for name in data.arrangement if name not in TURNS)
    return RunModels(tuple(m for m, _ in loaded), tuple(c for _, c in loaded), where, data.bag, fixed, run.config.seed)


def predict(
    run: Path | str,
    features: Path | str,
    out: Path | str | None = None,
    *,
    cohort: Path | str | None = None,
    slide_column: str = "slide_id",
    case_column: str = "case_id",
    device: str = "auto",
    claims: Claims = NO_CLAIMS,
) -> pd.DataFrame:
    """Predict new slides, or patients where the run joins their slides, with the mean over a run's folds.

    Args:
        run: the run folder.
        features: a feature file, or a folder of them.
        out: CSV to write.
        cohort: table that names the patient of each slide; without it a slide is taken for a patient, unless the run's
            ``data.case_pattern`` finds one in its name.
        slide_column, case_column: columns of ids.
        device: auto, cpu, cuda or cuda:N.
        claims: what the user says of features whose files do not say it.

    Returns:
        The table of predictions (columns as in ``predictions.csv``, the truth left empty).

    Raises:
        CohortError: the cohort cannot be read, or does not name the patient of a slide.
        FeatureStoreError: no feature files, or features of another encoder, mpp or patch size than the run's.
        RunError: the run is unfinished.
    """
    opened = open_run(run)
    if not (opened.folder / PREDICTIONS_FILE).exists():
        raise RunError(f"run {run}: is unfinished; run `wsi2d train` to the end first")
    models = load_run_models(opened, device=device)
    files = feature_files([features])
    tell_what_is_believed(models.features, Path(features))
    usable = [file for file in files if check_features(file, models.features, claims)]
    if not usable:
        raise FeatureStoreError(f"features {features}: no slide with tissue; there is nothing to predict")
    for file in sorted(set(files) - set(usable)):
        logger.warning("slide '%s': has no tissue and is left out", file.stem)
    paths = {file.stem: file for file in usable}
    columns = {"slide_column": slide_column, "case_column": case_column}
    pattern = opened.config.data.case_pattern
    cases = load_cases(cohort, **columns, case_pattern=pattern) if cohort is not None else None
    slides = [CohortSlide(name, _case_of(name, cases, pattern)) for name in paths]
    if models.unit == "case" and cases is None and pattern is None:
        logger.warning("the run joins each patient's slides: without a cohort each slide is taken for a patient")
    bags = bags_of(slides, models.unit)
    predictions = [models.predict_bag(bag, [load_bag(paths[i], claims) for i in bag.slide_ids]) for bag in bags]
    card = models.cards[0]
    table = predictions_frame(predictions, card.kind, card.classes)
    if out is not None:
        make_folder(Path(out).parent, "give another --out")
        write_text(Path(out), table.to_csv(index=False))
    return table


def _case_of(slide_id: str, cases: Mapping[str, str] | None, pattern: str | None) -> str:
    """The patient of a slide: as the cohort says, else as the pattern finds it, else the slide itself."""
    if cases is None:
        found = re.search(pattern, slide_id) if pattern is not None else None
        return found[0] if found else slide_id
    if slide_id not in cases:
        raise CohortError(f"slide '{slide_id}': is not in the cohort that names the patients; add it there")
    return cases[slide_id]


def check_features(path: Path, expected: FeatureSpec, claims: Claims = NO_CLAIMS, *, own: bool = False) -> bool:
    """Whether a feature file has patches at all.

    Args:
        path: the file.
        expected: what a model was trained on.
        claims: what the user says of features whose files do not say it.
        own: the file is of the folder that the run was trained on; what it does not say is what that did not say.

    Raises:
        FeatureStoreError: it was made otherwise than what a model was trained on, or nobody says that it was not.
    """
    spec, count = read_spec(path, claims)
    if count == 0 and spec.unknown:
        return False  # there is nothing on it to be alike
    refuse_other_features(path, spec, expected, claims, own=own)
    return count > 0
