"""A run's models on slides whose patches lie elsewhere: what they made of where they lay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wsi2d.compute import resolve_device
from wsi2d.config import Arrangement, EvaluationConfig
from wsi2d.data.arrangements import ARRANGEMENTS, TURNS
from wsi2d.errors import RunError
from wsi2d.evaluation.compare import Comparison, compare
from wsi2d.evaluation.evaluate import PREDICTIONS_FILE
from wsi2d.evaluation.predictions import predictions_frame
from wsi2d.files import make_folder, write_text
from wsi2d.training.fold import check_fold
from wsi2d.training.inference import predict_all, to_prediction
from wsi2d.training.losses.registry import loss_config
from wsi2d.training.run import load_study, open_run, refuse_other_data

ABLATIONS_FOLDER = "ablations"


def ablate(
    run: Path | str,
    arrangements: Sequence[Arrangement],
    config: EvaluationConfig | None = None,
    *,
    device: str = "auto",
) -> Comparison:
    """Predict each fold's test side anew with its patches elsewhere, and compare with the run's own predictions.

    Nothing is trained: it says what the trained models make of where patches lie. What a model can learn without it is
    another question: train with ``data.arrangement``, and :func:`wsi2d.evaluation.compare.compare` the two runs.

    Args:
        run: the run folder, trained to the end. Gets ``ablations/<arrangements>.csv``, predictions as its own.
        arrangements: one or more (:func:`wsi2d.data.arrangements.arrange`), besides those it was trained with.
        config: resamples, coverage, and what the numbers are to be of; the run's own if not given.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        The differences, elsewhere − as they lie: below 0 where the model did worse. A note says where the run was
        trained with patches elsewhere in the same way.

    Raises:
        RunError: the run is unfinished, or its splits, cohort or features are no longer what it was trained on.
    """
    opened = open_run(run)
    if not (opened.folder / PREDICTIONS_FILE).exists():
        raise RunError(f"run {run}: is unfinished; run `wsi2d train` to the end first")
    own = [name for name in opened.config.data.arrangement if name not in TURNS]
    chosen = [name for name in ARRANGEMENTS if name in arrangements]
    both = tuple(name for name in ARRANGEMENTS if name in {*chosen, *own})
    elsewhere = opened.config.model_copy(update={"data": opened.config.data.model_copy(update={"arrangement": both})})
    study = load_study(elsewhere, turned=True)
    refuse_other_data(elsewhere, study, opened.folder, remedy="put back what it was trained on, or train again")
    loss = loss_config(elsewhere.training.loss, elsewhere.task.kind)
    where, predictions = resolve_device(device), []
    for fold in study.folds:
        bags, _ = check_fold(study.cohort, fold, study.store, loss, study.unit)
        model, card = opened.model(fold.index, where)
        found = predict_all(model, study.store, bags.test, batch_size=elsewhere.training.batch_size, device=where)
        predictions += [to_prediction(bag, row, seen, card.task, fold.index) for bag, row, seen in found]
    folder = opened.folder / ABLATIONS_FOLDER
    make_folder(folder, "check the run folder's permissions and disk")
    out = folder / f"{'+'.join(chosen)}.csv"
    write_text(out, predictions_frame(predictions, study.cohort.task.kind, study.cohort.classes).to_csv(index=False))
    comparison = compare(opened.folder, out, config or opened.config.evaluation, seed=opened.config.seed)
    known = [name for name in chosen if name in own]
    if known:
        note = _trained_so(known, all_of_it=known == chosen)
        comparison = replace(comparison, notes=(note, *comparison.notes))
    return comparison


def _trained_so(names: Sequence[Arrangement], *, all_of_it: bool) -> str:
    """What a reader of the differences must know where a run was trained with some of the arrangements."""
    result = "nothing lies elsewhere, and no difference says anything" if all_of_it else "the difference is not of that"
    return f"the run was trained so ({', '.join(names)}): {result}"
