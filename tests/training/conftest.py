"""Fixtures of the training tests."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """`tiny_study.py`: writes a study that cross-validates in a second."""
    name = "training_tests_tiny_study"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("tiny_study.py"))
        if spec is None or spec.loader is None:
            raise ImportError("no loader for tiny_study.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are fastest on one thread, and their numbers do not depend on the machine's cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
