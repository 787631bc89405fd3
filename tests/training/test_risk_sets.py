"""Which bags meet in a step, what a bank remembers, and logits that are made twice."""

from types import ModuleType

import numpy as np
import pytest
import torch

from wsi2d.data.bags import BagBatch, GridBag, collate
from wsi2d.data.cohort import CohortSlide
from wsi2d.models.registry import build_model
from wsi2d.training.losses.registry import build_loss, loss_config
from wsi2d.training.risk_sets import RiskBank, even_groups, joint_logits
from wsi2d.training.targets import Targets


def outcomes(count: int) -> Targets:
    """Random ones at few times."""
    generator = np.random.default_rng(count)
    time = torch.from_numpy(generator.integers(1, 5, count).astype(float))
    return Targets(torch.zeros(count, dtype=torch.long), torch.from_numpy(generator.random(count) < 0.6), time)


def part(targets: Targets, chosen: slice) -> Targets:
    return Targets(targets.index[chosen], targets.event[chosen], targets.time[chosen])


@pytest.mark.parametrize("size", [1, 2, 3, 16, 64])
def test_groups_keep_the_order_and_are_as_equal_and_as_few_as_can_be(size: int) -> None:
    for count in range(1, 70):
        slides = [CohortSlide(f"s{i}", f"c{i}") for i in range(count)]
        groups = even_groups(slides, size)
        assert [s for group in groups for s in group] == slides
        lengths = [len(group) for group in groups]
        assert max(lengths) <= size
        assert max(lengths) - min(lengths) <= 1
        assert (len(groups) - 1) * size < count


@pytest.mark.parametrize("name", ["cox", "ranking"])
def test_a_bank_is_the_loss_over_the_latest_bags_and_its_gradient_grows_with_them(name: str) -> None:
    loss = build_loss(loss_config({"name": name}, "survival"), outcomes(2), 1)
    logits, targets = torch.randn(14, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), outcomes(14)
    bank = RiskBank(5)
    for start in range(0, 14, 2):
        first = max(0, start - 5)
        own = logits[start : start + 2].clone().requires_grad_()
        value = bank.loss(loss, own, part(targets, slice(start, start + 2)))
        value.backward()
        together = logits[first : start + 2].clone().requires_grad_()
        expected = loss(together, part(targets, slice(first, start + 2)))
        expected.backward()
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        factor = len(together) / 2
        np.testing.assert_allclose(own.grad, together.grad[-2:] * factor, rtol=1e-12, atol=1e-15)


def test_an_empty_bank_changes_nothing() -> None:
    loss = build_loss(loss_config({"name": "cox"}, "survival"), outcomes(2), 1)
    logits, targets = torch.randn(9, 1), outcomes(9)
    bank = RiskBank(0)
    for _ in range(3):
        assert torch.equal(bank.loss(loss, logits, targets), loss(logits, targets))


def test_logits_of_several_batches_are_those_of_each_with_the_same_dropout_on_the_way_back(tiny: ModuleType) -> None:
    """The gradients are those of a graph that is kept whole."""
    torch.manual_seed(0)
    model = build_model({**tiny.MODEL, "dropout": 0.5, "standardise": False}, in_dim=6, out_dim=1).train()
    cells = torch.tensor([[0, 0], [0, 1], [1, 1]])
    batches: list[BagBatch] = [collate([GridBag(f"s{i}", torch.randn(3, 6), cells, (2, 2))]) for i in range(4)]

    def gradients(logits: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        logits.square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    torch.manual_seed(1)
    kept = torch.cat([model(batch).trained_logits for batch in batches])
    whole = gradients(kept)
    torch.manual_seed(1)
    again = joint_logits(model, batches)
    assert torch.equal(again, kept)
    assert not torch.equal(model(batches[0]).logits, model(batches[0]).logits), "dropout draws anew"
    found = gradients(again)
    assert len(whole) == len(found) > 5
    for a, b in zip(whole, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
