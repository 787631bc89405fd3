"""Fixtures of the model tests: bags of random patches, batches of them, models with random parameters."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
from random_models import random_bag, random_model
from torch import nn

from wsi2d.data.bags import GridBag


@pytest.fixture(autouse=True)
def _its_package_is_there(skip_without_torchmil: None) -> None:
    """All tests of this folder."""


@pytest.fixture(scope="session")
def loops(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`loops.py`: layers as loops over cells, in float64."""
    return load_module("models/loops.py")


@pytest.fixture
def make_bag() -> Callable[..., GridBag]:
    """A bag of random patches on some cells of a grid, in random order."""
    return random_bag


@pytest.fixture
def make_bags() -> Callable[..., list[GridBag]]:
    """One bag of each shape."""

    def make(shapes: Sequence[tuple[int, int]], **options: Any) -> list[GridBag]:
        return [random_bag(shape, seed=seed, **options) for seed, shape in enumerate(shapes)]

    return make


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    """A model in evaluation mode, none of its parameters zero, with features to be standardised."""
    return random_model
