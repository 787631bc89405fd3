"""Bags of random patches, and aggregators with random parameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from wsi2d.data.bags import GridBag
from wsi2d.models.aggregator import Aggregator
from wsi2d.models.registry import build_model

IN_DIM, OUT_DIM = 6, 3


def random_bag(
    shape: tuple[int, int], *, seed: int = 0, share: float = 0.6, dtype: torch.dtype = torch.float32
) -> GridBag:
    """A bag of random patches on some cells of a grid, in random order."""
    generator = np.random.default_rng([seed, *shape])
    cells = np.argwhere(np.ones(shape, bool))
    count = max(1, round(share * len(cells)))
    index = generator.permutation(cells)[:count]
    features = torch.from_numpy(generator.standard_normal((count, IN_DIM))).to(dtype)
    return GridBag(f"bag-{seed}", features, torch.from_numpy(index), shape)


def random_model(section: Mapping[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Aggregator:
    """A model in evaluation mode, none of its parameters zero, with features to be standardised."""
    torch.manual_seed(seed)
    model = build_model(section, in_dim=IN_DIM, out_dim=OUT_DIM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if model.standardise is not None:
        model.standardise.fit(torch.randn(IN_DIM), torch.rand(IN_DIM) + 0.5)
    return model.to(dtype).eval()
