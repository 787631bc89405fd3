"""Targets: classes in the cohort's order, bins of time cut on the events of the training side alone."""

import numpy as np
import pytest
import torch

from wsi2d.config import ClassificationTask, SurvivalTask
from wsi2d.data.cohort import Cohort, CohortSlide
from wsi2d.errors import SplitError
from wsi2d.training.targets import FoldTask, fold_task

GRADE = ClassificationTask(label="grade")


def patients(*outcomes: tuple[float, bool], name: str = "c") -> tuple[CohortSlide, ...]:
    return tuple(CohortSlide(f"{name}{i}-s", f"{name}{i}", None, t, e) for i, (t, e) in enumerate(outcomes))


def survival_task(train: tuple[CohortSlide, ...], *, bins: int = 4, more: tuple[CohortSlide, ...] = ()) -> FoldTask:
    cohort = Cohort((*train, *more), SurvivalTask(time="months", event="died=1", bins=bins))
    return fold_task(cohort, train, 0)


# --- classes -------------------------------------------------------------------------------------------------------


def test_classes_in_the_cohorts_order() -> None:
    slides = tuple(CohortSlide(f"s{i}", f"c{i}", label) for i, label in enumerate(["mid", "low", "high", "low"]))
    task = fold_task(Cohort(slides, GRADE, ("low", "mid", "high")), slides, 0)
    assert (task.kind, task.classes, task.bin_edges, task.out_dim) == (
        "classification", ("low", "mid", "high"), (), 3,
    )  # fmt: skip
    found = task.targets(slides)
    assert found.index.tolist() == [1, 0, 2, 0]
    assert found.index.dtype == torch.int64
    assert found.event.tolist() == [True] * 4


def test_a_class_missing_from_train() -> None:
    slides = tuple(CohortSlide(f"s{i}", f"c{i}", label) for i, label in enumerate(["low", "high", "low"]))
    cohort = Cohort(slides, GRADE, ("low", "high"))
    with pytest.raises(SplitError, match="fold 7: its train side has no slide of class 'high'; use fewer folds"):
        fold_task(cohort, slides[::2], 7)


def test_targets_move_together() -> None:
    moved = FoldTask("classification", ("a", "b"), ()).targets([CohortSlide("s", "c", "b")]).to(torch.device("meta"))
    assert {moved.index.device.type, moved.event.device.type} == {"meta"}


def test_targets_hold_follow_up_and_join() -> None:
    slides = patients((3.5, True), (2.0, False), (7.25, True))
    found = survival_task(slides).targets(slides)
    assert found.time.tolist() == [3.5, 2.0, 7.25]
    assert found.time.dtype == torch.float64
    both = found.joined(found.last(2))
    assert both.time.tolist() == [3.5, 2.0, 7.25, 2.0, 7.25]
    assert both.event.tolist() == [True, False, True, False, True]
    assert both.index.tolist() == found.index.tolist() + found.index.tolist()[1:]
    assert found.last(9).time.tolist() == found.time.tolist()


@pytest.mark.parametrize(
    ("outcomes", "comparable"),
    [
        ([(3.0, True), (4.0, False)], True),
        ([(3.0, True), (4.0, True)], True),
        ([(3.0, True), (2.0, False)], False),
        ([(3.0, True), (3.0, True)], False),
        ([(3.0, False), (4.0, False)], False),
        ([(3.0, True)], False),
    ],
)
def test_two_can_be_compared_where_one_outlives_the_others_event(
    outcomes: list[tuple[float, bool]], comparable: bool
) -> None:
    slides = patients(*outcomes)
    assert FoldTask("survival", (), (1.0,)).targets(slides).comparable() == comparable


def test_one_log_risk_in_place_of_a_hazard_a_bin() -> None:
    slides = patients((3.0, True), (9.0, True), (5.0, True), (20.0, False))
    cohort = Cohort(slides, SurvivalTask(time="months", event="died=1", bins=3))
    hazards, log_risk = (fold_task(cohort, slides, 0, log_risk=which) for which in (False, True))
    assert (hazards.out_dim, log_risk.out_dim) == (3, 1)
    assert hazards.bin_edges == log_risk.bin_edges
    assert hazards.last_event == log_risk.last_event == 9.0


# --- bins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [2, 3, 4, 10])
def test_edges_are_quantiles_of_training_event_times(bins: int) -> None:
    generator = np.random.default_rng(0)
    times, events = generator.exponential(30, 80), generator.random(80) < 0.4
    task = survival_task(patients(*zip(times, events, strict=True)), bins=bins)
    expected = [np.quantile(times[events], k / bins) for k in range(1, bins)]
    assert task.bin_edges == pytest.approx(expected)
    assert task.out_dim == bins
    index = task.targets(patients(*zip(times, events, strict=True))).index.numpy()
    counts = np.bincount(index[events], minlength=bins)
    assert counts.max() - counts.min() <= 1  # events fall evenly into bins


def test_neither_censored_nor_other_patients_move_the_edges() -> None:
    events = tuple((float(t), True) for t in range(10, 50, 5))
    plain = survival_task(patients(*events))
    censored = survival_task(patients(*events, (1.0, False), (999.0, False), (500.0, False)))
    others = survival_task(patients(*events), more=patients((700.0, True), (0.5, True), name="test"))
    assert plain.bin_edges == censored.bin_edges == others.bin_edges


def test_a_patients_slides_count_once() -> None:
    slides = patients((1.0, True), (2.0, True), (3.0, True), (40.0, True))
    copies = tuple(CohortSlide(f"copy{i}", "c3", None, 40.0, True) for i in range(20))
    assert survival_task((*slides, *copies)).bin_edges == survival_task(slides).bin_edges


def test_bins_hold_their_left_edge() -> None:
    task = FoldTask("survival", (), (10.0, 20.0, 30.0))
    times = [0.0, 9.99, 10.0, 19.99, 20.0, 29.0, 30.0, 31.0, 1e6]
    found = task.targets(patients(*((t, i % 2 == 0) for i, t in enumerate(times))))
    assert found.index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert found.event.tolist() == [i % 2 == 0 for i in range(9)]
    assert (found.index.dtype, found.event.dtype) == (torch.int64, torch.bool)


def test_equal_event_times_make_fewer_bins() -> None:
    task = survival_task(patients(*[(5.0, True)] * 6, (9.0, True), (2.0, False)))
    assert task.bin_edges == (5.0,)
    assert task.out_dim == 2
    assert survival_task(patients((5.0, True), (2.0, False))).bin_edges == (5.0,)


def test_no_event_in_train() -> None:
    with pytest.raises(SplitError, match="fold 0: no event among its training patients; use fewer folds"):
        survival_task(patients((5.0, False), (2.0, False)), more=patients((3.0, True), name="x"))
