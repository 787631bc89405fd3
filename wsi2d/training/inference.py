"""Models applied to bags: logits and attention become predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from wsi2d.data.bags import BagBatch, BagStore, GridBag, collate
from wsi2d.data.cohort_bags import CohortBag
from wsi2d.evaluation.curves import Baseline, SurvivalCurve, breslow, discrete_curve, mean_curve
from wsi2d.evaluation.predictions import Prediction
from wsi2d.models.aggregator import Aggregator
from wsi2d.models.output import class_probabilities, hazards, risk
from wsi2d.training.targets import FoldTask


@torch.inference_mode()
def predict_bags(
    model: Aggregator, bags: Sequence[GridBag], device: torch.device, joined: Sequence[int] | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits ``[batch, out_dim]`` and each slide's attention ``[N]``, on the CPU in float32; arguments as of
    :func:`wsi2d.data.bags.collate`."""
    model.eval()
    output = model(collate(bags, joined).to(device))
    attention = output.attention.float().cpu().split([len(bag) for bag in bags])
    return output.logits.float().cpu(), attention


def load_batch(store: BagStore, bags: Sequence[CohortBag], draw: int) -> BagBatch:
    """Bags of a study from disk, as a batch to train on; ``draw`` as of :meth:`wsi2d.data.bags.BagStore.load`."""
    return collate([store.load(i, draw) for bag in bags for i in bag.slide_ids], [len(bag.slides) for bag in bags])


def predict_all(
    model: Aggregator, store: BagStore, bags: Sequence[CohortBag], *, batch_size: int, device: torch.device
) -> Iterator[tuple[CohortBag, Tensor, tuple[Tensor, ...]]]:
    """Each bag with its logits ``[out_dim]`` and the attention ``[N]`` of each of its slides."""
    for start in range(0, len(bags), batch_size):
        chosen = bags[start : start + batch_size]
        slides, counts = [store.load(i) for bag in chosen for i in bag.slide_ids], [len(bag.slides) for bag in chosen]
        logits, attention = predict_bags(model, slides, device, counts)
        of_slides = iter(attention)
        for bag, row in zip(chosen, logits, strict=True):
            yield bag, row, tuple(islice(of_slides, len(bag.slides)))


def to_prediction(
    bag: CohortBag,
    logits: Tensor,
    attention: Sequence[Tensor],
    task: FoldTask,
    fold: int | None,
    *,
    risk_cut: float | None = None,
) -> Prediction:
    """One model's logits ``[out_dim]``, and its attention ``[N]`` of each slide, as a prediction of its task;
    ``risk_cut`` as in :class:`Prediction`."""
    curve: SurvivalCurve | None = None
    score = None if task.kind == "classification" else risk_of(logits, task)
    if score is None:
        scores = class_probabilities(logits).double().numpy()
    elif task.log_risk:
        scores = np.empty(0)
        curve = task.baseline.curve(score) if task.baseline is not None else None
    else:
        scores = hazards(logits).double().numpy()
        curve = discrete_curve(scores, task.bin_edges, task.last_event)
    return Prediction(
        slide_id=bag.name,
        case_id=bag.case_id,
        fold=fold,
        scores=scores,
        attention=torch.cat(list(attention)).numpy(),
        risk=score,
        label=bag.label,
        time=bag.time,
        event=bag.event,
        joined_slides=bag.slide_ids if bag.joined else (),
        joined_patches=tuple(map(len, attention)) if bag.joined else (),
        curve=curve,
        edges=task.bin_edges,
        risk_cut=risk_cut,
    )


def risk_of(logits: Tensor, task: FoldTask) -> float:
    """A bag's risk, higher is worse: its log-risk, or −Σ of the survival curve over the bins."""
    return float(logits.double() if task.log_risk else risk(logits.unsqueeze(0).double()))


def fit_baseline(log_risks: Iterable[tuple[CohortBag, float]]) -> Baseline:
    """Breslow's baseline of bags with their log-risks, each patient with the mean over his bags."""
    of_case: dict[str, list[tuple[CohortBag, float]]] = {}
    for bag, log_risk in log_risks:
        of_case.setdefault(bag.case_id, []).append((bag, log_risk))
    first = [bags[0][0] for bags in of_case.values()]
    means = [np.mean([log_risk for _, log_risk in bags]) for bags in of_case.values()]
    return breslow(
        np.array([b.time for b in first], float), np.array([b.event for b in first], bool), np.array(means, float)
    )


def median_risk(risks: Iterable[tuple[CohortBag, float]]) -> float:
    """Median over patients of their bags' mean risk."""
    of_case: dict[str, list[float]] = {}
    for bag, value in risks:
        of_case.setdefault(bag.case_id, []).append(value)
    return float(np.median([np.mean(values) for values in of_case.values()]))


def ensemble(predictions: Sequence[Prediction]) -> Prediction:
    """Several models' predictions of one bag as one: means of scores, risk and its cut, attention, edges and curves.

    Folds cut time at edges of their own; the mean curve is tabulated at the means of these.
    """
    first = predictions[0]
    curves = [p.curve for p in predictions if p.curve is not None]
    risks = [p.risk for p in predictions if p.risk is not None]
    cuts = [p.risk_cut for p in predictions if p.risk_cut is not None]
    return replace(
        first,
        fold=None if len(predictions) > 1 else first.fold,
        scores=np.mean([p.scores for p in predictions], 0),
        attention=np.mean([p.attention for p in predictions], 0),
        risk=float(np.mean(risks)) if risks else None,
        curve=mean_curve(curves) if curves else None,
        edges=tuple(np.mean([p.edges for p in predictions], 0).tolist()),
        risk_cut=float(np.mean(cuts)) if len(cuts) == len(predictions) else None,
    )
