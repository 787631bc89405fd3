"""Patches in raster order, the orders of branches, and the mixer on them against loops."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsi2d.data.bags import GridBag, collate
from wsi2d.errors import ConfigError
from wsi2d.models.sequence import (
    Order,
    SequenceLayout,
    SequenceMixer,
    backwards,
    forwards,
    raster_sequence,
    strided,
)

LENGTHS = [1, 2, 3, 7, 23, 10]


def layout_of(lengths: list[int]) -> SequenceLayout:
    """Bags of one row."""
    bags = [GridBag("x", torch.zeros(n, 1), torch.stack([torch.zeros(n).long(), torch.arange(n)], 1), (1, n))
            for n in lengths]  # fmt: skip
    return raster_sequence(collate(bags))


def make_mixer(*orders: Order, dim: int = 3, state: int = 2) -> SequenceMixer:
    torch.manual_seed(0)
    mixer = SequenceMixer(dim, orders, state=state, expand=2, dt_init="mamba", dt_min=0.001, dt_max=0.1).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


# --- where patches stand -------------------------------------------------------------------------------------------


def test_raster_order_by_hand() -> None:
    """Row by row, left to right; gaps count for nothing."""
    first = GridBag("a", torch.arange(8.0).reshape(4, 2), torch.tensor([[2, 1], [0, 2], [2, 0], [0, 1]]), (3, 3))
    second = GridBag("b", torch.arange(10.0, 14.0).reshape(2, 2), torch.tensor([[5, 0], [0, 9]]), (6, 10))
    batch = collate([first, second])
    layout = raster_sequence(batch)
    assert (layout.lengths.tolist(), layout.longest) == ([4, 2], 4)
    assert layout.bag.tolist() == [0, 0, 0, 0, 1, 1]
    assert layout.place.tolist() == [3, 1, 2, 0, 1, 0]
    sequence = layout.scatter(batch.features)
    assert sequence[0].tolist() == [[6, 7], [2, 3], [4, 5], [0, 1]]
    assert sequence[1].tolist() == [[12, 13], [10, 11], [0, 0], [0, 0]]
    assert torch.equal(layout.gather(sequence), batch.features)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (backwards, [6, 5, 4, 3, 2, 1, 0]),
        (strided(1), [0, 1, 2, 3, 4, 5, 6]),
        (strided(2), [0, 2, 4, 6, 1, 3, 5]),
        (strided(3), [0, 3, 6, 1, 4, 2, 5]),
        (strided(10), [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_orders_by_hand(order: Order, expected: list[int]) -> None:
    places = order(torch.tensor([7, 2]), 9)
    assert places is not None
    assert places[0].tolist() == [*expected, 7, 8]
    assert places[1, 2:].tolist() == list(range(2, 9)), "padding stays where it is"
    assert sorted(places[1, :2].tolist()) == [0, 1]


def test_the_order_as_it_stands_costs_nothing() -> None:
    assert forwards(torch.tensor([7, 2]), 9) is None


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 50))
@settings(deadline=None, max_examples=60)
def test_a_stride_visits_each_patch_once_and_leaves_padding_last(lengths: list[int], rate: int) -> None:
    longest = max(lengths)
    places = strided(rate)(torch.tensor(lengths), longest)
    assert places is not None
    for length, row in zip(lengths, places.tolist(), strict=True):
        assert sorted(row[:length]) == list(range(length))
        assert row[length:] == list(range(length, longest))
        assert row[:length] == [t for k in range(rate) for t in range(k, length, rate)]


# --- the mixer against loops ---------------------------------------------------------------------------------------


def mixed_by_loops(
    loops: ModuleType, mixer: SequenceMixer, sequence: np.ndarray, orders: list[list[int]]
) -> np.ndarray:
    """One bag's sequence ``[length, dim]``, each branch in its order."""
    u, z = np.split(loops.linear(mixer.in_proj, sequence), 2, -1)
    total = np.zeros_like(u)
    for branch, order in zip(mixer.branches, orders, strict=True):
        conv = branch.conv1d
        near = loops.cells_before(loops.array(conv.weight)[:, 0], loops.array(conv.bias), u[order])
        total[order] += loops.selective_scan(branch.scan, loops.silu(near)[None])[0]
    return loops.linear(mixer.out_proj, total * loops.silu(z))


ORDERS: dict[str, tuple[tuple[Order, ...], Callable[[int], list[list[int]]]]] = {
    "mamba": ((forwards,), lambda n: [list(range(n))]),
    "bimamba": ((forwards, backwards), lambda n: [list(range(n)), list(range(n))[::-1]]),
    "srmamba": (
        (forwards, strided(4)),
        lambda n: [list(range(n)), [t for k in range(4) for t in range(k, n, 4)]],
    ),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_mixer_equals_loops_on_each_bag_of_a_padded_batch(loops: ModuleType, kind: str) -> None:
    orders, by_hand = ORDERS[kind]
    mixer, layout = make_mixer(*orders), layout_of(LENGTHS)
    sequence = torch.randn(len(LENGTHS), max(LENGTHS), 3, dtype=torch.float64)  # padding holds anything
    found = mixer(sequence, layout).detach().numpy()
    for k, length in enumerate(LENGTHS):
        expected = mixed_by_loops(loops, mixer, sequence[k, :length].numpy(), by_hand(length))
        np.testing.assert_allclose(found[k, :length], expected, rtol=1e-10, atol=1e-12)


def test_branches_have_weights_of_their_own() -> None:
    mixer = make_mixer(forwards, strided(10))
    first, second = (dict(branch.named_parameters()) for branch in mixer.branches)
    assert {"conv1d.weight", "scan.x_proj.weight", "scan.dt_weight", "scan.dt_bias", "scan.A_log", "scan.D"} <= set(
        first
    )
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_a_backend_that_is_not_there_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSI2D_SCAN_BACKEND", "cuda")
    with pytest.raises(ConfigError, match=r"^WSI2D_SCAN_BACKEND is 'cuda', it should be one of "):
        make_mixer(forwards)


# --- what the aggregators see of the sequence ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "reaches"),
    [
        ({"name": "mamba-mil"}, "before"),
        ({"name": "s4-mil"}, "before"),
        ({"name": "bimamba-mil"}, "all"),
        ({"name": "srmamba-mil", "rate": 3}, "before and in strides"),
    ],
    ids=str,
)
def test_which_patches_a_patch_sees(
    make_model: Callable[..., nn.Module], make_bag: Callable[..., GridBag], section: dict[str, Any], reaches: str
) -> None:
    model = make_model({"dim": 8, "state": 2, **section}, dtype=torch.float64)
    bag = make_bag((1, 11), share=1.0, dtype=torch.float64)
    features = bag.features[bag.index[:, 1].argsort()].requires_grad_()
    in_order = GridBag("x", features, torch.stack([torch.zeros(11).long(), torch.arange(11)], 1), (1, 11))
    values = model.embed(collate([in_order])).values
    (gradient,) = torch.autograd.grad((values[5] * torch.arange(1.0, 9.0)).sum(), features)
    seen = set((gradient.abs().amax(1) > 1e-14).nonzero()[:, 0].tolist())
    before = set(range(6))
    strides = [t for k in range(3) for t in range(k, 11, 3)]  # 0 3 6 9 1 4 7 10 2 5 8
    expected = {
        "before": before, "all": set(range(11)), "before and in strides": before | set(strides[: strides.index(5) + 1]),
    }  # fmt: skip
    assert seen == expected[reaches]
