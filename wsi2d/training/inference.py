"""Models applied to slides: logits and attention become predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from wsi2d.data.bags import BagStore, GridBag, collate
from wsi2d.data.cohort import CohortSlide
from wsi2d.evaluation.predictions import Prediction, TaskKind
from wsi2d.models.aggregator import Aggregator
from wsi2d.models.output import class_probabilities, hazards, risk


@torch.inference_mode()
def predict_bags(model: Aggregator, bags: Sequence[GridBag], device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits ``[batch, classes or bins]`` and each bag's attention ``[N]``, on the CPU in float32."""
    model.eval()
    output = model(collate(bags).to(device))
    attention = output.attention.float().cpu().split([len(bag) for bag in bags])
    return output.logits.float().cpu(), attention


def predict_slides(
    model: Aggregator, store: BagStore, slides: Sequence[CohortSlide], *, batch_size: int, device: torch.device
) -> Iterator[tuple[CohortSlide, Tensor, Tensor]]:
    """Each slide with its logits ``[classes or bins]`` and attention ``[N]``."""
    for start in range(0, len(slides), batch_size):
        chosen = slides[start : start + batch_size]
        logits, attention = predict_bags(model, [store.load(s.slide_id) for s in chosen], device)
        yield from zip(chosen, logits, attention, strict=True)


def to_prediction(
    slide: CohortSlide, logits: Tensor, attention: Tensor, kind: TaskKind, fold: int | None
) -> Prediction:
    """One model's logits as a prediction."""
    survival = kind == "survival"
    return Prediction(
        slide_id=slide.slide_id,
        case_id=slide.case_id,
        fold=fold,
        scores=(hazards(logits) if survival else class_probabilities(logits)).double().numpy(),
        attention=attention.numpy(),
        risk=float(risk(logits.unsqueeze(0).double())) if survival else None,
        label=slide.label,
        time=slide.time,
        event=slide.event,
    )


def ensemble(predictions: Sequence[Prediction]) -> Prediction:
    """Several models' predictions of one slide as one: means of scores, risk and attention."""
    first = predictions[0]
    risks = [p.risk for p in predictions if p.risk is not None]
    return Prediction(
        slide_id=first.slide_id,
        case_id=first.case_id,
        fold=None if len(predictions) > 1 else first.fold,
        scores=np.mean([p.scores for p in predictions], 0),
        attention=np.mean([p.attention for p in predictions], 0),
        risk=float(np.mean(risks)) if risks else None,
        label=first.label,
        time=first.time,
        event=first.event,
    )
