"""Fixtures of the training tests."""

from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module", autouse=True)
def on_one_thread(one_thread: None) -> None:
    """All tests of this folder."""


@pytest.fixture(scope="session")
def finished_run(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished classification run (its study lies beside it); shared by all tests, so read only."""
    from wsi2d.training.crossval import train

    path = tiny.write_study(tmp_path_factory.mktemp("finished"))
    train(path)
    return path.with_name("run")


@pytest.fixture(scope="session")
def survival_run(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for survival."""
    from wsi2d.training.crossval import train

    path = tiny.write_study(tmp_path_factory.mktemp("finished_survival"), "survival")
    train(path)
    return path.with_name("run")
