"""Fixtures of the tests with other tools' files."""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from wsi2d.features.imports.isolated import PeerReader


@pytest.fixture(scope="session")
def peers(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`peers.py`: writes files as other tools lay them out."""
    return load_module("features/peers.py")


@pytest.fixture(scope="module")
def reader() -> Iterator[PeerReader]:
    """A process that reads other tools' files."""
    with PeerReader() as reading:
        yield reading
