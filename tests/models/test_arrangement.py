"""What every registered aggregator makes of where patches are, as `About` says; slides of unusual shape; precision."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from wsi2d.data.bags import GridBag, collate
from wsi2d.errors import FeatureStoreError
from wsi2d.models.output import ModelOutput
from wsi2d.models.registry import MODELS, model_class

MakeBag = Callable[..., GridBag]
MakeModel = Callable[..., nn.Module]

DOUBLE = {"dtype": torch.float64}
EVERY = pytest.mark.parametrize("name", MODELS)


def sees(name: str) -> str:
    return model_class({"name": name}).about.sees


def names_that_see(*kinds: str) -> list[str]:
    return [name for name in MODELS if sees(name) in kinds]


def answer(model: nn.Module, bag: GridBag) -> ModelOutput:
    with torch.no_grad():
        output: ModelOutput = model(collate([bag]))
    return output


def placed(bag: GridBag, index: torch.Tensor, shape: tuple[int, int]) -> GridBag:
    """The same patches elsewhere."""
    return GridBag(bag.slide_id, bag.features, index, shape)


def apart(first: ModelOutput, second: ModelOutput) -> float:
    return float((first.logits - second.logits).abs().max())


def in_raster_order(bag: GridBag) -> torch.Tensor:
    """How many patches come before each."""
    return (bag.index[:, 0] * bag.shape[1] + bag.index[:, 1]).argsort().argsort()


# --- places --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in names_that_see("set") if n != "torchmil:dtfd"])
def test_sets_have_no_places(name: str, make_model: MakeModel, make_bag: MakeBag) -> None:
    model, bag = make_model({"name": name, "dim": 8}, **DOUBLE), make_bag((6, 7), **DOUBLE)
    elsewhere = torch.randperm(99, generator=torch.Generator().manual_seed(1))[: len(bag)]
    one_row = torch.stack([torch.zeros_like(elsewhere), elsewhere], 1)
    shuffled = bag.index[torch.randperm(len(bag), generator=torch.Generator().manual_seed(2))]
    for other in (placed(bag, one_row, (1, 99)), placed(bag, shuffled, bag.shape)):
        torch.testing.assert_close(answer(model, other).logits, answer(model, bag).logits)
        torch.testing.assert_close(answer(model, other).attention, answer(model, bag).attention)


@pytest.mark.parametrize("name", names_that_see("sequence"))
def test_sequences_know_the_order_alone(name: str, make_model: MakeModel, make_bag: MakeBag) -> None:
    """Patches moved without changing their order, through gaps and on another grid, give the same answer."""
    model, bag = make_model({"name": name, "dim": 8}, **DOUBLE), make_bag((6, 7), **DOUBLE)
    rank = in_raster_order(bag)
    spread = torch.stack([rank * 3 // 11, rank * 3 % 11], 1)  # every third cell of a grid of 11 columns
    one_row = torch.stack([torch.zeros_like(rank), rank], 1)
    for index, shape in ((spread, (40, 11)), (one_row, (1, len(bag)))):
        other = answer(model, placed(bag, index, shape))
        torch.testing.assert_close(other.logits, answer(model, bag).logits)
        torch.testing.assert_close(other.attention, answer(model, bag).attention)
    swapped = placed(bag, one_row.flip(0), (1, len(bag)))
    assert apart(answer(model, swapped), answer(model, bag)) > 1e-4


@pytest.mark.parametrize("name", names_that_see("grid", "graph"))
def test_the_plane_matters_to_what_sees_it(name: str, make_model: MakeModel, make_bag: MakeBag) -> None:
    """Also where the order in the raster stays."""
    model, bag = make_model({"name": name, "dim": 8}, **DOUBLE), make_bag((6, 7), **DOUBLE)
    rank = in_raster_order(bag)
    reflowed = placed(bag, torch.stack([rank // 5, rank % 5], 1), (6, 5))
    shuffled = placed(bag, bag.index[torch.randperm(len(bag), generator=torch.Generator().manual_seed(2))], bag.shape)
    for other in (reflowed, shuffled):
        assert apart(answer(model, other), answer(model, bag)) > 1e-4


@pytest.mark.parametrize("name", names_that_see("graph"))
def test_graphs_know_who_touches_whom_alone(name: str, make_model: MakeModel, make_bag: MakeBag) -> None:
    """Not where, nor which way round."""
    model, bag = make_model({"name": name, "dim": 8}, **DOUBLE), make_bag((6, 7), **DOUBLE)
    for index, shape in ((bag.index.flip(1), (7, 6)), (bag.index + torch.tensor([3, 9]), (9, 16))):
        torch.testing.assert_close(answer(model, placed(bag, index, shape)).logits, answer(model, bag).logits)


def test_pseudo_bags_are_dealt_out_in_raster_order(make_model: MakeModel, make_bag: MakeBag) -> None:
    pytest.importorskip("torchmil.models", reason="torchmil is not installed: pip install 'wsi2d[baselines]'")
    model, bag = make_model({"name": "torchmil:dtfd", "dim": 8}, **DOUBLE), make_bag((6, 7), **DOUBLE)
    rank = in_raster_order(bag)
    moved = placed(bag, torch.stack([rank, 0 * rank], 1), (len(bag), 1))
    assert apart(answer(model, moved), answer(model, bag)) < 1e-12
    swapped = placed(bag, bag.index.roll(1, 0), bag.shape)
    assert apart(answer(model, swapped), answer(model, bag)) > 1e-6


# --- slides of unusual shape ---------------------------------------------------------------------------------------


@EVERY
def test_one_patch_in_ten_thousand_cells(name: str, make_model: MakeModel, make_bag: MakeBag) -> None:
    model, single = make_model({"name": name, "dim": 8}), make_bag((1, 1))
    for index, shape in (([[50, 50]], (100, 100)), ([[0, 9999]], (1, 10_000)), ([[9999, 0]], (10_000, 1))):
        output = answer(model, placed(single, torch.tensor(index), shape))
        assert torch.isfinite(output.logits).all()
        assert output.attention.tolist() == pytest.approx([1], abs=1e-6)


@EVERY
def test_two_patches_at_the_ends_of_a_slide(name: str, make_model: MakeModel, make_bag: MakeBag) -> None:
    model, pair = make_model({"name": name, "dim": 8}), make_bag((1, 2), share=1.0)
    output = answer(model, placed(pair, torch.tensor([[0, 0], [120, 90]]), (121, 91)))
    assert torch.isfinite(output.logits).all()
    assert float(output.attention.sum()) == pytest.approx(1, abs=1e-5)


def test_an_empty_slide_has_no_answer(make_bag: MakeBag) -> None:
    empty = GridBag("s-17", torch.zeros(0, 6), torch.zeros(0, 2, dtype=torch.long), (0, 0))
    with pytest.raises(FeatureStoreError, match=r"^slide 's-17': has no tissue; leave it out$"):
        collate([make_bag((2, 2)), empty])


def test_a_slide_with_nan_is_refused_by_name() -> None:
    features = torch.zeros(2, 6)
    features[1, 3] = float("nan")
    with pytest.raises(FeatureStoreError, match=r"^slide 's-18': features hold NaN or infinity$"):
        GridBag("s-18", features, torch.tensor([[0, 0], [0, 1]]), (1, 2))


@pytest.mark.parametrize("name", names_that_see("grid"))
def test_a_grid_that_memory_cannot_hold_is_refused_before_it_is_made(name: str, make_model: MakeModel) -> None:
    far = GridBag("x", torch.zeros(2, 6), torch.tensor([[0, 0], [2**21 - 1, 2**21 - 1]]), (2**21, 2**21))
    with pytest.raises(MemoryError, match=r"^grids of 1 × 2097152×2097152 cells need .* GB, .* GB are free$"):
        answer(make_model({"name": name, "dim": 8}), far)


def test_memory_is_that_of_the_grids_as_they_are_laid(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tall and a wide slide in one batch are padded to a square; as rows they are as long as each other."""
    monkeypatch.setattr("wsi2d.models.grid_model.free_memory", lambda device: 2**29)
    shapes = [(2000, 1), (1, 2000)]
    bags = [GridBag("x", torch.randn(2, 6), torch.tensor([[0, 0], [r - 1, c - 1]]), (r, c)) for r, c in shapes]
    section = {"name": "m2d-mil", "dim": 8, "state": 1, "scans": 0}
    with pytest.raises(MemoryError, match=r"^grids of 2 × 2000×2000 cells need 4 GB, 1 GB are free$"):
        make_model(section)(collate(bags))
    assert make_model({**section, "layout": "row"})(collate(bags)).logits.shape == (2, 3)


@pytest.mark.parametrize("name", names_that_see("set", "sequence", "graph"))
def test_gaps_cost_nothing_where_they_are_left_out(name: str, make_model: MakeModel) -> None:
    far = GridBag("x", torch.randn(2, 6), torch.tensor([[0, 0], [2**21 - 1, 2**21 - 1]]), (2**21, 2**21))
    assert torch.isfinite(answer(make_model({"name": name, "dim": 8}), far).logits).all()


# --- precision, batches of joined slides ---------------------------------------------------------------------------


@EVERY
def test_single_precision_is_near_double(name: str, make_model: MakeModel, make_bag: MakeBag) -> None:
    single, double = (make_model({"name": name, "dim": 16}, dtype=dtype) for dtype in (torch.float32, torch.float64))
    for shape in ((9, 11), (30, 40)):
        exact = make_bag(shape, **DOUBLE)
        near = GridBag("x", exact.features.float(), exact.index, exact.shape)
        first, second = answer(single, near), answer(double, exact)
        assert (first.logits.dtype, second.logits.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(first.logits.double(), second.logits, rtol=2e-4, atol=2e-4)
        assert float((first.attention.double() - second.attention).abs().sum()) < 2e-2


@EVERY
def test_slides_of_a_patient_are_encoded_apart_and_pooled_together(
    name: str, make_model: MakeModel, make_bag: MakeBag
) -> None:
    """Three slides of two patients, one patient's slides not side by side."""
    model = make_model({"name": name, "dim": 8}, **DOUBLE)
    slides = [make_bag(shape, seed=k, **DOUBLE) for k, shape in enumerate([(5, 7), (4, 4), (3, 6)])]
    batch = collate(slides)
    with torch.no_grad():
        embedded = model.embed(batch)
        joined = model.aggregate(embedded.regrouped(torch.tensor([0, 1, 0]), 2))
        alone = model(collate([slides[1]]))
        each = model(batch)
    assert joined.logits.shape == each.logits[:2].shape
    torch.testing.assert_close(joined.logits[1], alone.logits[0])
    a, b, c = joined.attention.split([len(s) for s in slides])
    assert float(a.sum() + c.sum()) == pytest.approx(1)
    torch.testing.assert_close(b, alone.attention)
    if name == "max":
        torch.testing.assert_close(joined.logits[0], torch.maximum(each.logits[0], each.logits[2]))
    else:
        assert (joined.logits[0] - each.logits[0]).abs().max() > 1e-5
        assert (joined.logits[0] - each.logits[2]).abs().max() > 1e-5
