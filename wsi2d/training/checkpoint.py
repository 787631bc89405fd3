"""What is kept of a fold: weights with a card that says what they are, and a file to go on from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from wsi2d.data.bags import FeatureSpec
from wsi2d.errors import RunError
from wsi2d.evaluation.curves import Baseline
from wsi2d.evaluation.predictions import TaskKind
from wsi2d.files import whole_file
from wsi2d.models.aggregator import Aggregator
from wsi2d.models.registry import build_model
from wsi2d.training.targets import FoldTask

_CARD_KEY = "wsi2d"
_RESUME_KEY = "wsi2d-resume"
_MOST_WIDE = 2**20


@dataclass(frozen=True)
class ModelCard:
    """What weights are, kept in their file's header.

    Attributes:
        model: the configuration's ``model`` section, resolved.
        in_dim, out_dim: widths of an embedding and of the logits.
        kind: ``classification`` or ``survival``.
        classes: class names in the order of the logits.
        bin_edges: inner edges of discrete time, in the cohort's unit.
        features: what the features were that it was trained on.
        fold, epoch: which fold, and the epoch (from 1) that validation chose.
        last_event, log_risk, baseline: as in :class:`wsi2d.training.targets.FoldTask`.
        risk_cut: for survival, the median risk of the patients that it was trained on; None in older files.
    """

    model: dict[str, Any]
    in_dim: int
    out_dim: int
    kind: TaskKind
    classes: tuple[str, ...]
    bin_edges: tuple[float, ...]
    features: FeatureSpec
    fold: int
    epoch: int
    last_event: float | None = None
    log_risk: bool = False
    baseline: Baseline | None = None
    risk_cut: float | None = None

    @property
    def task(self) -> FoldTask:
        """What its logits mean."""
        return FoldTask(self.kind, self.classes, self.bin_edges, self.last_event, self.log_risk, self.baseline)


@dataclass(frozen=True)
class ResumePoint:
    """Where a fold stands after an epoch.

    Attributes:
        model, optimizer: their tensors by name.
        epoch: epochs done.
        best_epoch, best_score: the epoch chosen so far and its score (lower is better).
        history: one row an epoch.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    epoch: int
    best_epoch: int
    best_score: float
    history: list[dict[str, float]]


class _ResumeState(BaseModel):
    """What a resume point holds beside its tensors."""

    model_config = ConfigDict(extra="forbid")

    epoch: int = Field(ge=1)
    best_epoch: int = Field(ge=1)
    best_score: float
    history: list[dict[str, int | float]]

    @model_validator(mode="after")
    def _one_row_an_epoch(self) -> _ResumeState:
        if len(self.history) != self.epoch or self.best_epoch > self.epoch:
            raise ValueError("the history has another number of epochs")
        return self


def save_model(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Write ``model.safetensors``: weights, with the card in the header; complete or absent."""
    _save(model.state_dict(), {_CARD_KEY: json.dumps(asdict(card))}, path)


def load_model(path: Path, device: torch.device) -> tuple[Aggregator, ModelCard]:
    """The model of a ``model.safetensors``, in evaluation mode, and its card.

    Raises:
        RunError: missing, damaged, or weights that do not belong to the card's model.
    """
    tensors, metadata = _load(path)
    card = _parse_card(metadata, path)
    with torch.device("meta"):  # a damaged card must not cost the memory that it asks for
        expected = build_model(card.model, in_dim=card.in_dim, out_dim=card.out_dim).state_dict()
    fits = tensors.keys() == expected.keys() and all(
        t.shape == expected[k].shape and t.dtype == expected[k].dtype for k, t in tensors.items()
    )
    if not fits:
        raise RunError(f"{path}: its weights are not those of a {card.model['name']}; train again")
    if not all(torch.isfinite(t).all() for t in tensors.values()):
        raise RunError(f"{path}: damaged (its weights hold NaN or infinity); delete it and train again")
    model = build_model(card.model, in_dim=card.in_dim, out_dim=card.out_dim)
    model.load_state_dict(tensors)
    return model.to(device).eval(), card


def load_card(path: Path) -> ModelCard:
    """The card of a ``model.safetensors`` alone; reads no weights.

    Raises:
        RunError: as :func:`load_model`.
    """
    return _parse_card(_load(path, tensors=False)[1], path)


def save_resume_point(point: ResumePoint, path: Path) -> None:
    """Write where a fold stands; complete or absent."""
    tensors = {f"model.{k}": v for k, v in point.model.items()}
    tensors |= {f"optimizer.{k}": v for k, v in point.optimizer.items()}
    state = {k: getattr(point, k) for k in ("epoch", "best_epoch", "best_score", "history")}
    _save(tensors, {_RESUME_KEY: json.dumps(state)}, path)


def load_resume_point(path: Path) -> ResumePoint | None:
    """Where a fold stood, or None where it has not begun.

    Raises:
        RunError: the file is damaged.
    """
    if not path.exists():
        return None
    tensors, metadata = _load(path)
    parts = {
        part: {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
        for part in ("model", "optimizer")
    }
    try:
        state = _ResumeState.model_validate_json(metadata[_RESUME_KEY], strict=True)
    except (KeyError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged (no place to go on from); delete it and train again") from error
    return ResumePoint(
        parts["model"], parts["optimizer"], state.epoch, state.best_epoch, state.best_score, state.history
    )  # fmt: skip


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors (``<parameter number>.<name>``)."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put :func:`optimizer_tensors` back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parse_card(metadata: dict[str, str], path: Path) -> ModelCard:
    try:
        card = TypeAdapter(ModelCard).validate_json(metadata[_CARD_KEY], strict=True)
    except (KeyError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: has no model card; it was not written by `wsi2d train`") from error
    if not (0 < card.in_dim <= _MOST_WIDE and 0 < card.out_dim <= _MOST_WIDE):
        raise RunError(f"{path}: damaged (widths of {card.in_dim} and {card.out_dim}); delete it and train again")
    outputs = card.task.out_dim
    if outputs != card.out_dim:
        raise RunError(f"{path}: damaged ({card.out_dim} logits for {outputs} outputs); delete it and train again")
    if not _sound_times(card):
        raise RunError(f"{path}: damaged (survival times or a baseline that do not grow); delete it and train again")
    return card


def _sound_times(card: ModelCard) -> bool:
    """Whether what survival curves are made from can be one: finite, and growing where it must."""
    if card.kind == "survival" and not (card.bin_edges and _grows(card.bin_edges)):
        return False
    if not all(math.isfinite(value) for value in (card.last_event, card.risk_cut) if value is not None):
        return False
    if card.baseline is None:
        return True
    times, hazard = card.baseline.times, card.baseline.log_hazard
    return len(times) == len(hazard) > 0 and _grows(times) and _grows(hazard, strictly=False)


def _grows(values: tuple[float, ...], *, strictly: bool = True) -> bool:
    return all(map(math.isfinite, values)) and all(a < b if strictly else a <= b for a, b in pairwise(values))


def _save(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    whole = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)
    with whole_file(path) as partial:
        partial.write_bytes(whole)


def _load(path: Path, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            names = file.keys() if tensors else ()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file; train the fold to the end first") from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: damaged ({error}); delete it and train again") from error
