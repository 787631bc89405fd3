"""A trained run applied to slides: the ensemble for new ones, the fold that did not see it for its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from wsi2d.compute import resolve_device
from wsi2d.data.bags import FeatureSpec, GridBag, load_bag, read_spec
from wsi2d.data.cohort import CohortSlide
from wsi2d.errors import FeatureStoreError, RunError
from wsi2d.evaluation.evaluate import PREDICTIONS_FILE
from wsi2d.evaluation.predictions import Prediction, predictions_frame
from wsi2d.files import make_folder, write_text
from wsi2d.models.aggregator import Aggregator
from wsi2d.training.checkpoint import ModelCard
from wsi2d.training.inference import ensemble, predict_bags, to_prediction
from wsi2d.training.run import Run, open_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunModels:
    """Some folds' models of one run, loaded."""

    models: tuple[Aggregator, ...]
    cards: tuple[ModelCard, ...]
    device: torch.device

    @property
    def features(self) -> FeatureSpec:
        """What features the models were trained on."""
        return self.cards[0].features

    def predict(self, bag: GridBag, case_id: str | None = None) -> Prediction:
        """The models' mean prediction of one bag."""
        slide = CohortSlide(bag.slide_id, case_id or bag.slide_id)
        single = []
        for model, card in zip(self.models, self.cards, strict=True):
            logits, attention = predict_bags(model, [bag], self.device)
            single.append(to_prediction(slide, logits[0], attention[0], card.kind, card.fold))
        return ensemble(single)


def load_run_models(run: Run, folds: Sequence[int] | None = None, *, device: str = "auto") -> RunModels:
    """Load models of a run; those of all folds if none are named.

    Raises:
        RunError: a model is missing or damaged, or the models' outputs cannot be averaged.
    """
    where = resolve_device(device)
    loaded = [run.model(fold, where) for fold in (run.folds if folds is None else folds)]
    if len({card.out_dim for _, card in loaded}) > 1:
        raise RunError(f"run {run.folder}: its folds have different numbers of time bins and cannot be averaged")
    return RunModels(tuple(m for m, _ in loaded), tuple(c for _, c in loaded), where)


def predict(
    run: Path | str, features: Path | str, out: Path | str | None = None, *, device: str = "auto"
) -> pd.DataFrame:
    """Predict new slides with the mean over a run's folds.

    Args:
        run: the run folder.
        features: a feature file, or a folder of them.
        out: CSV to write.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        The table of predictions (columns as in ``predictions.csv``, the truth left empty).

    Raises:
        FeatureStoreError: no feature files, or features of another encoder, mpp or patch size than the run's.
        RunError: the run is unfinished.
    """
    opened = open_run(run)
    if not (opened.folder / PREDICTIONS_FILE).exists():
        raise RunError(f"run {run}: is unfinished; run `wsi2d train` to the end first")
    models = load_run_models(opened, device=device)
    files = _feature_files(Path(features))
    usable = [file for file in files if check_features(file, models.features)]
    if not usable:
        raise FeatureStoreError(f"features {features}: no slide with tissue; there is nothing to predict")
    for file in sorted(set(files) - set(usable)):
        logger.warning("slide '%s': has no tissue and is left out", file.stem)
    predictions = [models.predict(load_bag(file)) for file in usable]
    card = models.cards[0]
    table = predictions_frame(predictions, card.kind, card.classes)
    if out is not None:
        make_folder(Path(out).parent, "give another --out")
        write_text(Path(out), table.to_csv(index=False))
    return table


def check_features(path: Path, expected: FeatureSpec) -> bool:
    """Whether a feature file has patches at all.

    Raises:
        FeatureStoreError: it was made otherwise than what a model was trained on.
    """
    spec, count = read_spec(path)
    difference = expected.difference(spec)
    if difference:
        raise FeatureStoreError(f"{path}: has {difference} as the run was trained on; extract it alike")
    return count > 0


def _feature_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(p for p in path.glob("*.h5") if not p.name.startswith("."))
    if not files:
        raise FeatureStoreError(f"features {path}: no .h5 files; extract slides into it first")
    return files
