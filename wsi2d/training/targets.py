"""What a fold learns: classes, or bins of discrete time cut on its training side alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wsi2d.data.cohort import Cohort
from wsi2d.data.cohort_bags import CohortBag
from wsi2d.errors import SplitError
from wsi2d.evaluation.curves import Baseline
from wsi2d.evaluation.predictions import TaskKind


@dataclass(frozen=True)
class Targets:
    """What is known of a batch.

    Attributes:
        index: int64 ``[batch]``, the class, or the bin of discrete time in which follow-up ends.
        event: bool ``[batch]``, true where the event happened; all true for classification.
        time: float64 ``[batch]``, follow-up in the cohort's unit; empty for classification.
    """

    index: Tensor
    event: Tensor
    time: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))

    def to(self, device: torch.device) -> Targets:
        """Move to a device."""
        return Targets(self.index.to(device), self.event.to(device), self.time.to(device))

    def joined(self, more: Targets) -> Targets:
        """These, and more after them."""
        pairs = ((self.index, more.index), (self.event, more.event), (self.time, more.time))
        return Targets(*(torch.cat(pair) for pair in pairs))

    def last(self, count: int) -> Targets:
        """The last ones, at most so many (1 or more)."""
        return Targets(self.index[-count:], self.event[-count:], self.time[-count:])

    def comparable(self) -> bool:
        """Whether of any two it is known who had the event first: one had it, and the other was followed for longer."""
        return bool(self.event.any()) and bool(self.time[self.event].min() < self.time.max())


@dataclass(frozen=True)
class FoldTask:
    """The task as one fold sees it.

    Attributes:
        kind: ``classification`` or ``survival``.
        classes: class names in the order of the logits; empty for survival.
        bin_edges: inner edges of discrete time, in the cohort's unit; empty for classification.
        last_event: the last event time of the training side, where the last bin ends; None for classification.
        log_risk: for survival, whether the model puts out one log-risk in place of a hazard a bin.
        baseline: with ``log_risk``, the cumulative hazard that it multiplies; None before the end of training.
    """

    kind: TaskKind
    classes: tuple[str, ...]
    bin_edges: tuple[float, ...]
    last_event: float | None = None
    log_risk: bool = False
    baseline: Baseline | None = None

    @property
    def out_dim(self) -> int:
        """Number of logits."""
        if self.kind == "classification":
            return len(self.classes)
        return 1 if self.log_risk else len(self.bin_edges) + 1

    def targets(self, bags: Sequence[CohortBag]) -> Targets:
        """What is known of bags; times past the last edge are in the last bin."""
        if self.kind == "classification":
            index = torch.tensor([self.classes.index(str(b.label)) for b in bags], dtype=torch.long)
            return Targets(index, torch.ones(len(bags), dtype=torch.bool))
        times = np.array([b.time for b in bags], float)
        index = torch.from_numpy(np.searchsorted(np.asarray(self.bin_edges), times, side="right"))
        return Targets(index.long(), torch.tensor([bool(b.event) for b in bags]), torch.from_numpy(times))


def fold_task(cohort: Cohort, train: Sequence[CohortBag], fold: int, *, log_risk: bool = False) -> FoldTask:
    """The task of a fold; ``log_risk`` as in :class:`FoldTask`.

    Raises:
        SplitError: its training side lacks a class, or has no event.
    """
    if cohort.task.kind == "classification":
        absent = [c for c in cohort.classes if c not in {s.label for s in train}]
        if absent:
            raise SplitError(f"fold {fold}: its train side has no slide of class '{absent[0]}'; use fewer folds")
        return FoldTask("classification", cohort.classes, ())
    times = _event_times(train, fold)
    return FoldTask("survival", (), _bin_edges(times, cohort.task.bins), max(times), log_risk)


def _event_times(train: Sequence[CohortBag], fold: int) -> list[float]:
    """When patients had the event, each once."""
    by_case = {b.case_id: b for b in train}
    times = [float(b.time) for b in by_case.values() if b.event and b.time is not None]
    if not times:
        raise SplitError(f"fold {fold}: no event among its training patients; use fewer folds or other splits")
    return times


def _bin_edges(times: Sequence[float], bins: int) -> tuple[float, ...]:
    """Inner edges (at most ``bins − 1``) at quantiles of event times."""
    edges = np.quantile(times, np.arange(1, bins) / bins)
    return tuple(float(e) for e in np.unique(edges))
