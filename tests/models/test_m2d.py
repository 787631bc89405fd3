"""Mamba2D's block against loops over cells, on each bag of a padded batch."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from wsi2d.data.bags import GridBag, collate
from wsi2d.errors import ConfigError
from wsi2d.models.blocks import GridLayout, grid_layout
from wsi2d.models.m2d import LocalPath, M2DBlock, M2DMixer, WavefrontParameters

SHAPES = [(4, 5), (1, 1), (3, 2), (1, 6), (6, 1)]


def make_block(*, scans: int = 2, local: bool = True, dim: int = 3, state: int = 2, expand: int = 2) -> M2DBlock:
    torch.manual_seed(0)
    mixer = M2DMixer(
        dim, state=state, expand=expand, scans=scans, local=local, dt_init="mamba", dt_min=0.001, dt_max=0.1,  # type: ignore[arg-type]
    )  # fmt: skip
    block = M2DBlock(mixer, dim, 2).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


@pytest.fixture
def full_layout() -> Callable[[list[tuple[int, int]]], GridLayout]:
    """Layout of bags that fill their grids."""

    def make(shapes: list[tuple[int, int]]) -> GridLayout:
        cells = [torch.cartesian_prod(torch.arange(r), torch.arange(c)) for r, c in shapes]
        return grid_layout(
            collate([GridBag("x", torch.zeros(len(i), 1), i, s) for i, s in zip(cells, shapes, strict=True)])
        )

    return make


# --- the oracle ----------------------------------------------------------------------------------------------------


def star(loops: ModuleType, layer: nn.Module, x: np.ndarray) -> np.ndarray:
    return loops.array(layer.scale) * np.maximum(x, 0) ** 2 + loops.array(layer.bias)


def local_by_loops(loops: ModuleType, path: LocalPath, x: np.ndarray) -> np.ndarray:
    wide = star(loops, path.before, loops.linear(path.widen, loops.layer_norm(path.norm, x)))
    near = loops.near_cells(loops.array(path.conv2d.weight)[:, 0], 0.0, wide)
    return loops.linear(path.narrow, star(loops, path.after, near))


def mixed_by_loops(loops: ModuleType, mixer: M2DMixer, x: np.ndarray) -> np.ndarray:
    mixed = np.zeros_like(x) if mixer.local is None else local_by_loops(loops, mixer.local, x)
    if len(mixer.scans):
        inside = loops.gelu(loops.linear(mixer.in_proj, x))
        parts = [loops.wavefront_scan(mixer.scans[0], inside)]
        if len(mixer.scans) == 2:
            parts.append(loops.wavefront_scan(mixer.scans[1], inside[::-1, ::-1])[::-1, ::-1])
        mixed = mixed + loops.linear(mixer.out_proj, loops.gelu(np.mean(parts, 0)))
    return mixed


def block_by_loops(loops: ModuleType, block: M2DBlock, x: np.ndarray) -> np.ndarray:
    x = x + mixed_by_loops(loops, block.mixer, loops.layer_norm(block.norm1, x))
    first, _, last = block.mlp
    return x + loops.linear(last, loops.gelu(loops.linear(first, loops.layer_norm(block.norm2, x))))


@pytest.mark.parametrize(("scans", "local"), [(1, True), (2, True), (0, True), (1, False), (2, False)])
def test_block_equals_loops_on_each_bag_of_a_padded_batch(
    loops: ModuleType, full_layout: Callable[..., GridLayout], scans: int, local: bool
) -> None:
    block, layout = make_block(scans=scans, local=local), full_layout(SHAPES)
    grid = torch.randn(*layout.inside.shape, 3, dtype=torch.float64)  # padding holds anything
    found = block(grid, layout).detach().numpy()
    for k, (rows, cols) in enumerate(SHAPES):
        expected = block_by_loops(loops, block, grid[k, :rows, :cols].numpy())
        np.testing.assert_allclose(found[k, :rows, :cols], expected, rtol=1e-9, atol=1e-11)


# --- its parts -----------------------------------------------------------------------------------------------------


def test_grids_turn_within_themselves(full_layout: Callable[..., GridLayout]) -> None:
    layout = full_layout(SHAPES)
    grid = torch.randn(*layout.inside.shape, 2)
    turned = layout.turn(grid)
    for k, (rows, cols) in enumerate(SHAPES):
        assert torch.equal(turned[k, :rows, :cols], grid[k, :rows, :cols].flip((0, 1)))
    assert torch.equal(layout.turn(layout.inside.unsqueeze(-1))[..., 0], layout.inside), "padding stays padding"
    assert torch.equal(layout.turn(turned), grid)
    alike = full_layout([(4, 5), (4, 5)])
    assert torch.equal(alike.turn(grid[:2, :4, :5]), grid[:2, :4, :5].flip((1, 2)))


@pytest.mark.parametrize(("scans", "corners"), [(1, {"above left"}), (2, {"above left", "below right"})])
def test_which_cells_a_cell_sees(full_layout: Callable[..., GridLayout], scans: int, corners: set[str]) -> None:
    block, layout = make_block(scans=scans, local=False), full_layout([(7, 7)])
    grid = torch.randn(1, 7, 7, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(grid, layout)[0, 3, 3].sum(), grid)
    seen = gradient[0].abs().sum(-1) > 1e-14
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[:4, :4] = "above left" in corners
    expected[3:, 3:] |= "below right" in corners
    assert torch.equal(seen, expected)


def test_what_comes_from_above_and_from_the_left_has_weights_of_its_own() -> None:
    torch.manual_seed(0)
    parameters = WavefrontParameters(8, 4, 1, "mamba", 0.001, 0.1)
    names = dict(parameters.named_parameters())
    assert {f"{side}.{name}" for side in ("above", "left") for name in ("dt_weight", "dt_bias", "A_log")} <= set(names)
    assert not torch.equal(names["above.dt_bias"], names["left.dt_bias"])
    assert parameters.x_proj.weight.shape == (2 * 1 + 3 * 4, 8)
    for side in (parameters.above, parameters.left):
        torch.testing.assert_close(-torch.exp(side.A_log.detach()), -torch.arange(1.0, 5).expand(8, 4))
        delta = nn.functional.softplus(side.dt_bias.detach())
        assert 0.00099 < float(delta.min()) < float(delta.max()) < 0.101


def test_two_scans_have_weights_of_their_own() -> None:
    first, second = (dict(scan.named_parameters()) for scan in make_block().mixer.scans)
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_there_is_no_gate() -> None:
    """One projection in, of the scan's width."""
    mixer = make_block(dim=4, expand=3).mixer
    assert mixer.in_proj.weight.shape == (12, 4)


def test_a_backend_that_is_not_there_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSI2D_SCAN_BACKEND", "cuda")
    with pytest.raises(ConfigError, match=r"^WSI2D_SCAN_BACKEND is 'cuda', it should be one of "):
        make_block()
    assert make_block(scans=0) is not None
