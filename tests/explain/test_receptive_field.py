"""The effective receptive field against what models can and cannot see, and against Jacobians taken whole."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from random_models import IN_DIM, random_bag, random_model
from torch import Tensor, nn

from wsi2d.data.bags import GridBag, collate
from wsi2d.errors import ConfigError, FeatureStoreError, ModelError
from wsi2d.explain.receptive_field import OffsetSums, ReceptiveField, centre_patches, receptive_field
from wsi2d.models.registry import MODELS, model_class

pytestmark = pytest.mark.usefixtures("skip_without_torchmil")

MAMBA = {"name": "mamba2d-mil", "dim": 8, "state": 3, "attention_dim": 5}
SCAN_ALONE = {**MAMBA, "conv": "none"}
MIXES_LATER = {
    f"torchmil:{name}" for name in ("transmil", "transformer-abmil", "sm-abmil", "sm-transformer-abmil", "patch-gcn")
}

EVERY = pytest.mark.parametrize("name", MODELS)


def full_bag(shape: tuple[int, int], *, seed: int = 0) -> GridBag:
    return random_bag(shape, seed=seed, share=1.0)


def on_grid(field: ReceptiveField, reach: int) -> np.ndarray:
    """The gradient by offset, NaN where nothing was seen."""
    grid = np.full((2 * reach + 1, 2 * reach + 1), np.nan)
    grid[tuple((field.offsets + reach).T)] = field.gradient
    return grid


def reached(field: ReceptiveField) -> set[tuple[int, int]]:
    """Offsets with any gradient."""
    return {(int(r), int(c)) for (r, c), g in zip(field.offsets, field.gradient, strict=True) if g > 0}


def square(reach: int) -> set[tuple[int, int]]:
    return {(r, c) for r in range(-reach, reach + 1) for c in range(-reach, reach + 1)}


# --- what models can see -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("name", ["conv2d-mil", "mamba2d-mil without its scan", "m2d-mil without its scans"])
def test_convolutions_reach_one_cell_a_block(name: str, blocks: int) -> None:
    """And exactly nothing lies beyond."""
    section: dict[str, Any] = {"name": name.partition(" ")[0], "dim": 8, "blocks": blocks}
    section |= {"mamba2d-mil": {"scan": False}, "m2d-mil": {"scans": 0}}.get(section["name"], {})
    field = receptive_field(random_model(section), [full_bag((11, 11), seed=seed) for seed in range(4)])
    assert reached(field) == square(blocks)
    assert field.reach == pytest.approx(blocks * 2**0.5)


@EVERY
def test_models_that_know_no_order_have_a_single_point(name: str) -> None:
    """What a torchmil model mixes before its pooling counts, wherever in it that is."""
    bags = [full_bag((6, 7)), random_bag((5, 5), seed=1)]
    field = receptive_field(random_model({"name": name, "dim": 8}), bags, probes=2)
    alone = model_class({"name": name}).about.sees == "set" and name not in MIXES_LATER
    assert field.single_point == alone
    if alone:
        assert reached(field) == {(0, 0)}
        assert (field.radius_of(0.9), field.within(0)) == (0, 1)


def test_a_forward_raster_sees_what_came_before() -> None:
    """Rows above, and its own row up to the centre."""
    field = receptive_field(random_model({"name": "mamba-mil", "dim": 8}), [full_bag((7, 7))], probes=2)
    assert reached(field) == {(r, c) for r, c in square(3) if (r, c) <= (0, 0)}


def test_a_raster_both_ways_sees_all() -> None:
    field = receptive_field(random_model({"name": "bimamba-mil", "dim": 8}), [full_bag((7, 7))], probes=2)
    assert reached(field) == square(3)


def test_one_row_is_the_raster_with_its_gaps() -> None:
    section = {**SCAN_ALONE, "layout": "row", "directions": 1}
    field = receptive_field(random_model(section), [full_bag((7, 7))], probes=2)
    assert reached(field) == {(r, c) for r, c in square(3) if (r, c) <= (0, 0)}


QUADRANTS: dict[int, Callable[[int, int], bool]] = {
    1: lambda r, c: r <= 0 and c <= 0,
    2: lambda r, c: r * c >= 0,
    4: lambda r, c: True,
}


@pytest.mark.parametrize("directions", QUADRANTS)
def test_each_direction_of_a_2d_scan_sees_a_quadrant(directions: int) -> None:
    section = {**SCAN_ALONE, "directions": directions}
    field = receptive_field(random_model(section), [full_bag((7, 7))], probes=2)
    assert reached(field) == {(r, c) for r, c in square(3) if QUADRANTS[directions](r, c)}


@pytest.mark.parametrize(("scans", "seen"), [(1, lambda r, c: r <= 0 and c <= 0), (2, lambda r, c: r * c >= 0)])
def test_each_wavefront_sees_a_quadrant(scans: int, seen: Callable[[int, int], bool]) -> None:
    section = {"name": "m2d-mil", "dim": 8, "scans": scans, "local": False}
    field = receptive_field(random_model(section), [full_bag((7, 7))], probes=2)
    assert reached(field) == {(r, c) for r, c in square(3) if seen(r, c)}


def test_graphs_reach_a_neighbour_a_step() -> None:
    pytest.importorskip("torchmil.models", reason="torchmil is not installed: pip install 'wsi2d[baselines]'")
    layers = receptive_field(random_model({"name": "torchmil:patch-gcn", "dim": 8, "layers": 2}), [full_bag((9, 9))])
    assert reached(layers) == square(2)
    steps = receptive_field(random_model({"name": "torchmil:sm-abmil", "dim": 8, "steps": 3}), [full_bag((9, 9))])
    assert reached(steps) == square(3)


# --- the numbers ---------------------------------------------------------------------------------------------------


def jacobian_norms(model: Any, bag: GridBag, centre: int) -> Tensor:
    """Norms ``[N]`` of the whole Jacobian of a patch's embedding by each patch's features, in deviations."""

    def embedding(features: Tensor) -> Tensor:
        row: Tensor = model.patch_outputs(collate([GridBag("x", features, bag.index, bag.shape)]))[centre]
        return row

    whole = torch.autograd.functional.jacobian(embedding, bag.features)
    if model.standardise is not None:
        whole = whole * model.standardise.scale
    return whole.square().sum((0, 2)).sqrt()


@pytest.mark.parametrize("name", ["mamba2d-mil", "bimamba-mil", "s4-mil", "torchmil:patch-gcn", "torchmil:transmil"])
def test_the_estimate_tends_to_the_norm_of_the_jacobian(name: str) -> None:
    model, bag = random_model({"name": name, "dim": 8}), random_bag((4, 5))
    (centre,) = centre_patches(bag, 1)
    expected = jacobian_norms(model, bag, centre)
    field = receptive_field(model, [bag], probes=200)
    places = {tuple(offset): k for k, offset in enumerate(field.offsets.tolist())}
    found = field.gradient[[places[tuple(o)] for o in (bag.index - bag.index[centre]).tolist()]]
    clear = expected.numpy() > 1e-5 * float(expected.max())
    np.testing.assert_allclose(found[clear], expected.numpy()[clear], rtol=0.25)


class RankOne(nn.Module):
    """An embedding whose Jacobian by each patch is one outer product."""

    standardise = None

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inwards, self.outwards = (torch.randn(n, generator=generator) for n in (IN_DIM, 16))

    def patch_outputs(self, batch: Any) -> Tensor:
        return (batch.features @ self.inwards)[:, None] * self.outwards


@pytest.mark.parametrize(("options", "expected"), [({}, 0.94), ({"probes": 1}, 0.798), ({"probes": 8}, 0.969)])
def test_how_much_too_small_the_root_of_an_estimate_is(options: dict[str, int], expected: float) -> None:
    """√(χ²ₙ/n) of n normal numbers, which a sum of many random signs all but is."""
    model: Any = RankOne()
    one = torch.zeros(1, 2, dtype=torch.long)
    bags = [GridBag(f"s{k}", torch.randn(1, IN_DIM), one, (1, 1)) for k in range(2000)]
    field = receptive_field(model, bags, batch_size=200, **options)
    norm = float(model.inwards.norm() * model.outwards.norm())
    assert field.gradient[0] / norm == pytest.approx(expected, abs=0.02)


def test_features_count_in_units_of_their_deviation() -> None:
    """So that the same slides measured on another scale give the same field."""
    model, bags = random_model(MAMBA), [random_bag((6, 6))]
    other, factor = random_model(MAMBA), torch.tensor([1.0, 10, 0.1, 3, 7, 0.5])
    other.standardise.fit(model.standardise.mean * factor, model.standardise.scale * factor)
    scaled = [GridBag(b.slide_id, b.features * factor, b.index, b.shape) for b in bags]
    first, second = receptive_field(model, bags), receptive_field(other, scaled)
    np.testing.assert_allclose(second.gradient, first.gradient, rtol=1e-4)


def test_offsets_have_the_mean_over_the_bags_with_tissue_there() -> None:
    """Cells that are empty or outside count for nothing, neither as zeros nor among the bags."""
    model = random_model({**MAMBA, "scan": False})
    bags = [full_bag((5, 5)), full_bag((3, 9), seed=1), random_bag((5, 5), seed=2, share=0.5)]
    each = [on_grid(receptive_field(model, [bag]), 5) for bag in bags]
    whole = receptive_field(model, bags)
    seen = np.isfinite(np.stack(each))
    expected = np.where(seen.any(0), np.nansum(np.stack(each), 0) / np.maximum(seen.sum(0), 1), np.nan)
    np.testing.assert_allclose(on_grid(whole, 5), expected, rtol=1e-12)
    counts = np.zeros((11, 11), int)
    counts[tuple((whole.offsets + 5).T)] = whole.counts
    assert np.array_equal(counts, seen.sum(0))
    assert (whole.bags, whole.centres) == (3, 3)


@EVERY
def test_a_batch_gives_what_its_bags_give(name: str) -> None:
    model = random_model({"name": name, "dim": 8})
    bags = [random_bag(shape, seed=seed) for seed, shape in enumerate([(5, 7), (1, 4), (6, 3), (2, 2)])]
    alone, together = (receptive_field(model, bags, centres=3, probes=2, batch_size=size) for size in (1, 3))
    assert np.array_equal(alone.offsets, together.offsets)
    assert np.array_equal(alone.counts, together.counts)
    np.testing.assert_allclose(together.gradient, alone.gradient, rtol=1e-3, atol=1e-5 * alone.gradient.max())


def test_a_model_is_left_as_it_was() -> None:
    model, bag = random_model(MAMBA).train(), random_bag((4, 4))
    frozen = next(model.parameters()).requires_grad_(False)
    receptive_field(model, [bag])
    assert model.training
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert all(p.grad is None for p in model.parameters())
    assert not bag.features.requires_grad


def test_the_same_seed_gives_the_same_field() -> None:
    model, bags = random_model(MAMBA), [random_bag((6, 6)), random_bag((5, 4), seed=1)]
    first, again, other = (receptive_field(model, bags, centres=2, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.gradient, again.gradient)
    assert not np.array_equal(first.gradient, other.gradient)


# --- centres, and slides of unusual shape --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "shape", "nearest"),
    [
        ([[0, 0]], (1, 1), [0, 0]),
        ([[0, 0], [0, 1], [0, 2], [0, 3]], (1, 4), [0, 1]),
        ([[4, 4], [2, 2], [0, 0]], (5, 5), [2, 2]),
        ([[4, 4], [0, 1], [0, 0]], (5, 5), [0, 1]),
        ([[3, 2], [1, 2], [2, 3], [2, 1]], (5, 5), [1, 2]),
        ([[9999, 0]], (10_000, 1), [9999, 0]),
    ],
)
def test_the_centre_is_the_patch_nearest_the_middle(
    cells: list[list[int]], shape: tuple[int, int], nearest: list[int]
) -> None:
    bag = GridBag("x", torch.zeros(len(cells), 2), torch.tensor(cells), shape)
    (centre,) = centre_patches(bag, 1)
    assert bag.index[centre].tolist() == nearest


def test_further_centres_are_drawn_once_each() -> None:
    bag = random_bag((6, 6))
    drawn = centre_patches(bag, 9)
    assert len(set(drawn)) == 9
    assert drawn[:1] == centre_patches(bag, 1)
    assert drawn == centre_patches(bag, 9)
    assert drawn != centre_patches(bag, 9, seed=1)
    assert sorted(centre_patches(bag, 99)) == list(range(len(bag)))
    assert receptive_field(random_model(MAMBA), [bag, full_bag((1, 2))], centres=4).centres == 6


@EVERY
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)], ids=str)
def test_bags_of_one_cell_one_row_one_column(name: str, shape: tuple[int, int]) -> None:
    field = receptive_field(random_model({"name": name, "dim": 8}), [full_bag(shape)])
    assert len(field.offsets) == shape[0] * shape[1]
    assert field.counts.tolist() == [1] * len(field.offsets)
    assert field.share.sum() == pytest.approx(1)
    assert field.gradient[field.distance == 0] > 0


def test_two_patches_far_apart() -> None:
    """Offsets are kept one by one: a grid with room for all between them would not fit."""
    index = torch.tensor([[0, 0], [2**21 - 1, 2**21 - 1]])
    far = GridBag("x", torch.randn(2, 6), index, (2**21, 2**21))
    field = receptive_field(random_model({"name": "bimamba-mil", "dim": 8}), [far])
    assert sorted(field.offsets.tolist()) in ([[0, 0], [2**21 - 1] * 2], [[1 - 2**21] * 2, [0, 0]])


def test_sums_keep_rows_and_columns_apart() -> None:
    sums = OffsetSums()
    offsets = np.array([[0, -1], [-1, 2**21], [0, 0], [-1, -(2**21)], [1, -3]])
    sums.add(offsets, np.arange(1.0, 6.0))
    sums.add(offsets[::-1], np.arange(1.0, 6.0))
    field = sums.mean()
    assert field.offsets.tolist() == [[-1, -(2**21)], [-1, 2**21], [0, -1], [0, 0], [1, -3]]
    assert field.gradient.tolist() == [3.0] * 5
    assert field.counts.tolist() == [2] * 5


# --- what cannot be answered ---------------------------------------------------------------------------------------


def test_slides_with_nan_are_refused_by_name() -> None:
    features = torch.zeros(2, 6)
    features[0, 1] = float("nan")
    with pytest.raises(FeatureStoreError, match=r"^slide 's-18': features hold NaN or infinity$"):
        receptive_field(random_model(MAMBA), (GridBag("s-18", features, torch.tensor([[0, 0], [0, 1]]), (1, 2)),))


def test_gradients_that_are_not_finite_are_refused_by_slide() -> None:
    model = random_model(MAMBA)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"^slide 'bag-0': the gradient holds NaN or infinity; train the model anew$"):
        receptive_field(model, [random_bag((3, 3))])


def test_a_model_without_any_gradient_is_refused() -> None:
    model = random_model(MAMBA)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with pytest.raises(ModelError, match="the gradient is zero everywhere; train the model anew"):
        receptive_field(model, [random_bag((3, 3))])


@pytest.mark.parametrize("what", ["centres", "probes", "batch_size"])
def test_numbers_below_one(what: str) -> None:
    with pytest.raises(ConfigError, match=f"{what} must be at least 1, got 0"):
        receptive_field(random_model(MAMBA), [random_bag((2, 2))], **{what: 0})


def test_no_bags() -> None:
    with pytest.raises(ConfigError, match="there are no bags; give one or more"):
        receptive_field(random_model(MAMBA), [])
