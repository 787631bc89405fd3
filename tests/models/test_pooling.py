"""What pools: cells by bag, means and maxima by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from wsi2d.data.bags import GridBag, collate
from wsi2d.models.aggregator import Embedded
from wsi2d.models.blocks import max_pool

MakeModel = Callable[..., nn.Module]


@pytest.fixture
def embedded() -> Embedded:
    """Five cells of three bags, not in the bags' order; two of them are patches."""
    values = torch.arange(10.0).reshape(5, 2)
    return Embedded(values, torch.tensor([2, 0, 2, 1, 0]), 3, torch.tensor([4, 0]))


def test_cells_by_bag(embedded: Embedded) -> None:
    cells, mask, place = embedded.padded()
    assert cells.tolist() == [[[2, 3], [8, 9]], [[6, 7], [0, 0]], [[0, 1], [4, 5]]]
    assert mask.tolist() == [[True, True], [True, False], [True, True]]
    assert place.tolist() == [0, 0, 1, 0, 1]
    assert torch.equal(cells[embedded.bag, place], embedded.values)


def test_regrouped_bags(embedded: Embedded) -> None:
    joined = embedded.regrouped(torch.tensor([1, 0, 1]), 2)
    assert (joined.bag.tolist(), joined.bags) == ([1, 1, 1, 0, 1], 2)
    assert joined.padded()[0][1].tolist() == [[0, 1], [2, 3], [4, 5], [8, 9]]
    assert torch.equal(joined.patches, embedded.patches)


def test_maxima_by_hand() -> None:
    cells = torch.tensor([[[1.0, 5.0, -3.0], [2.0, 4.0, -9.0], [99.0, 99.0, 99.0]], [[0.0, 0.0, -1.0]] * 3])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values, share = max_pool(cells, mask)
    assert values.tolist() == [[2, 5, -3], [0, 0, -1]]
    torch.testing.assert_close(share, torch.tensor([[2 / 3, 1 / 3, 0], [1, 0, 0]]))


def projected(model: nn.Module, bag: GridBag) -> torch.Tensor:
    return nn.functional.gelu(
        (bag.features - model.standardise.mean) / model.standardise.scale @ model.project[0].weight.T
        + model.project[0].bias
    )


def test_mean_by_hand(make_model: MakeModel, make_bag: Callable[..., GridBag]) -> None:
    model, bag = make_model({"name": "mean", "dim": 8}), make_bag((4, 5))
    with torch.no_grad():
        logits = torch.stack([model.head(patch) for patch in projected(model, bag)])
        output = model(collate([bag]))
    torch.testing.assert_close(output.logits[0], logits.mean(0))
    torch.testing.assert_close(output.attention, torch.full((len(bag),), 1 / len(bag)))


@pytest.mark.parametrize("over", ["logits", "embeddings"])
def test_max_by_hand(make_model: MakeModel, make_bag: Callable[..., GridBag], over: str) -> None:
    model, bag = make_model({"name": "max", "dim": 8, "over": over}), make_bag((4, 5))
    with torch.no_grad():
        patches = projected(model, bag)
        chosen = model.head(patches) if over == "logits" else patches
        expected = chosen.amax(0) if over == "logits" else model.head(patches.amax(0))
        output = model(collate([bag]))
    torch.testing.assert_close(output.logits[0], expected)
    held = torch.stack([(chosen[k] == chosen.amax(0)).float().mean() for k in range(len(bag))])
    torch.testing.assert_close(output.attention, held)
