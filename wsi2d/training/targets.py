"""What a fold learns: classes, or bins of discrete time cut on its training side alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsi2d.data.cohort import Cohort, CohortSlide
from wsi2d.errors import SplitError
from wsi2d.evaluation.predictions import TaskKind


@dataclass(frozen=True)
class Targets:
    """What is known of a batch.

    Attributes:
        index: int64 ``[batch]``, the class, or the bin of discrete time in which follow-up ends.
        event: bool ``[batch]``, true where the event happened; all true for classification.
    """

    index: Tensor
    event: Tensor

    def to(self, device: torch.device) -> Targets:
        """Move to a device."""
        return Targets(self.index.to(device), self.event.to(device))


@dataclass(frozen=True)
class FoldTask:
    """The task as one fold sees it.

    Attributes:
        kind: ``classification`` or ``survival``.
        classes: class names in the order of the logits; empty for survival.
        bin_edges: inner edges of discrete time, in the cohort's unit; empty for classification.
    """

    kind: TaskKind
    classes: tuple[str, ...]
    bin_edges: tuple[float, ...]

    @property
    def out_dim(self) -> int:
        """Number of logits."""
        return len(self.classes) if self.kind == "classification" else len(self.bin_edges) + 1

    def targets(self, slides: Sequence[CohortSlide]) -> Targets:
        """What is known of slides; times past the last edge are in the last bin."""
        if self.kind == "classification":
            index = torch.tensor([self.classes.index(str(s.label)) for s in slides], dtype=torch.long)
            return Targets(index, torch.ones(len(slides), dtype=torch.bool))
        times = np.array([s.time for s in slides], float)
        index = torch.from_numpy(np.searchsorted(np.asarray(self.bin_edges), times, side="right"))
        return Targets(index.long(), torch.tensor([bool(s.event) for s in slides]))


def fold_task(cohort: Cohort, train: Sequence[CohortSlide], fold: int) -> FoldTask:
    """The task of a fold.

    Raises:
        SplitError: its training side lacks a class, or has no event.
    """
    if cohort.task.kind == "classification":
        absent = [c for c in cohort.classes if c not in {s.label for s in train}]
        if absent:
            raise SplitError(f"fold {fold}: its train side has no slide of class '{absent[0]}'; use fewer folds")
        return FoldTask("classification", cohort.classes, ())
    return FoldTask("survival", (), _bin_edges(train, cohort.task.bins, fold))


def _bin_edges(train: Sequence[CohortSlide], bins: int, fold: int) -> tuple[float, ...]:
    """Inner edges (at most ``bins − 1``) at quantiles of the event times of patients."""
    by_case = {s.case_id: s for s in train}
    times = [float(s.time) for s in by_case.values() if s.event and s.time is not None]
    if not times:
        raise SplitError(f"fold {fold}: no event among its training patients; use fewer folds or other splits")
    edges = np.quantile(times, np.arange(1, bins) / bins)
    return tuple(float(e) for e in np.unique(edges))
