"""One fold: train on train, choose the epoch on val, score test once."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wsi2d.compute import begin_peak_memory, peak_memory_gb, resolve_device
from wsi2d.config import BagUnit, RunConfig, TrainingConfig
from wsi2d.data.bags import BagStore
from wsi2d.data.cohort import Cohort
from wsi2d.data.cohort_bags import CohortBag, bags_of
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
from wsi2d.training.inference import fit_baseline, load_batch, median_risk, predict_all, risk_of, to_prediction
from wsi2d.training.losses.registry import Loss, LossConfig, RiskSetConfig, build_loss, loss_config
from wsi2d.training.risk_sets import RiskBank, even_groups, joint_logits
from wsi2d.training.supervision import LossOverSets, mean_penalty
from wsi2d.training.targets import FoldTask, fold_task

MODEL_FILE = "model.safetensors"
RESUME_FILE = "last.safetensors"
HISTORY_FILE = "history.csv"

EpochCallback = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class FoldBags:
    """The bags of a fold by side, all of which can be loaded."""

    index: int
    train: tuple[CohortBag, ...]
    val: tuple[CohortBag, ...]
    test: tuple[CohortBag, ...]


@dataclass(frozen=True)
class FoldSetup:
    """What stays the same over a fold's epochs."""

    config: RunConfig
    fold: FoldBags
    task: FoldTask
    store: BagStore
    loss: Loss
    loss_options: LossConfig
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
    options = loss_config(config.training.loss, cohort.task.kind)
    bags, task = check_fold(cohort, fold, store, options, config.data.bag)
    device = resolve_device(config.training.device)
    loss = build_loss(options, task.targets(bags.train), task.out_dim)
    setup = FoldSetup(config, bags, task, store, loss, options, device)
    make_folder(folder, "check the run folder's permissions and disk")
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        _train(setup, folder, on_epoch)
        model, card = load_model(folder / MODEL_FILE, device)
        size, cut = config.training.batch_size, None
        if task.kind == "survival":
            found = predict_all(model, store, bags.train, batch_size=size, device=device)
            risks = [(bag, risk_of(logits, task)) for bag, logits, _ in found]
            cut = median_risk(risks)
            card = replace(card, baseline=fit_baseline(risks) if task.log_risk else None, risk_cut=cut)
            save_model(model, card, folder / MODEL_FILE)
        return [
            to_prediction(bag, logits, attention, card.task, fold.index, risk_cut=cut)
            for bag, logits, attention in predict_all(model, store, bags.test, batch_size=size, device=device)
        ]


def _train(setup: FoldSetup, folder: Path, on_epoch: EpochCallback) -> None:
    """The loop: an epoch over train, a look at val, the best kept, a point to go on from."""
    training, fold = setup.config.training, setup.fold
    widths = {"in_dim": setup.store.spec.dim, "out_dim": setup.task.out_dim}
    model = initial_model(setup.config, fold.index, **widths)
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
        begin_peak_memory(setup.device)
        torch.manual_seed(_seed(setup, epoch))
        train_loss = _train_epoch(model, optimizer, setup, epoch)
        val_loss, val_metric = _validate(model, setup)
        score = val_loss if training.select == "loss" or math.isnan(val_metric) else -val_metric
        row = {
            "epoch": epoch, "lr": optimizer.param_groups[0]["lr"], "train_loss": train_loss, "val_loss": val_loss,
            "val_metric": val_metric, "seconds": round(time.perf_counter() - start, 3),
            "peak_gb": round(peak_memory_gb(setup.device), 3),
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
    """One pass over the training bags in a new order; returns their mean loss."""
    training, bags = setup.config.training, setup.fold.train
    order = np.random.default_rng(_seed(setup, epoch)).permutation(len(bags))
    steps, bank = _steps([bags[i] for i in order], setup)
    model.train()
    total = 0.0
    for step, chosen in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(training, (epoch - 1 + step / len(steps)) / training.epochs)
        targets = setup.task.targets(chosen).to(setup.device)
        logits, penalties = _trained_on(model, setup, chosen, epoch)
        loss = bank.loss(LossOverSets(setup.loss, model.loss_weights), logits, targets)
        if penalties is not None and setup.task.kind == "classification":
            loss = loss + mean_penalty(penalties, targets)
        loss = loss / training.loss_divisor
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if training.grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
        optimizer.step()
        total += loss.item() * len(chosen)
    return total / len(bags)


def _steps(bags: Sequence[CohortBag], setup: FoldSetup) -> tuple[list[Sequence[CohortBag]], RiskBank]:
    """Which bags each step of an epoch takes, and an empty bank."""
    if isinstance(setup.loss_options, RiskSetConfig):
        return even_groups(bags, setup.loss_options.bags), RiskBank(setup.loss_options.bank)
    return list(_chunks(bags, setup.config.training.batch_size)), RiskBank(0)


def _trained_on(
    model: Aggregator, setup: FoldSetup, chosen: Sequence[CohortBag], epoch: int
) -> tuple[Tensor, Tensor | None]:
    """Logits ``[bags, sets, out_dim]`` of a step's bags, which may be more than a batch, and penalties."""
    parts = _chunks(chosen, setup.config.training.batch_size)
    batches = (load_batch(setup.store, part, epoch).to(setup.device) for part in parts)
    if len(chosen) > setup.config.training.batch_size:
        return joint_logits(model, batches), None
    output = model(next(batches))
    return output.trained_logits, output.penalties


def _validate(model: Aggregator, setup: FoldSetup) -> tuple[float, float]:
    """Loss and metric (AUC or C-index) on val."""
    training, fold, task = setup.config.training, setup.fold, setup.task
    model.eval()
    found = list(predict_all(model, setup.store, fold.val, batch_size=training.batch_size, device=setup.device))
    logits = torch.stack([logits for _, logits, _ in found])
    targets = task.targets([bag for bag, _, _ in found])
    loss = setup.loss(logits, targets).item() / training.loss_divisor
    if not math.isfinite(loss):
        raise ConfigError(
            f"fold {fold.index}: training diverged, the loss on val is {loss}; lower training.lr, or set a grad_clip"
        )
    predictions = [to_prediction(bag, row, attention, task, fold.index) for bag, row, attention in found]
    if task.kind == "classification":
        return loss, auc(targets.index.numpy(), np.stack([p.scores for p in predictions]))
    times = np.array([p.time for p in predictions], float)
    risks = np.array([p.risk for p in predictions], float)
    return loss, survival_metrics(times, targets.event.numpy(), risks)["c_index"]


def initial_model(config: RunConfig, fold: int, *, in_dim: int, out_dim: int) -> Aggregator:
    """A fold's model with the weights that its training begins with, its features not yet standardised.

    Seeds torch's global state: to be called where that is put back afterwards.
    """
    torch.manual_seed(_fold_seed(config, fold, 0))
    return build_model(config.model, in_dim=in_dim, out_dim=out_dim)


def check_fold(
    cohort: Cohort, fold: SlideFold, store: BagStore, loss: LossConfig, unit: BagUnit
) -> tuple[FoldBags, FoldTask]:
    """A fold's bags, of the slides that have features with tissue, and its task for a loss.

    Raises:
        CohortError: slides cannot be joined (:class:`CohortBag`).
        SplitError: a side has nothing to train on or to score, a class or every event is missing from train, or train
            or val has no two patients that the loss can compare.
    """
    bags = _usable(fold, store, unit)
    compares = isinstance(loss, RiskSetConfig)
    task = fold_task(cohort, bags.train, fold.index, log_risk=compares)
    for name, side in (("train", bags.train), ("val", bags.val)):
        if compares and not task.targets(side).comparable():
            raise SplitError(
                f"fold {fold.index}: no two patients on its {name} side can be compared (one with an event, another "
                f"followed for longer), as loss '{loss.name}' does; use fewer folds, other splits, or training.loss=nll"
            )
    return bags, task


def _usable(fold: SlideFold, store: BagStore, unit: BagUnit) -> FoldBags:
    sides = {name: tuple(s for s in getattr(fold, name) if s.slide_id in store) for name in ("train", "val", "test")}
    for name, slides in sides.items():
        if not slides:
            raise SplitError(
                f"fold {fold.index}: no slide of its {name} side has features with tissue; extract its slides, or use "
                "other splits"
            )
    return FoldBags(fold.index, **{name: bags_of(slides, unit) for name, slides in sides.items()})


def _fit_standardise(model: Aggregator, setup: FoldSetup) -> None:
    """Mean and deviation of the embeddings over the training side's patches, in float64."""
    if model.standardise is None:
        return
    count, total, squares = 0, torch.zeros(setup.store.spec.dim).double(), torch.zeros(setup.store.spec.dim).double()
    for slide_id in (i for bag in setup.fold.train for i in bag.slide_ids):
        features = setup.store.load(slide_id).features.double()
        count, total, squares = count + len(features), total + features.sum(0), squares + features.square().sum(0)
    mean = total / count
    model.standardise.fit(mean.float(), (squares / count - mean**2).clamp_min(0).sqrt().float())


def _parameter_groups(model: nn.Module, training: TrainingConfig) -> list[dict[str, object]]:
    """Weight decay for matrices; A, D, biases, norms and tokens are spared unless ``decay_all``."""
    decay: list[Tensor] = []
    spare: list[Tensor] = []
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or name.endswith(("A_log", "A_imag", "token"))
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
        last_event=setup.task.last_event,
        log_risk=setup.task.log_risk,
    )


def _seed(setup: FoldSetup, epoch: int) -> int:
    return _fold_seed(setup.config, setup.fold.index, epoch)


def _fold_seed(config: RunConfig, fold: int, epoch: int) -> int:
    """A seed for each (run, fold, epoch); epoch 0 is the initialisation."""
    return int(np.random.SeedSequence([config.seed, fold, epoch]).generate_state(1)[0])


def _chunks(bags: Sequence[CohortBag], size: int) -> Iterator[Sequence[CohortBag]]:
    for start in range(0, len(bags), size):
        yield bags[start : start + size]


def _write_history(history: Sequence[dict[str, float]], best_epoch: int, path: Path) -> None:
    table = io.StringIO()
    rows = csv.DictWriter(table, [*history[-1], "chosen"], lineterminator="\n")
    rows.writeheader()
    rows.writerows({**row, "chosen": int(row["epoch"] == best_epoch)} for row in history)
    write_text(path, table.getvalue())
