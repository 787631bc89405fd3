"""One fold: train on train, choose the epoch on val, score test once."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wsi2d.compute import resolve_device
from wsi2d.config import RunConfig, TrainingConfig
from wsi2d.data.bags import BagStore, collate
from wsi2d.data.cohort import Cohort, CohortSlide
from wsi2d.data.splits import SlideFold
from wsi2d.errors import ConfigError, SplitError
from wsi2d.evaluation.metrics import auc
from wsi2d.evaluation.predictions import Prediction
from wsi2d.evaluation.survival import survival_metrics
from wsi2d.files import make_folder, write_text
from wsi2d.models.aggregator import Aggregator
from wsi2d.models.registry import build_model, model_config
from wsi2d.training.checkpoint import (
    ModelCard,
    ResumePoint,
    load_model,
    load_resume_point,
    optimizer_tensors,
    restore_optimizer,
    save_model,
    save_resume_point,
)
from wsi2d.training.inference import predict_slides, to_prediction
from wsi2d.training.losses.registry import Loss, build_loss, loss_config
from wsi2d.training.targets import FoldTask, fold_task

MODEL_FILE = "model.safetensors"
RESUME_FILE = "last.safetensors"
HISTORY_FILE = "history.csv"

EpochCallback = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class FoldSetup:
    """What stays the same over a fold's epochs."""

    config: RunConfig
    fold: SlideFold
    task: FoldTask
    store: BagStore
    loss: Loss
    device: torch.device


def train_fold(
    config: RunConfig, cohort: Cohort, fold: SlideFold, store: BagStore, folder: Path, on_epoch: EpochCallback
) -> list[Prediction]:
    """Train one fold into its folder, going on where an earlier run stopped, and predict its test side.

    Every epoch draws its order and its dropout from (seed, fold, epoch) alone, so that a fold that was interrupted
    ends with the numbers of one that was not. Global random state is left as it was.

    Args:
        config: the run.
        cohort: all slides.
        fold: slides by side; those without features or tissue are left out.
        store: their bags.
        folder: gets ``model.safetensors``, ``history.csv`` and, until the fold is done, ``last.safetensors``.
        on_epoch: called with the fold's index and each row of the history.

    Returns:
        Predictions of the test side by the chosen epoch's model.

    Raises:
        SplitError: a side has nothing to train on or to score.
        ConfigError: training diverges.
    """
    fold, task = check_fold(cohort, fold, store)
    device = resolve_device(config.training.device)
    section = loss_config(config.training.loss, task.kind)
    setup = FoldSetup(config, fold, task, store, build_loss(section, task.targets(fold.train), task.out_dim), device)
    make_folder(folder, "check the run folder's permissions and disk")
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        _train(setup, folder, on_epoch)
        model, _ = load_model(folder / MODEL_FILE, device)
        return [
            to_prediction(slide, logits, attention, task.kind, fold.index)
            for slide, logits, attention in predict_slides(
                model, store, fold.test, batch_size=config.training.batch_size, device=device
            )
        ]


def _train(setup: FoldSetup, folder: Path, on_epoch: EpochCallback) -> None:
    """The loop: an epoch over train, a look at val, the best kept, a point to go on from."""
    training, fold = setup.config.training, setup.fold
    torch.manual_seed(_seed(setup, 0))
    model = build_model(setup.config.model, in_dim=setup.store.spec.dim, out_dim=setup.task.out_dim)
    _fit_standardise(model, setup)
    model.to(setup.device)
    optimizer = torch.optim.AdamW(_parameter_groups(model, training), lr=training.lr)
    point = load_resume_point(folder / RESUME_FILE)
    if point is None:
        point = ResumePoint({}, {}, 0, 0, math.inf, [])
    else:
        model.load_state_dict(point.model)
        restore_optimizer(optimizer, point.optimizer)
    best_epoch, best_score, history = point.best_epoch, point.best_score, list(point.history)
    for epoch in range(point.epoch + 1, training.epochs + 1):
        start = time.perf_counter()
        torch.manual_seed(_seed(setup, epoch))
        train_loss = _train_epoch(model, optimizer, setup, epoch)
        val_loss, val_metric = _validate(model, setup)
        score = val_loss if training.select == "loss" or math.isnan(val_metric) else -val_metric
        row = {
            "epoch": epoch, "lr": optimizer.param_groups[0]["lr"], "train_loss": train_loss, "val_loss": val_loss,
            "val_metric": val_metric, "seconds": round(time.perf_counter() - start, 3),
        }  # fmt: skip
        history.append(row)
        if score < best_score or best_epoch == 0:
            best_epoch, best_score = epoch, score
            save_model(model, _card(setup, epoch), folder / MODEL_FILE)
        # The point to go on from comes last: what is killed before it does this epoch again, and loses nothing.
        _write_history(history, best_epoch, folder / HISTORY_FILE)
        tensors = model.state_dict(), optimizer_tensors(optimizer)
        save_resume_point(ResumePoint(*tensors, epoch, best_epoch, best_score, history), folder / RESUME_FILE)
        on_epoch(fold.index, row)


def _train_epoch(model: Aggregator, optimizer: torch.optim.Optimizer, setup: FoldSetup, epoch: int) -> float:
    """One pass over the training slides in a new order; returns their mean loss."""
    training, slides = setup.config.training, setup.fold.train
    order = np.random.default_rng(_seed(setup, epoch)).permutation(len(slides))
    steps = math.ceil(len(order) / training.batch_size)
    model.train()
    total = 0.0
    for step, chosen in enumerate(_chunks([slides[i] for i in order], training.batch_size)):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(training, (epoch - 1 + step / steps) / training.epochs)
        batch = collate([setup.store.load(s.slide_id) for s in chosen]).to(setup.device)
        loss = setup.loss(model(batch).logits, setup.task.targets(chosen).to(setup.device)) / training.loss_divisor
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if training.grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
        optimizer.step()
        total += loss.item() * len(chosen)
    return total / len(slides)


def _validate(model: Aggregator, setup: FoldSetup) -> tuple[float, float]:
    """Loss and metric (AUC or C-index) on val."""
    training, fold, task = setup.config.training, setup.fold, setup.task
    model.eval()
    found = list(predict_slides(model, setup.store, fold.val, batch_size=training.batch_size, device=setup.device))
    logits = torch.stack([logits for _, logits, _ in found])
    targets = task.targets([slide for slide, _, _ in found])
    loss = setup.loss(logits, targets).item() / training.loss_divisor
    if not math.isfinite(loss):
        raise ConfigError(
            f"fold {fold.index}: training diverged, the loss on val is {loss}; lower training.lr, or set a grad_clip"
        )
    predictions = [to_prediction(slide, row, attention, task.kind, fold.index) for slide, row, attention in found]
    if task.kind == "classification":
        return loss, auc(targets.index.numpy(), np.stack([p.scores for p in predictions]))
    times = np.array([p.time for p in predictions], float)
    risks = np.array([p.risk for p in predictions], float)
    return loss, survival_metrics(times, targets.event.numpy(), risks)["c_index"]


def check_fold(cohort: Cohort, fold: SlideFold, store: BagStore) -> tuple[SlideFold, FoldTask]:
    """A fold without the slides that have no features or no tissue, and its task.

    Raises:
        SplitError: a side has nothing to train on or to score, a class or every event is missing from train.
    """
    fold = _usable(fold, store)
    return fold, fold_task(cohort, fold.train, fold.index)


def _usable(fold: SlideFold, store: BagStore) -> SlideFold:
    sides = {name: tuple(s for s in getattr(fold, name) if s.slide_id in store) for name in ("train", "val", "test")}
    for name, slides in sides.items():
        if not slides:
            raise SplitError(
                f"fold {fold.index}: no slide of its {name} side has features with tissue; extract its slides, or use "
                "other splits"
            )
    return SlideFold(fold.index, **sides, inner_val=fold.inner_val, leaked_cases=fold.leaked_cases)


def _fit_standardise(model: Aggregator, setup: FoldSetup) -> None:
    """Mean and deviation of the embeddings over the training side's patches, in float64."""
    if model.standardise is None:
        return
    count, total, squares = 0, torch.zeros(setup.store.spec.dim).double(), torch.zeros(setup.store.spec.dim).double()
    for slide in setup.fold.train:
        features = setup.store.load(slide.slide_id).features.double()
        count, total, squares = count + len(features), total + features.sum(0), squares + features.square().sum(0)
    mean = total / count
    model.standardise.fit(mean.float(), (squares / count - mean**2).clamp_min(0).sqrt().float())


def _parameter_groups(model: nn.Module, training: TrainingConfig) -> list[dict[str, object]]:
    """Weight decay for matrices; A_log, D, biases, norms and tokens are spared unless ``decay_all``."""
    decay: list[Tensor] = []
    spare: list[Tensor] = []
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or name.endswith("A_log")
        (spare if spared and not training.decay_all else decay).append(parameter)
    return [{"params": decay, "weight_decay": training.weight_decay}, {"params": spare, "weight_decay": 0.0}]


def _learning_rate(training: TrainingConfig, progress: float) -> float:
    """At ``progress`` 0 to 1 through the training: constant, or a half cosine to zero."""
    return training.lr * (0.5 * (1 + math.cos(math.pi * progress)) if training.schedule == "cosine" else 1.0)


def _card(setup: FoldSetup, epoch: int) -> ModelCard:
    return ModelCard(
        model=model_config(setup.config.model).model_dump(),
        in_dim=setup.store.spec.dim,
        out_dim=setup.task.out_dim,
        kind=setup.task.kind,
        classes=setup.task.classes,
        bin_edges=setup.task.bin_edges,
        features=setup.store.spec,
        fold=setup.fold.index,
        epoch=epoch,
    )


def _seed(setup: FoldSetup, epoch: int) -> int:
    """A seed for each (run, fold, epoch); epoch 0 is the initialisation."""
    return int(np.random.SeedSequence([setup.config.seed, setup.fold.index, epoch]).generate_state(1)[0])


def _chunks(slides: Sequence[CohortSlide], size: int) -> Iterator[Sequence[CohortSlide]]:
    for start in range(0, len(slides), size):
        yield slides[start : start + size]


def _write_history(history: Sequence[dict[str, float]], best_epoch: int, path: Path) -> None:
    table = io.StringIO()
    rows = csv.DictWriter(table, [*history[0], "chosen"], lineterminator="\n")
    rows.writeheader()
    rows.writerows({**row, "chosen": int(row["epoch"] == best_epoch)} for row in history)
    write_text(path, table.getvalue())
