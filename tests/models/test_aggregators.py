"""What each aggregator sees: `abmil` nothing of position, `mamba2d-mil` the plane, its controls less of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from wsi2d.data.bags import GridBag, collate

MakeBag = Callable[..., GridBag]
MakeModel = Callable[..., nn.Module]

DOUBLE = {"dtype": torch.float64}
MAMBA = {"name": "mamba2d-mil", "dim": 8, "state": 3, "attention_dim": 5}


def run(model: nn.Module, bag: GridBag) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and attention of one bag."""
    with torch.no_grad():
        output = model(collate([bag]))
    return output.logits[0], output.attention


def moved(bag: GridBag, seed: int = 1) -> GridBag:
    """The same patches, each in another's place."""
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(seed))
    return GridBag(bag.slide_id, bag.features, bag.index[order], bag.shape)


def flipped(bag: GridBag, *axes: int) -> GridBag:
    index = bag.index.clone()
    for axis in axes:
        index[:, axis] = bag.shape[axis] - 1 - index[:, axis]
    return GridBag(bag.slide_id, bag.features, index, bag.shape)


def joined_by_hand(model: nn.Module, slides: list[GridBag]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and attention of a patient: what pooling gets of each slide by itself, pooled together."""
    cells, scores, before = [], [], getattr(model, "norm", None) or model.project
    for slide in slides:
        kept = []
        handle = before.register_forward_hook(lambda module, given, output, kept=kept: kept.append(output))
        run(model, slide)
        handle.remove()
        places = slide.index[:, 0] * slide.shape[1] + slide.index[:, 1]  # on a grid, flattened or not
        cells.append(kept[0] if kept[0].ndim == 2 else kept[0].flatten(0, 2)[places])
        hidden = torch.tanh(model.pool.value(cells[-1]))
        hidden = hidden if model.pool.gate is None else hidden * torch.sigmoid(model.pool.gate(cells[-1]))
        scores.append(model.pool.score(hidden)[:, 0])
    attention = torch.cat(scores).softmax(0)
    return model.head(attention @ torch.cat(cells)), attention


@pytest.mark.parametrize(
    "section",
    [{"name": "abmil", "dim": 8}, MAMBA, MAMBA | {"conv": "raster", "directions": 1}, MAMBA | {"layout": "row"}],
    ids=["abmil", "mamba2d", "raster", "row"],
)
def test_slides_of_a_patient_are_encoded_apart_and_pooled_together(
    make_bag: MakeBag, make_model: MakeModel, section: dict[str, Any]
) -> None:
    """However many there are and in whichever order; nothing of a slide reaches the grid of another."""
    shapes = [(6, 7), (3, 2), (1, 5)]
    model, slides = make_model(section, **DOUBLE), [make_bag(s, seed=k, **DOUBLE) for k, s in enumerate(shapes)]
    with torch.no_grad():
        expected = joined_by_hand(model, slides)
        found, turned = model(collate(slides, [3])), model(collate(slides[::-1], [3]))
    torch.testing.assert_close(found.logits[0], expected[0])
    torch.testing.assert_close(found.attention, expected[1])
    torch.testing.assert_close(turned.logits, found.logits)
    parts = turned.attention.split([len(s) for s in slides[::-1]])
    torch.testing.assert_close(torch.cat(parts[::-1]), found.attention)


# --- abmil ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [True, False])
def test_abmil_is_blind_to_place_and_order(make_bag: MakeBag, make_model: MakeModel, gated: bool) -> None:
    model, bag = make_model({"name": "abmil", "dim": 8, "gated": gated}, **DOUBLE), make_bag((6, 7), **DOUBLE)
    logits, attention = run(model, bag)
    elsewhere = GridBag(
        "x", bag.features, torch.stack([torch.zeros(len(bag)).long(), torch.arange(len(bag))], 1), (1, 99)
    )
    for other in (moved(bag), elsewhere, flipped(bag, 0)):
        found = run(model, other)
        assert torch.equal(found[0], logits)
        assert torch.equal(found[1], attention)
    order = torch.randperm(len(bag))
    found = run(model, GridBag("x", bag.features[order], bag.index[order], bag.shape))
    torch.testing.assert_close(found[0], logits)
    torch.testing.assert_close(found[1], attention[order])


def test_abmil_gate_matters(make_bag: MakeBag, make_model: MakeModel) -> None:
    gated, plain = (make_model({"name": "abmil", "gated": gated}) for gated in (True, False))
    assert {name for name, _ in gated.named_parameters()} - {name for name, _ in plain.named_parameters()} == {
        "pool.gate.weight",
        "pool.gate.bias",
    }


# --- mamba2d-mil ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"directions": 1, "conv": "none"},
        {"directions": 1, "conv": "raster", "pool": "all"},
        {"scan": False},
        {"layout": "row", "conv": "none"},
        {"scan_order": "raster", "conv": "none"},
        {"scan_order": "serpentine", "conv": "none"},
        {"scan_order": "cross", "conv": "none"},
        {"empty": "zero", "conv": "none"},
    ],
    ids=str,
)
def test_mamba2d_sees_where_patches_are(make_bag: MakeBag, make_model: MakeModel, options: dict[str, Any]) -> None:
    model, bag = make_model(MAMBA | options, **DOUBLE), make_bag((6, 7), **DOUBLE)
    assert (run(model, bag)[0] - run(model, moved(bag))[0]).abs().max() > 1e-3


def test_without_convolution_or_scan_it_is_blind(make_bag: MakeBag, make_model: MakeModel) -> None:
    model, bag = make_model(MAMBA | {"scan": False, "conv": "none"}, **DOUBLE), make_bag((6, 7), **DOUBLE)
    torch.testing.assert_close(run(model, moved(bag))[0], run(model, bag)[0])


def test_convolution_alone_reaches_its_neighbours_only(make_bag: MakeBag, make_model: MakeModel) -> None:
    far = {"scan": False, "conv": "2d"}
    for options, reaches in ((far, False), ({"conv": "none"}, True)):
        model, bag = make_model(MAMBA | options, **DOUBLE), make_bag((9, 9), share=1.0, **DOUBLE)
        features = bag.features.clone().requires_grad_()
        score = scores_before_softmax(model, GridBag("x", features, bag.index, bag.shape), cell=(4, 4))
        (gradient,) = torch.autograd.grad(score, features)
        reached = (gradient.abs().amax(1) > 1e-12).nonzero()[:, 0]
        distance = (bag.index[reached] - torch.tensor([4, 4])).abs().amax()
        assert (int(distance) > 1) == reaches
        assert len(reached) == (81 if reaches else 9)


def scores_before_softmax(model: nn.Module, bag: GridBag, *, cell: tuple[int, int]) -> torch.Tensor:
    """The sum of a cell's values as pooling gets them."""
    kept = []
    handle = model.norm.register_forward_hook(lambda module, given, output: kept.append(given[0]))
    model(collate([bag]))
    handle.remove()
    (row,) = (bag.index == torch.tensor(cell)).all(1).nonzero()[:, 0].tolist()
    return (kept[0][row] * torch.arange(1.0, 9.0).double()).sum()


@pytest.mark.parametrize(
    "options", [{}, {"conv": "raster"}, {"conv": "none", "directions": 1}, {"pool": "all"}], ids=str
)
@pytest.mark.parametrize("shape", [(1, 8), (1, 1)], ids=str)
def test_a_row_is_a_grid_of_height_one(
    make_bag: MakeBag, make_model: MakeModel, options: dict[str, Any], shape: tuple[int, int]
) -> None:
    bag = make_bag(shape, **DOUBLE)
    grid, row = (make_model(MAMBA | options | {"layout": layout}, **DOUBLE) for layout in ("grid", "row"))
    row.load_state_dict(grid.state_dict())
    for a, b in zip(run(grid, bag), run(row, bag), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    tall = make_bag((4, 3), **DOUBLE)
    assert (run(grid, tall)[0] - run(row, tall)[0]).abs().max() > 1e-4


def test_a_flattened_grid_is_its_cells_in_raster_order(make_bag: MakeBag, make_model: MakeModel) -> None:
    model, bag = make_model(MAMBA | {"layout": "row"}, **DOUBLE), make_bag((4, 5), **DOUBLE)
    index = torch.stack([torch.zeros(len(bag)).long(), bag.index[:, 0] * 5 + bag.index[:, 1]], 1)
    as_row = GridBag("x", bag.features, index, (1, 20))
    for a, b in zip(run(model, bag), run(model, as_row), strict=True):
        torch.testing.assert_close(a, b)


def test_without_convolution_a_raster_scan_is_that_of_the_flattened_grid(
    make_bag: MakeBag, make_model: MakeModel
) -> None:
    options, bag = {"conv": "none", "directions": 2, "blocks": 2}, make_bag((4, 5), **DOUBLE)
    raster = make_model(MAMBA | options | {"scan_order": "raster"}, **DOUBLE)
    for other in ({"layout": "row"}, {"scan_order": "2d"}, {"scan_order": "serpentine"}, {"scan_order": "cross"}):
        model = make_model(MAMBA | options | other, **DOUBLE)
        model.load_state_dict(raster.state_dict())
        apart = (run(model, bag)[0] - run(raster, bag)[0]).abs().max()
        assert (apart < 1e-12) == (other == {"layout": "row"}), other


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)], ids=["rows", "columns", "both"])
@pytest.mark.parametrize("pool", ["tissue", "all"])
def test_shared_directions_make_it_blind_to_flips(
    make_bag: MakeBag, make_model: MakeModel, axes: tuple[int, ...], pool: str
) -> None:
    options = {"share_directions": True, "directions": 4, "conv": "none", "blocks": 2, "pool": pool}
    model, bag = make_model(MAMBA | options, **DOUBLE), make_bag((4, 6), **DOUBLE)
    for a, b in zip(run(model, bag), run(model, flipped(bag, *axes)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    own = make_model(MAMBA | options | {"share_directions": False}, **DOUBLE)
    assert (run(own, bag)[0] - run(own, flipped(bag, *axes))[0]).abs().max() > 1e-4


@pytest.mark.parametrize("empty", ["token", "zero"])
def test_empty_cells(make_bag: MakeBag, make_model: MakeModel, empty: str) -> None:
    model, bag = make_model(MAMBA | {"empty": empty}, **DOUBLE), make_bag((5, 5), **DOUBLE)
    full = make_bag((5, 5), share=1.0, **DOUBLE)
    before = run(model, bag)[0], run(model, full)[0]
    assert ("empty_token" in dict(model.named_parameters())) == (empty == "token")
    with torch.no_grad():
        model.empty_token.add_(1.0)
    after = run(model, bag)[0], run(model, full)[0]
    assert (before[0] - after[0]).abs().max() > 1e-3
    assert torch.equal(before[1], after[1])


def test_only_the_published_pooling_attends_to_empty_cells(make_bag: MakeBag, make_model: MakeModel) -> None:
    bag = make_bag((5, 5), **DOUBLE)
    totals = {}
    for pool in ("tissue", "all"):
        model = make_model(MAMBA | {"pool": pool, "scan": False, "conv": "none"}, **DOUBLE)
        totals[pool] = run(model, bag)[1]
    assert float(totals["tissue"].sum()) == pytest.approx(1)
    share = totals["all"] / totals["all"].sum()
    torch.testing.assert_close(share, totals["tissue"], rtol=1e-5, atol=1e-7)
    assert float(totals["all"].sum()) < 0.999
