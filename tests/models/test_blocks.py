"""The mixer against explicit loops, its starting values, attention pooling, standardised features."""

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsi2d.data.bags import BagBatch, GridBag, collate
from wsi2d.errors import ConfigError
from wsi2d.models.blocks import (
    AttentionPool,
    GridLayout,
    Mamba2DBlock,
    Mamba2DMixer,
    MixerBlock,
    Standardise,
    grid_layout,
)

FLIPS = {1: ["--"], 2: ["--", "rc"], 4: ["--", "-c", "r-", "rc"]}
CROSS_FLIPS = {2: ["--", "--"], 4: ["--", "--", "rc", "rc"]}  # along rows, along columns, and both from the other end
SHAPES = [(4, 5), (1, 1), (3, 2), (1, 6), (6, 1)]


def make_mixer(*, dim: int = 3, state: int = 2, seed: int = 0, **options: object) -> Mamba2DMixer:
    torch.manual_seed(seed)
    options = {
        "expand": 2, "conv": "none", "directions": 1, "share_directions": False, "scan": True,
        "dt_init": "mamba", "dt_min": 0.001, "dt_max": 0.1, **options,
    }  # fmt: skip
    mixer = Mamba2DMixer(dim, state=state, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def full_layout(shapes: list[tuple[int, int]]) -> GridLayout:
    bags = [
        GridBag("x", torch.zeros(r * c, 1), torch.cartesian_prod(torch.arange(r), torch.arange(c)), (r, c))
        for r, c in shapes
    ]
    return grid_layout(collate(bags))


# --- the oracle: one bag's grid [rows, cols, dim], loops over its cells ----------------------------------------------


def mixed_by_loops(
    loops: ModuleType, mixer: Mamba2DMixer, grid: np.ndarray, *, directions: int, shared: bool, scan: bool = True
) -> np.ndarray:
    """Mamba's mixer on one grid without padding."""
    inner = mixer.out_proj.in_features
    u, z = np.split(loops.linear(mixer.in_proj, grid), [inner], -1)
    u = loops.silu(convolved_by_loops(loops, mixer, u))
    if scan:
        total = np.zeros_like(u)
        cross = mixer.scan_order == "cross"
        for k, flip in enumerate((CROSS_FLIPS if cross else FLIPS)[directions]):
            rows, cols = slice(None, None, -1 if flip[0] == "r" else 1), slice(None, None, -1 if flip[1] == "c" else 1)
            turned, scan_k = u[rows, cols], mixer.scans[0 if shared else k]
            if cross and k % 2:
                turned = turned.swapaxes(0, 1)
            scanned = scanned_by_loops(loops, mixer, scan_k, turned)
            total += (scanned.swapaxes(0, 1) if cross and k % 2 else scanned)[rows, cols]
        u = total / directions
    return loops.linear(mixer.out_proj, u * loops.silu(z))


def scanned_by_loops(loops: ModuleType, mixer: Mamba2DMixer, scan: nn.Module, u: np.ndarray) -> np.ndarray:
    """In 2D, or as one row: the grid's rows one after the other, in serpentine order every second one from its end."""
    if mixer.scan_order == "2d":
        scanned: np.ndarray = loops.selective_scan(scan, u)
        return scanned
    steps = [-1 if mixer.scan_order == "serpentine" and k % 2 else 1 for k in range(len(u))]
    in_order = np.concatenate([row[::step] for row, step in zip(u, steps, strict=True)])
    rows = np.split(loops.selective_scan(scan, in_order[None])[0], len(u))
    return np.stack([row[::step] for row, step in zip(rows, steps, strict=True)])


def convolved_by_loops(loops: ModuleType, mixer: Mamba2DMixer, u: np.ndarray) -> np.ndarray:
    """Depthwise: a 3×3 cross-correlation, or over a cell and the three before it in raster order."""
    if mixer.conv == "2d":
        return loops.near_cells(loops.array(mixer.conv2d.weight)[:, 0], loops.array(mixer.conv2d.bias), u)
    if mixer.conv == "raster":
        weight, bias = loops.array(mixer.conv1d.weight)[:, 0], loops.array(mixer.conv1d.bias)
        return loops.cells_before(weight, bias, u.reshape(-1, u.shape[-1])).reshape(u.shape)
    return u


@pytest.mark.parametrize("conv", ["2d", "raster", "none"])
@pytest.mark.parametrize(
    ("directions", "shared", "scan"),
    [(1, False, True), (2, False, True), (4, False, True), (4, True, True), (2, True, True), (4, False, False)],
)
def test_mixer_equals_loops_on_each_bag_of_a_padded_batch(
    loops: ModuleType, conv: str, directions: int, shared: bool, scan: bool
) -> None:
    mixer = make_mixer(conv=conv, directions=directions, share_directions=shared, scan=scan)
    layout = full_layout(SHAPES)
    grid = torch.randn(*layout.inside.shape, 3, dtype=torch.float64)  # padding holds anything
    found = loops.array(mixer(grid, layout))
    for k, (rows, cols) in enumerate(SHAPES):
        own = loops.array(grid[k, :rows, :cols])
        expected = mixed_by_loops(loops, mixer, own, directions=directions, shared=shared, scan=scan)
        np.testing.assert_allclose(found[k, :rows, :cols], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scan_order", ["raster", "serpentine"])
@pytest.mark.parametrize(
    ("directions", "shared", "conv"), [(1, False, "2d"), (2, False, "none"), (4, False, "2d"), (4, True, "raster")]
)
def test_scans_in_one_dimension_equal_loops_on_each_bag_of_a_padded_batch(
    loops: ModuleType, scan_order: str, directions: int, shared: bool, conv: str
) -> None:
    mixer = make_mixer(conv=conv, directions=directions, share_directions=shared, scan_order=scan_order)
    check_against_loops(loops, mixer, directions=directions, shared=shared)


def check_against_loops(loops: ModuleType, mixer: Mamba2DMixer, *, directions: int, shared: bool) -> None:
    layout = full_layout(SHAPES)
    grid = torch.randn(*layout.inside.shape, 3, dtype=torch.float64)
    found = loops.array(mixer(grid, layout))
    for k, (rows, cols) in enumerate(SHAPES):
        expected = mixed_by_loops(
            loops, mixer, loops.array(grid[k, :rows, :cols]), directions=directions, shared=shared
        )
        np.testing.assert_allclose(found[k, :rows, :cols], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("directions", "shared", "conv"), [(2, False, "none"), (4, False, "2d"), (4, True, "raster")])
def test_cross_scans_equal_loops_on_each_bag_of_a_padded_batch(
    loops: ModuleType, directions: int, shared: bool, conv: str
) -> None:
    mixer = make_mixer(conv=conv, directions=directions, share_directions=shared, scan_order="cross")
    check_against_loops(loops, mixer, directions=directions, shared=shared)


def test_a_cross_scan_needs_two_directions() -> None:
    with pytest.raises(ConfigError, match=r"^scan_order 'cross' takes 2 or 4 directions, got 1$"):
        make_mixer(scan_order="cross")


def test_block_is_residual_over_a_normalised_grid(loops: ModuleType) -> None:
    mixer, layout = make_mixer(directions=4, conv="2d"), full_layout([(4, 5)])
    block = MixerBlock(mixer, 3).double()
    nn.init.normal_(block.norm.weight)
    grid = torch.randn(1, 4, 5, 3, dtype=torch.float64)
    cells = loops.array(grid[0])
    normed = cells / np.sqrt((cells**2).mean(-1, keepdims=True) + 1e-5) * loops.array(block.norm.weight)
    expected = cells + mixed_by_loops(loops, mixer, normed, directions=4, shared=False)
    np.testing.assert_allclose(loops.array(block(grid, layout)[0]), expected, rtol=1e-10)


# --- symmetry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2)], ids=["rows", "columns", "both"])
@pytest.mark.parametrize(("directions", "shared"), [(4, True), (4, False), (1, True), (2, True)])
def test_four_shared_directions_turn_with_the_grid(axes: tuple[int, ...], directions: int, shared: bool) -> None:
    mixer, layout = make_mixer(directions=directions, share_directions=shared), full_layout([(4, 5)])
    grid = torch.randn(1, 4, 5, 3, dtype=torch.float64)
    straight, turned = mixer(grid, layout), mixer(grid.flip(axes), layout).flip(axes)
    symmetric = shared and (directions == 4 or (directions == 2 and axes == (1, 2)))
    assert torch.allclose(straight, turned, rtol=1e-10, atol=1e-12) == symmetric


# --- starting values -----------------------------------------------------------------------------------------------


def starting_deltas(**options: object) -> Tensor:
    torch.manual_seed(0)
    mixer = Mamba2DMixer(
        64, state=16, expand=2, conv="none", directions=4, share_directions=False, scan=True,
        **{"dt_min": 0.001, "dt_max": 0.1, "dt_init": "mamba", **options},
    )  # fmt: skip
    return torch.cat([nn.functional.softplus(scan.dt_bias.detach()) for scan in mixer.scans])


@pytest.mark.parametrize(("low", "high"), [(0.001, 0.1), (0.01, 0.02), (1e-4, 5.0)])
def test_mambas_steps_start_log_uniform_in_their_range(low: float, high: float) -> None:
    deltas = starting_deltas(dt_min=low, dt_max=high)
    assert len(deltas) == 4 * 128
    assert low * (1 - 1e-4) <= float(deltas.min()) < float(deltas.max()) <= high * (1 + 1e-4)
    places = (deltas.log() - math.log(low)) / (math.log(high) - math.log(low))
    assert float(places.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(places.std()) == pytest.approx(12**-0.5, abs=0.02)


def test_published_steps_start_near_ln_2() -> None:
    deltas = starting_deltas(dt_init="published")
    torch.testing.assert_close(deltas, torch.full_like(deltas, math.log(2)))


def test_published_steps_as_the_scan_sees_them() -> None:
    torch.manual_seed(0)
    mixer = Mamba2DMixer(
        64, state=16, expand=2, conv="none", directions=1, share_directions=False, scan=True,
        dt_init="published", dt_min=0.001, dt_max=0.1,
    )  # fmt: skip
    parameters = mixer.scans[0]
    low_rank = parameters.x_proj(nn.functional.silu(torch.randn(1000, 128)))[:, :4]
    deltas = nn.functional.softplus(low_rank @ parameters.dt_weight.T + parameters.dt_bias).detach()
    assert float(deltas.median()) == pytest.approx(0.69, abs=0.05)


@pytest.mark.parametrize("state", [1, 4, 16])
def test_decay_starts_at_minus_one_to_minus_n(state: int) -> None:
    torch.manual_seed(0)
    mixer = Mamba2DMixer(
        8, state=state, expand=2, conv="none", directions=2, share_directions=False, scan=True,
        dt_init="mamba", dt_min=0.001, dt_max=0.1,
    )  # fmt: skip
    for scan in mixer.scans:
        A = -torch.exp(scan.A_log.detach())
        torch.testing.assert_close(A, -torch.arange(1.0, state + 1).expand(16, state))
        assert torch.equal(scan.D.detach(), torch.ones(16))


@pytest.mark.parametrize(("dim", "rank"), [(1, 1), (16, 1), (17, 2), (128, 8)])
def test_rank_of_the_steps(dim: int, rank: int) -> None:
    mixer = make_mixer(dim=dim, state=2)
    assert mixer.scans[0].dt_weight.shape == (2 * dim, rank)


@pytest.mark.parametrize(
    ("directions", "shared", "scan", "sets"),
    [(1, False, True, 1), (2, False, True, 2), (4, False, True, 4), (4, True, True, 1), (4, False, False, 0)],
)
def test_sets_of_scan_parameters(directions: int, shared: bool, scan: bool, sets: int) -> None:
    mixer = make_mixer(directions=directions, share_directions=shared, scan=scan)
    assert len(mixer.scans) == sets
    weights = [s.x_proj.weight.detach().numpy() for s in mixer.scans]
    assert all(not np.array_equal(weights[0], other) for other in weights[1:])


# --- the grid ------------------------------------------------------------------------------------------------------


@pytest.fixture
def batch() -> BagBatch:
    """Two bags: three patches on 2×3 cells, two on 3×1."""
    first = GridBag("a", torch.arange(6.0).reshape(3, 2), torch.tensor([[0, 2], [1, 0], [0, 0]]), (2, 3))
    second = GridBag("b", torch.arange(10.0, 14.0).reshape(2, 2), torch.tensor([[2, 0], [0, 0]]), (3, 1))
    return collate([first, second])


def test_layout_of_a_padded_batch(batch: BagBatch) -> None:
    layout = grid_layout(batch)
    assert layout.inside.int().tolist() == [[[1, 1, 1], [1, 1, 1], [0, 0, 0]], [[1, 0, 0], [1, 0, 0], [1, 0, 0]]]
    patches = layout.scatter(torch.ones(5, 1), torch.zeros(1))[..., 0]
    assert patches.int().tolist() == [[[1, 0, 1], [1, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0], [1, 0, 0]]]
    grid = layout.scatter(batch.features, torch.tensor([-1.0, -2.0]))
    assert grid.shape == (2, 3, 3, 2)
    assert grid[0, 0].tolist() == [[4, 5], [-1, -2], [0, 1]]
    assert grid[0, 1].tolist() == [[2, 3], [-1, -2], [-1, -2]]
    assert grid[1, :, 0].tolist() == [[12, 13], [-1, -2], [10, 11]]
    assert torch.equal(layout.gather(grid), batch.features)


def test_flattened_layout_is_one_row_in_raster_order(batch: BagBatch) -> None:
    layout = grid_layout(batch, flatten=True)
    assert layout.shapes.tolist() == [[1, 6], [1, 3]]
    patches = layout.scatter(torch.ones(5, 1), torch.zeros(1))[..., 0]
    assert patches.int().tolist() == [[[1, 0, 1, 1, 0, 0]], [[1, 0, 1, 0, 0, 0]]]
    assert layout.inside.int().tolist() == [[[1] * 6], [[1, 1, 1, 0, 0, 0]]]
    assert torch.equal(layout.gather(layout.scatter(batch.features, torch.zeros(2))), batch.features)


# --- pooling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
def test_attention_pooling_by_hand(loops: ModuleType, gated: bool) -> None:
    torch.manual_seed(0)
    array = loops.array
    pool = AttentionPool(3, 4, gated=gated).double()
    cells, mask = torch.randn(2, 5, 3, dtype=torch.float64), torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0]]).bool()
    pooled, attention = pool(cells, mask)
    for b in range(2):
        weights = np.zeros(5)
        for i in range(5):
            if mask[b, i]:
                x = array(cells[b, i])
                hidden = np.tanh(array(pool.value.weight) @ x + array(pool.value.bias))
                if gated:
                    hidden = hidden / (1 + np.exp(-(array(pool.gate.weight) @ x + array(pool.gate.bias))))
                weights[i] = np.exp(array(pool.score.weight)[0] @ hidden)
        weights /= weights.sum()
        np.testing.assert_allclose(array(attention[b]), weights, rtol=1e-10)
        np.testing.assert_allclose(array(pooled[b]), weights @ array(cells[b]), rtol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "inside"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_attention_is_single_precision_at_least(dtype: torch.dtype, inside: torch.dtype) -> None:
    pool = AttentionPool(3, 4).to(dtype)
    pooled, attention = pool(torch.randn(1, 300, 3, dtype=dtype), torch.ones(1, 300, dtype=torch.bool))
    assert (pooled.dtype, attention.dtype) == (dtype, inside)
    assert float(attention.detach().sum()) == pytest.approx(1, abs=1e-5)


def test_masked_cells_get_no_attention_whatever_they_hold() -> None:
    pool = AttentionPool(3, 4)
    cells, mask = torch.randn(1, 4, 3), torch.tensor([[True, False, True, False]])
    other = cells.clone()
    other[0, 1], other[0, 3] = 1e4, -7.0
    with torch.no_grad():
        first, second = pool(cells, mask), pool(other, mask)
    assert first[1][0, [1, 3]].tolist() == [0, 0]
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(first[0], second[0])


# --- standardised features -----------------------------------------------------------------------------------------


def test_standardise() -> None:
    features = torch.randn(500, 3) * torch.tensor([1.0, 20.0, 0.0]) + torch.tensor([3.0, -100.0, 7.0])
    standardise = Standardise(3)
    assert torch.equal(standardise(features), features)
    standardise.fit(features.mean(0), features.std(0, correction=0))
    found = standardise(features)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), rtol=0, atol=1e-4)
    assert torch.equal(found[:, 2], torch.zeros(500))  # one that never varies is centred, not divided by nothing


def test_standardise_is_kept_with_the_weights_and_never_trained() -> None:
    standardise = Standardise(2)
    standardise.fit(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert not list(standardise.parameters())
    other = Standardise(2)
    other.load_state_dict(standardise.state_dict())
    assert torch.equal(other(torch.tensor([[4.0, 6.0]])), torch.tensor([[1.0, 1.0]]))


def test_models_standardise_before_anything_else(
    make_bags: Callable[..., list[GridBag]], make_model: Callable[..., nn.Module]
) -> None:
    (bag,) = make_bags([(4, 5)])
    for name in ("mamba2d-mil", "abmil"):
        model = make_model({"name": name, "dim": 8})
        done = (bag.features - model.standardise.mean) / model.standardise.scale
        with torch.no_grad():
            expected = model(collate([bag])).logits
            model.standardise.fit(torch.zeros(6), torch.ones(6))
            found = model(collate([GridBag("x", done, bag.index, bag.shape)])).logits
        torch.testing.assert_close(found, expected)


# --- the block for models of others


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_a_block_for_a_grid_without_padding(directions: int) -> None:
    torch.manual_seed(0)
    block = Mamba2DBlock(8, state=3, directions=directions)
    grid = torch.randn(2, 5, 7, 8, requires_grad=True)
    out = block(grid)
    assert out.shape == grid.shape
    out[0, 2, 3].sum().backward()
    assert grid.grad is not None
    reached = grid.grad[0].abs().sum(-1) > 0
    assert not grid.grad[1].any(), "images do not see each other"
    assert reached[:3, :4].all(), "what lies above and to the left is seen in every case"
    assert reached.all() == (directions == 4)


def test_a_block_sees_a_grid_of_any_size() -> None:
    torch.manual_seed(0)
    block = Mamba2DBlock(4, state=2, conv="raster")
    for size in ((1, 1), (1, 9), (6, 2)):
        assert block(torch.randn(1, *size, 4)).isfinite().all()


def test_a_backend_that_is_not_there_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSI2D_SCAN_BACKEND", "cuda")
    with pytest.raises(ConfigError, match=r"^WSI2D_SCAN_BACKEND is 'cuda', it should be one of torch, native, or not"):
        Mamba2DBlock(4)
    assert make_mixer(scan=False)(torch.zeros(1, 2, 2, 3, dtype=torch.float64), full_layout([(2, 2)])).shape == (
        1,
        2,
        2,
        3,
    )
