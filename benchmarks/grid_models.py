"""Models that read a grid in different ways, each brought to the same number of weights: what the benchmarks compare.

All are the library's own aggregators with their default options but for those named in :data:`CONTENDERS`, so all have
the same projection in front, the same attention pooling behind, and no positional encoding. What differs is what mixes
the cells, and the width that the budget leaves for it.

    make("mamba2d-mil", in_dim=1, classes=10, budget=20_000)            # a model
    make("mamba2d-mil", in_dim=1, classes=10, budget=20_000, blocks=2)  # with two blocks, as wide as the budget allows
    pack(grids)                                                         # [batch, height, width, dim] as it takes them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wsi2d.data.bags import BagBatch
from wsi2d.models.aggregator import Aggregator
from wsi2d.models.registry import build_model, model_class

TOLERANCE = 0.03  # how far a model's number of weights may be from the budget


@dataclass(frozen=True)
class Contender:
    """A way to read a grid.

    Attributes:
        about: one line for tables.
        model: the aggregator.
        options: those of the aggregator that make the contender.
        depth: so many times the blocks of the others.
    """

    about: str
    model: str = "mamba2d-mil"
    options: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 1


CONTENDERS: dict[str, Contender] = {
    "order-free": Contender("attention over cells without their places", "abmil"),
    "convolution": Contender("3×3 convolution alone", "conv2d-mil"),
    "convolution-deep": Contender("3×3 convolution alone, twice as many blocks", "conv2d-mil", depth=2),
    "raster-causal": Contender("1D scan, raster order, causal raster convolution", "mamba-mil"),
    "both-ways-causal": Contender("1D scans, raster order, both ways, causal raster convolutions", "bimamba-mil"),
    "raster": Contender("1D scan, raster order, 3×3", options={"scan_order": "raster", "directions": 1}),
    "serpentine": Contender("1D scan, serpentine order, 3×3", options={"scan_order": "serpentine", "directions": 1}),
    "both-ways": Contender("1D scans, raster order, both ways, 3×3", options={"scan_order": "raster", "directions": 2}),
    "raster-4": Contender("1D scans, raster order of all four flips, 3×3", options={"scan_order": "raster"}),
    "one-row": Contender("2D scan and 3×3 on the grid flattened to one row", options={"layout": "row"}),
    "cross": Contender("1D scans, rows and columns, both ways, 3×3", options={"scan_order": "cross"}),
    "mamba2d-causal": Contender("2D scan, four directions, causal raster convolution", options={"conv": "raster"}),
    "mamba2d-1": Contender("2D scan, one direction, 3×3", options={"directions": 1}),
    "mamba2d-shared": Contender("2D scan, four directions, shared parameters, 3×3", options={"share_directions": True}),
    "mamba2d-mil": Contender("2D scan, four directions, 3×3: the default"),
    "wavefront": Contender("wavefront scan from two corners, 3×3", "m2d-mil"),
}  # fmt: skip


def section(name: str, *, in_dim: int, classes: int, budget: int, blocks: int = 1, **options: Any) -> dict[str, Any]:
    """A contender as the ``model`` section of a configuration, of the width that fits the budget.

    The width is the largest with no more weights than the budget; the layer that scores a cell, as wide as the model
    to begin with, is widened by what is left.

    Args:
        name: one of :data:`CONTENDERS`.
        in_dim: numbers a cell.
        classes: number of logits.
        budget: weights in all.
        blocks: residual blocks, of models that have them.
        options: the same for every contender (``state``, ``dropout``, …); what a model does not have is left out.

    Raises:
        ValueError: the contender is unknown, or cannot be brought within 3 % of the budget.
    """
    if name not in CONTENDERS:
        raise ValueError(f"contender is '{name}', it should be one of {', '.join(CONTENDERS)}")
    contender = CONTENDERS[name]
    known = model_class({"name": contender.model}).config_class.model_fields
    shared = {"blocks": blocks * contender.depth, **options, **contender.options}
    base = {"name": contender.model, **{key: value for key, value in shared.items() if key in known}}

    def weights(dim: int, attention_dim: int) -> int:
        with torch.device("meta"):
            return count({**base, "dim": dim, "attention_dim": attention_dim}, in_dim=in_dim, classes=classes)

    narrow, wide = 1, 2
    while weights(wide, wide) <= budget:
        narrow, wide = wide, 2 * wide
    while wide - narrow > 1:  # the first fits, the second does not
        dim = (narrow + wide) // 2
        narrow, wide = (dim, wide) if weights(dim, dim) <= budget else (narrow, dim)
    unit = weights(narrow, narrow + 1) - weights(narrow, narrow)
    attention_dim = narrow + max(0, round((budget - weights(narrow, narrow)) / unit))
    found = weights(narrow, attention_dim)
    if abs(found - budget) > TOLERANCE * budget:
        raise ValueError(f"contender '{name}': {found:,} weights are the nearest to a budget of {budget:,}; raise it")
    return {**base, "dim": narrow, "attention_dim": attention_dim}


def make(name: str, *, in_dim: int, classes: int, budget: int, blocks: int = 1, **options: Any) -> Aggregator:
    """A contender with starting weights from torch's global generator; arguments and errors as of :func:`section`."""
    chosen = section(name, in_dim=in_dim, classes=classes, budget=budget, blocks=blocks, **options)
    return build_model(chosen, in_dim=in_dim, out_dim=classes)


def count(model_section: Mapping[str, Any], *, in_dim: int, classes: int) -> int:
    """Trained weights of a model, given as its section of a configuration."""
    return trained_weights(build_model(model_section, in_dim=in_dim, out_dim=classes))


def trained_weights(model: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def pack(grids: Tensor, *, sizes: Tensor | None = None, occupied: Tensor | None = None) -> BagBatch:
    """Dense grids as the batch of bags that every aggregator takes.

    Args:
        grids: float32 ``[batch, height, width, dim]``.
        sizes: int64 ``[batch, 2]``, rows and columns of each grid, which stands at the top left of its place in
            ``grids``; by default all are of height × width.
        occupied: bool ``[batch, height, width]``, cells that hold something; by default all of them. Each grid needs
            one. What is occupied beyond ``sizes`` does not count.

    Raises:
        ValueError: a grid has no occupied cell.
    """
    batch, height, width, dim = grids.shape
    if sizes is None:
        sizes = torch.tensor([[height, width]]).expand(batch, 2)
    if occupied is None and bool((sizes == torch.tensor([height, width])).all()):
        cells = torch.arange(batch * height * width)
        index = torch.stack([cells // width % height, cells % width], 1)
        return BagBatch(grids.reshape(-1, dim), cells // (height * width), index, sizes)
    inside = (torch.arange(height)[:, None] < sizes[:, :1, None]) & (torch.arange(width) < sizes[:, 1:, None])
    if occupied is not None:
        inside = inside & occupied
    if not bool(inside.flatten(1).any(1).all()):
        raise ValueError("occupied: a grid has no cell that holds anything")
    bag, row, col = inside.nonzero(as_tuple=True)
    return BagBatch(grids[bag, row, col], bag, torch.stack([row, col], 1), sizes)
